"""Real FUSE and real loop devices, in folders of each test's own."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from userdm.export.exporter import DeviceExporter
from userdm.export.mountinfo import parse

from .backends import sh


def missing_for_root() -> str | None:
    if os.geteuid() != 0:
        return "root"
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.access(path, os.R_OK | os.W_OK):
            return path
    return next((tool for tool in ("mkfs.ext4", "mount", "blkdiscard") if shutil.which(tool) is None), None)


@pytest.fixture(autouse=True)
def _needs_root(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root") is not None:
        missing = missing_for_root()
        if missing is not None:
            pytest.skip(f"missing: {missing}")


def unmount_under(folder: Path) -> None:
    """Unmount whatever a test left in its folder; what is in use, lazily."""
    for mount in reversed(list(parse(os.getpid(), Path("/proc/self/mountinfo").read_bytes()))):
        if Path(mount.point).is_relative_to(folder):
            sh("sh", "-c", 'umount "$1" || umount -l "$1"', "sh", mount.point, check=False)


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[DeviceExporter]:
    """An exporter with folders of its own; after the test nothing of it is left, or the test has failed."""
    before = set(threading.enumerate())
    made = DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True)
    yield made
    unmount_under(tmp_path)
    made.close()
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not left, f"threads that still run: {left}"
    assert made.clear_stale() == []
    assert not [entry.name for entry in (tmp_path / "run").glob("loop/*")]


@pytest.fixture
def mapper_dir(tmp_path: Path) -> Path:
    return tmp_path / "mapper"
