"""This Python and this userdm as a disk, for the machine of the kernel's oracle, which has no Python of its own."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import userdm

LEFT_OUT = ("test", "site-packages", "dist-packages", "idlelib", "tkinter", "ensurepip", "lib2to3", "config-*")

START = """
mkdir -p /py /run/lock
mount -t squashfs -o ro DISK /py || exit 1
export PYTHONHOME=/py PYTHONPATH=/py/site LD_LIBRARY_PATH=/py/shared PATH=$PATH:/py/bin LC_ALL=C.UTF-8
userdm() { python -m userdm "$@"; }
"""
"""Where the image is DISK: afterwards `userdm` is a command of the script."""


def image(path: Path) -> None:
    """Make the disk, a squashfs. Skips the test where mksquashfs is missing."""
    if shutil.which("mksquashfs") is None:
        pytest.skip("missing: mksquashfs (package squashfs-tools)")
    root = path.with_suffix(".root")
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(stdlib, root / "lib" / stdlib.name, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=False)
    program = Path(sys.executable).resolve()
    (root / "bin").mkdir()
    shutil.copy(program, root / "bin" / "python")
    for package in ("userdm", "crc32c"):
        shutil.copytree(folder_of(package), root / "site" / package)
    # crc32c asks for its own version
    for info in folder_of("crc32c").parent.glob("crc32c-*.dist-info"):
        shutil.copytree(info, root / "site" / info.name)
    (root / "shared").mkdir()
    for library in set(libraries([program, *root.rglob("*.so")])):
        shutil.copy(library, root / "shared" / library.name)
    done = subprocess.run(
        ["mksquashfs", root, path, "-noappend", "-quiet", "-no-progress", "-comp", "gzip", "-Xcompression-level", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(root)
    # a disk has whole sectors
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 4096) * 4096)


def folder_of(package: str) -> Path:
    if package == "userdm":
        return Path(userdm.__file__).parent
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def libraries(programs: Iterable[Path]) -> Iterator[Path]:
    """The shared libraries that they want, as ldd finds them."""
    for program in programs:
        said = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
        for word in said.split():
            if word.startswith("/") and ".so" in word and "ld-linux" not in word:
                yield Path(word)
