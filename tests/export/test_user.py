"""Devices without root: the FUSE file itself. Run as the user of the tests, or by root as nobody."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .user_scenes import SCENES

TESTS = Path(__file__).parent.parent
NOBODY = 65534

# /dev/fuse is open to everybody where udev runs; elsewhere only for this test, in a mount namespace of its own.
AS_NOBODY = """
set -e
mknod -m 666 "$1" c 10 229
mount --bind "$1" /dev/fuse
rm "$1"
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


@pytest.fixture
def base() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="userdm-test-"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def interpreter() -> str:
    """One that nobody may run: this one, unless it is installed in somebody's home."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 1 for parent in Path(sys.executable).resolve().parents):
        return sys.executable
    return "/usr/bin/python3"


def missing() -> str | None:
    for tool in ("fusermount3", "mkfs.ext4", "debugfs", "fallocate"):
        if shutil.which(tool) is None:
            return tool
    if not Path("/dev/fuse").exists():
        return "/dev/fuse"
    if os.geteuid() == 0:
        for path in (Path(interpreter()), TESTS):
            if any(not parent.stat().st_mode & 1 for parent in path.parents):
                return f"a way for nobody to {path}"
    elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "permission for /dev/fuse"
    return None


@pytest.mark.parametrize("scene", SCENES)
def test_as_a_user(scene: str, base: Path) -> None:
    if (what := missing()) is not None:
        pytest.skip(f"missing: {what}")
    command = [interpreter(), "-m", "export.user_scenes", scene, str(base)]
    if os.geteuid() == 0:
        unshare = ["unshare", "-m", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh", str(base / "fuse")]
        command = unshare + command
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"},
    )
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        # with whatever it has started, so that nothing can keep a mount
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert said.endswith("well\n"), said
