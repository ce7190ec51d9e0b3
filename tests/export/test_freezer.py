"""File systems are frozen wherever they are mounted, and thawed whoever dies."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from userdm.export.exporter import DeviceExporter
from userdm.export.freeze_helper import FIFREEZE, FITHAW
from userdm.mapper.hooks import Export

from .backends import Awkward, MiB, memory, raises, sh, wait_for
from .test_lifecycle import in_namespace

pytestmark = pytest.mark.root


class Volume:
    """An ext4 on a device of its own, mounted unless told otherwise."""

    def __init__(self, exporter: DeviceExporter, name: str, mapper_dir: Path, *, mount: bool = True) -> None:
        self.backend = Awkward()
        self.export: Export = exporter.create(name, self.backend, None)
        self.export.activate(name, False)
        self.node = mapper_dir / name
        self.point = mapper_dir.parent / f"mnt-{name}"
        self.point.mkdir()
        sh("mkfs.ext4", "-q", self.node)
        if mount:
            sh("mount", self.node, self.point)

    def blocks_a_writer(self) -> bool:
        """Whether a write waits; it is let go again by the thaw."""
        return is_frozen(self.point)

    def files(self, copy: Path) -> str:
        """Check the file system in a copy of the device's bytes as they are now, and list it."""
        copy.write_bytes(self.backend.storage._bytes)
        sh("e2fsck", "-fn", copy)
        return sh("debugfs", "-R", "ls", copy)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def is_frozen(point: Path) -> bool:
    """EBUSY from a second freeze tells; a success is taken back at once."""
    with opened(point) as fd:
        try:
            fcntl.ioctl(fd, FIFREEZE, 0)
        except OSError as error:
            assert error.errno == errno.EBUSY
            return True
        fcntl.ioctl(fd, FITHAW, 0)
        return False


@pytest.fixture
def volume(exporter: DeviceExporter, mapper_dir: Path) -> Volume:
    return Volume(exporter, "vol", mapper_dir)


def test_a_frozen_device_has_everything_and_stays_still(
    exporter: DeviceExporter, volume: Volume, tmp_path: Path
) -> None:
    for number in range(20):
        (volume.point / f"file{number}").write_text("just written")
    thaw = exporter.freeze([volume.export])
    seen = len(volume.backend.calls)
    writer = subprocess.Popen(["sh", "-c", f"echo late > {volume.point}/late"])
    time.sleep(0.2)
    assert writer.poll() is None
    assert all(what == "read" for what, _, _ in volume.backend.calls[seen:])
    listed = volume.files(tmp_path / "copy")
    assert "file19" in listed
    assert "late" not in listed
    thaw()
    assert writer.wait(10) == 0
    thaw()  # once more does no harm
    assert (volume.point / "late").read_text() == "late\n"
    sh("umount", volume.point)


def test_a_device_that_is_only_open_is_synced(exporter: DeviceExporter, mapper_dir: Path) -> None:
    volume = Volume(exporter, "vol", mapper_dir, mount=False)
    with volume.node.open("r+b", buffering=0) as node:
        node.write(b"dirty in memory only" + bytes(4076))
        thaw = exporter.freeze([volume.export])
        assert volume.backend.storage._bytes[:20] == b"dirty in memory only"
        thaw()


def test_mounted_in_another_namespace(exporter: DeviceExporter, mapper_dir: Path, tmp_path: Path) -> None:
    volume = Volume(exporter, "vol", mapper_dir, mount=False)
    script = f"mount {volume.node} {volume.point} && echo there > {volume.point}/file && echo mounted && read line"
    with in_namespace(script) as process:
        thaw = exporter.freeze([volume.export])
        assert is_frozen(Path(f"/proc/{process.pid}/root{volume.point}"))
        assert "file" in volume.files(tmp_path / "copy")
        thaw()
        assert not is_frozen(Path(f"/proc/{process.pid}/root{volume.point}"))


def test_mounted_twice_is_frozen_once(exporter: DeviceExporter, volume: Volume, tmp_path: Path) -> None:
    second = tmp_path / "second mount \\ with \t odd name"
    second.mkdir()
    sh("mount", volume.node, second)
    thaw = exporter.freeze([volume.export])
    assert volume.blocks_a_writer()
    thaw()
    assert not volume.blocks_a_writer()


def test_a_hidden_mount_is_reached_by_another(exporter: DeviceExporter, volume: Volume, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    sh("mount", volume.node, second)
    sh("mount", "-t", "tmpfs", "none", volume.point)
    thaw = exporter.freeze([volume.export])
    assert is_frozen(second)
    thaw()


def test_a_mount_that_cannot_be_reached_is_an_error(exporter: DeviceExporter, volume: Volume) -> None:
    sh("mount", "-t", "tmpfs", "none", volume.point)
    with pytest.raises(OSError, match="mnt-vol: it is hidden") as caught:
        exporter.freeze([volume.export])
    assert caught.value.errno == errno.EBUSY
    sh("umount", volume.point)
    assert not volume.blocks_a_writer()


def test_a_hidden_mount_is_reached_by_an_open_file(exporter: DeviceExporter, volume: Volume) -> None:
    with (volume.point / "held").open("w"):
        sh("mount", "-t", "tmpfs", "none", volume.point)
        thaw = exporter.freeze([volume.export])
        sh("umount", volume.point)
        assert volume.blocks_a_writer()
        thaw()
        assert not volume.blocks_a_writer()


def test_lazily_unmounted_with_an_open_file(exporter: DeviceExporter, volume: Volume, tmp_path: Path) -> None:
    with (volume.point / "held").open("w") as held:
        held.write("still in memory")
        held.flush()
        sh("umount", "-l", volume.point)
        thaw = exporter.freeze([volume.export])
        assert "held" in volume.files(tmp_path / "copy")
        thaw()
        held.write("goes on")
        held.flush()
        os.fsync(held.fileno())


def test_frozen_by_somebody_counts_and_stays(exporter: DeviceExporter, volume: Volume) -> None:
    sh("fsfreeze", "-f", volume.point)
    try:
        thaw = exporter.freeze([volume.export])
        thaw()
        assert volume.blocks_a_writer()
    finally:
        sh("fsfreeze", "-u", volume.point)


def test_two_freezes_of_one_file_system(exporter: DeviceExporter, volume: Volume) -> None:
    first = exporter.freeze([volume.export])
    second = exporter.freeze([volume.export])
    first()
    assert volume.blocks_a_writer()
    second()
    assert not volume.blocks_a_writer()


def test_several_devices(exporter: DeviceExporter, volume: Volume, mapper_dir: Path) -> None:
    other = Volume(exporter, "other", mapper_dir)
    thaw = exporter.freeze([volume.export, other.export])
    assert volume.blocks_a_writer()
    assert other.blocks_a_writer()
    thaw()
    assert not volume.blocks_a_writer()
    assert not other.blocks_a_writer()


def test_when_one_cannot_be_frozen_none_is(exporter: DeviceExporter, volume: Volume, mapper_dir: Path) -> None:
    other = Volume(exporter, "other", mapper_dir)
    sh("mount", "-t", "tmpfs", "none", other.point)
    with raises(errno.EBUSY):
        exporter.freeze([volume.export, other.export])
    assert not volume.blocks_a_writer()


@pytest.mark.parametrize("through", ["file", "device"])
def test_a_foreign_loop_device_on_top(exporter: DeviceExporter, volume: Volume, tmp_path: Path, through: str) -> None:
    """A file system on a loop device whose backing lies on ours is frozen too, before ours is."""
    inner = tmp_path / "inner"
    inner.mkdir()
    if through == "file":
        below = volume.point / "image"
        sh("truncate", "-s", "8M", below)
    else:
        sh("umount", volume.point)
        below = volume.node
    loop = sh("losetup", "-f", "--show", below).strip()
    try:
        sh("mkfs.ext4", "-q", loop)
        sh("mount", loop, inner)
        (inner / "file").write_text("within")
        thaw = exporter.freeze([volume.export])
        assert is_frozen(inner)
        copy = tmp_path / "copy"
        if through == "file":
            assert volume.blocks_a_writer()
            assert "image" in volume.files(copy)
        else:
            assert "file" in volume.files(copy)
        thaw()
        assert not is_frozen(inner)
        assert not volume.blocks_a_writer()
        sh("umount", inner)
    finally:
        sh("umount", "-l", inner, check=False)
        sh("losetup", "-d", loop)


def needs(tool: str, package: str, kind: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"missing: {tool} (package {package})")
    if kind not in Path("/proc/filesystems").read_text():
        pytest.skip(f"missing: {kind} in the kernel")


def test_a_file_system_that_cannot_be_frozen_is_no_error(
    exporter: DeviceExporter, mapper_dir: Path, tmp_path: Path
) -> None:
    needs("mksquashfs", "squashfs-tools", "squashfs")
    volume = Volume(exporter, "vol", mapper_dir, mount=False)
    (tmp_path / "folder").mkdir()
    sh("mksquashfs", tmp_path / "folder", tmp_path / "image", "-quiet")
    sh("dd", f"if={tmp_path / 'image'}", f"of={volume.node}", "conv=fsync")
    sh("mount", volume.node, volume.point)
    with opened(volume.point) as fd, raises(errno.EOPNOTSUPP):
        fcntl.ioctl(fd, FIFREEZE, 0)
    exporter.freeze([volume.export])()


@pytest.mark.parametrize("which", [0, 1])
def test_btrfs_which_has_a_number_of_its_own(exporter: DeviceExporter, mapper_dir: Path, which: int) -> None:
    """Two devices make one file system, which freezes by either of them; mountinfo names one of them only."""
    needs("mkfs.btrfs", "btrfs-progs", "btrfs")
    exports = []
    for name in ("one", "two"):
        exports.append(exporter.create(name, memory(160 * MiB), None))
        exports[-1].activate(name, False)
    point = mapper_dir.parent / "mnt"
    point.mkdir()
    sh("mkfs.btrfs", "-q", "-f", "-d", "single", mapper_dir / "one", mapper_dir / "two")
    sh("btrfs", "device", "scan", mapper_dir / "one", mapper_dir / "two")
    sh("mount", mapper_dir / "one", point)
    thaw = exporter.freeze([exports[which]])
    assert is_frozen(point)
    thaw()
    assert not is_frozen(point)
    sh("umount", point)
    sh("btrfs", "device", "scan", "--forget", check=False)


def test_a_freeze_writes_through_a_device_that_waits(exporter: DeviceExporter, volume: Volume) -> None:
    (volume.point / "file").write_text("to be written by the freeze")
    volume.backend.close_gate()
    thaws = []
    freezing = threading.Thread(target=lambda: thaws.append(exporter.freeze([volume.export])))
    freezing.start()
    wait_for(lambda: volume.export._connection.parked > 0, "the freeze writes")  # type: ignore[attr-defined]
    assert not thaws
    volume.backend.open_gate()
    freezing.join(10)
    assert len(thaws) == 1
    thaws[0]()


def test_the_helper_is_killed(exporter: DeviceExporter, volume: Volume) -> None:
    thaw = exporter.freeze([volume.export])
    pid = exporter._freezer.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert volume.blocks_a_writer()
    thaw()
    assert not volume.blocks_a_writer()
    assert exporter._freezer.pid != pid
    exporter.freeze([volume.export])()


def test_the_end_thaws(exporter: DeviceExporter, volume: Volume) -> None:
    thaw = exporter.freeze([volume.export])
    exporter._freezer.close()
    assert exporter._freezer.pid is None
    assert not volume.blocks_a_writer()
    thaw()


def test_signals_to_the_group_leave_the_helper_alone(exporter: DeviceExporter, volume: Volume) -> None:
    exporter.freeze([volume.export])()
    pid = exporter._freezer.pid
    assert pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    exporter.freeze([volume.export])()
    assert exporter._freezer.pid == pid


def test_the_daemon_dies_while_frozen(tmp_path: Path) -> None:
    """SIGKILL: the helper thaws, the file system gets errors and can be unmounted."""
    script = """
import sys
from pathlib import Path
from export.backends import memory, sh
from userdm.export.exporter import DeviceExporter
base = Path(sys.argv[1])
exporter = DeviceExporter(base / "run", base / "mapper", as_root=True)
export = exporter.create("vol", memory(), None)
export.activate("vol", False)
sh("mkfs.ext4", "-q", base / "mapper/vol")
sh("mount", base / "mapper/vol", base / "mnt")
thaw = exporter.freeze([export])
print("frozen", exporter._freezer.pid, flush=True)
sys.stdin.read()
"""
    (tmp_path / "mnt").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    exporter = DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True)
    try:
        assert daemon.stdout is not None
        word, pid = daemon.stdout.readline().split()
        assert word == "frozen"
        assert is_frozen(tmp_path / "mnt")
        daemon.kill()
        daemon.wait(10)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the helper ended")
        # a frozen one would be busy; this one is only dead, or read-only since it noticed
        with opened(tmp_path / "mnt") as folder, pytest.raises(OSError) as caught:
            fcntl.ioctl(folder, FIFREEZE, 0)
        assert caught.value.errno in (errno.EIO, errno.EROFS)
    finally:
        daemon.kill()
        sh("umount", "-l", tmp_path / "mnt", check=False, timeout=20)
        wait_for(lambda: bool(exporter.clear_stale()), "the dead device is found")
        exporter.close()
