"""A device as a loop block device, for root: data, size, errors, discard, flush, file systems."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from userdm.export.exporter import DeviceExporter
from userdm.export.loop import LOOP_CTL_REMOVE, LoopDevice

from .backends import Awkward, MiB, failing_at, memory, raises, sh, wait_for

pytestmark = pytest.mark.root


def direct(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size)


def test_what_is_written_is_read(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    exporter.create("vol", backend, None).activate("vol", False)
    node = os.open(mapper_dir / "vol", os.O_RDWR | os.O_DIRECT)
    try:
        for size in (512, 1024, 4096, 65536, MiB, 3 * MiB):
            data = direct(size)
            data.write(os.urandom(size))
            assert os.pwritev(node, [data], 512) == size
            assert backend.storage._bytes[512 : 512 + size] == data[:]
            back = direct(size)
            assert os.preadv(node, [back], 512) == size
            assert back[:] == data[:]
        os.fsync(node)
        assert backend.calls[-1][0] == "flush"
    finally:
        os.close(node)


def test_what_the_kernel_says_of_it(exporter: DeviceExporter, mapper_dir: Path) -> None:
    export = exporter.create("vol", Awkward(), None)
    assert sh("blockdev", "--getsize64", export.node).strip() == "0"  # type: ignore[union-attr]
    assert not (mapper_dir / "vol").is_symlink()
    export.activate("vol", False)
    info = (mapper_dir / "vol").stat()
    assert (os.major(info.st_rdev), os.minor(info.st_rdev)) == export.devno
    assert export.devno[0] == 7
    assert export.devno[1] >= 16384
    assert info.st_mode & 0o777 == 0o660
    queue = Path(f"/sys/dev/block/{export.devno[0]}:{export.devno[1]}/queue")
    assert (queue / "logical_block_size").read_text() == "512\n"
    assert (queue / "discard_granularity").read_text() == "65536\n"
    assert (queue / "write_cache").read_text() == "write back\n"
    assert (queue.parent / "loop/dio").read_text() == "1\n"
    assert sh("blockdev", "--getsize64", mapper_dir / "vol").strip() == str(32 * MiB)


def test_the_size_follows_the_backend(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward(32 * MiB)
    export = exporter.create("vol", backend, None)
    export.activate("vol", False)
    with (mapper_dir / "vol").open("rb") as held:
        for size in (64 * MiB, 16 * MiB):
            backend.storage = Awkward(size).storage
            backend.size = size
            export.activate("vol", False)
            assert os.lseek(held.fileno(), 0, os.SEEK_END) == size


def test_readonly(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    backend.readonly = True
    export = exporter.create("vol", backend, None)
    export.activate("vol", True)
    node = os.open(mapper_dir / "vol", os.O_RDWR)
    with raises(errno.EPERM):
        os.pwrite(node, b"no", 0)
    os.close(node)
    assert sh("blockdev", "--getro", mapper_dir / "vol").strip() == "1"
    backend.readonly = False
    export.activate("vol", False)
    (mapper_dir / "vol").write_bytes(b"now")
    assert backend.storage._bytes[:3] == b"now"


def test_discard_and_zero_out(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    exporter.create("vol", backend, None).activate("vol", False)
    sh("blkdiscard", "-o", "65536", "-l", "131072", mapper_dir / "vol")
    assert ("discard", 65536, 131072) in backend.calls
    sh("blkdiscard", "-z", "-o", "4096", "-l", "8192", mapper_dir / "vol")
    assert ("zero", 4096, 8192) in backend.calls


def test_a_file_system(exporter: DeviceExporter, mapper_dir: Path, tmp_path: Path) -> None:
    exporter.create("vol", memory(), None).activate("vol", False)
    node, point = mapper_dir / "vol", tmp_path / "mnt"
    point.mkdir()
    sh("mkfs.ext4", "-q", node)
    sh("mount", node, point)
    data = os.urandom(5 * MiB)
    (point / "data").write_bytes(data)
    sh("umount", point)
    sh("e2fsck", "-fn", node)
    sh("mount", "-o", "discard", node, point)
    assert (point / "data").read_bytes() == data
    (point / "data").unlink()
    sh("fstrim", point)
    sh("umount", point)
    sh("e2fsck", "-fn", node)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_hits_its_request_alone(exporter: DeviceExporter, mapper_dir: Path, number: int) -> None:
    backend = Awkward()
    backend.errors = {what: failing_at(range(4096, 8192), number) for what in ("read", "write")}
    exporter.create("vol", backend, None).activate("vol", False)
    node = os.open(mapper_dir / "vol", os.O_RDWR | os.O_DIRECT)
    block = direct(4096)
    try:
        with raises(number):
            os.pwritev(node, [block], 4096)
        with raises(number):
            os.preadv(node, [block], 4096)
        for offset in (0, 8192):
            assert os.pwritev(node, [block], offset) == 4096
            assert os.preadv(node, [block], offset) == 4096
        backend.errors.clear()
        assert os.pwritev(node, [block], 4096) == 4096
    finally:
        os.close(node)


def test_a_bug_in_the_backend_is_an_io_error(
    exporter: DeviceExporter, mapper_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Awkward()
    backend.errors = {"write": lambda offset: ZeroDivisionError("a bug") if offset == 0 else None}
    exporter.create("vol", backend, None).activate("vol", False)
    node = os.open(mapper_dir / "vol", os.O_RDWR | os.O_DIRECT)
    try:
        for _ in range(5):  # more often than there are threads
            with raises(errno.EIO):
                os.pwritev(node, [direct(4096)], 0)
        assert os.pwritev(node, [direct(4096)], 4096) == 4096
    finally:
        os.close(node)
    assert "ZeroDivisionError: a bug" in caplog.text


def test_a_flush_that_fails_is_told(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    exporter.create("vol", backend, None).activate("vol", False)
    with (mapper_dir / "vol").open("r+b", buffering=0) as node:
        node.write(b"x" * 4096)
        backend.errors = {"flush": lambda offset: OSError(errno.EIO, "no")}
        with raises(errno.EIO):
            os.fsync(node.fileno())
        backend.errors.clear()
        os.fsync(node.fileno())


def test_a_stalled_device_does_not_slow_another(exporter: DeviceExporter, mapper_dir: Path) -> None:
    stalled = Awkward()
    exporter.create("stalled", stalled, None).activate("stalled", False)
    exporter.create("other", memory(), None).activate("other", False)
    gate = stalled.close_gate()
    # more writers than a connection has threads, and than its share of requests
    writing = "import os,sys,threading\n" "fd = os.open(sys.argv[1], os.O_RDWR)\n" "os.pwrite(fd, bytes(16 << 20), 0)\n"
    script = writing + "os.fsync(fd)\n"
    writer = subprocess.Popen([sys.executable, "-c", script, str(mapper_dir / "stalled")])
    try:
        wait_for(lambda: len(stalled.calls) > 20, "requests of the stalled device pile up")
        sh("dd", "if=/dev/zero", f"of={mapper_dir / 'other'}", "bs=1M", "count=16", "oflag=direct", timeout=10)
        sh("dd", f"if={mapper_dir / 'other'}", "of=/dev/null", "bs=4k", "count=1000", "iflag=direct", timeout=10)
        assert writer.poll() is None
    finally:
        stalled.gate = None
        gate.open()
        assert writer.wait(20) == 0


def test_fio_verifies(exporter: DeviceExporter, mapper_dir: Path) -> None:
    exporter.create("vol", memory(), None).activate("vol", False)
    sh(
        "fio", "--name=verify", f"--filename={mapper_dir / 'vol'}", "--direct=1", "--ioengine=libaio", "--iodepth=16",
        "--rw=randwrite", "--bs=512-64k", "--size=16m", "--verify=crc32c", "--do_verify=1", "--fsync=32",
        "--verify_state_save=0",
    )  # fmt: skip


@pytest.mark.parametrize("wanted", [False, True], ids=["any number", "this number"])
def test_a_number_that_somebody_takes_before_it_is_bound(
    exporter: DeviceExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """Whoever looks for a free loop device (losetup -f) may find ours: it is his, and he keeps it. We took it away."""
    his = tmp_path / "his"
    his.write_bytes(bytes(MiB))
    taken: list[str] = []
    bind = LoopDevice.bind

    def late(loop: LoopDevice, file: int, tag: str) -> None:
        if not taken:
            taken.append(loop.node)
            sh("losetup", loop.node, his)
        bind(loop, file, tag)

    monkeypatch.setattr(LoopDevice, "bind", late)
    try:
        if wanted:
            free = next(
                number for number in range(20_000, 40_000, 16) if not Path(f"/sys/dev/block/7:{number}").exists()
            )
            with raises(errno.EBUSY):
                exporter.create("vol", memory(), free)
        else:
            export = exporter.create("vol", memory(), None)
            assert str(export.node) not in taken  # type: ignore[union-attr]
            export.remove()
        assert str(his) in sh("losetup", "--noheadings", "-O", "BACK-FILE", taken[0])
    finally:
        sh("losetup", "-d", taken[0])
        index = int(taken[0].removeprefix("/dev/loop"))
        with open("/dev/loop-control", "rb") as control:
            fcntl.ioctl(control, LOOP_CTL_REMOVE, index)


def test_a_number_that_somebody_removes_before_it_is_bound(
    exporter: DeviceExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another daemon that clears up after one that died with a device of this number."""
    removed: list[str] = []
    bind = LoopDevice.bind

    def late(loop: LoopDevice, file: int, tag: str) -> None:
        if not removed:
            removed.append(loop.node)
            loop.delete(1)
        bind(loop, file, tag)

    monkeypatch.setattr(LoopDevice, "bind", late)
    export = exporter.create("vol", memory(), None)
    assert len(removed) == 1
    export.activate("vol", False)
    export.remove()
