"""Storage that fails under a pool: the request gets the errno, its neighbours do not, and the pool stays sound."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.check import check_file
from userdm import Pool, Thin
from userdm.dataplane.plane import BlockingWorker
from userdm.storage import MemoryStorage

BLOCK = 65536
SIZE = 16 * BLOCK


class Failing(MemoryStorage):
    """Memory on which ranges, and flushes, can be made to fail."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.bad: dict[range, int] = {}
        self.flush_error = 0
        self.write_error = 0

    def _fail(self, offset: int, length: int) -> None:
        for where, number in self.bad.items():
            if offset < where.stop and where.start < offset + length:
                raise OSError(number, "injected")

    def read(self, offset: int, view: memoryview) -> None:
        self._fail(offset, len(view))
        super().read(offset, view)

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        if self.write_error:
            raise OSError(self.write_error, "injected")
        self._fail(offset, len(view))
        super().write(offset, view)

    def flush(self) -> None:
        if self.flush_error:
            raise OSError(self.flush_error, "injected")


class Bench:
    """A pool on two devices that can fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = Failing(2 << 20)
        self.data = Failing(64 * BLOCK)
        self.pool = Pool(self.metadata, self.data)
        self.torn = False

    def put(self, thin: Thin, offset: int, data: bytes) -> int:
        """The errno, 0 for success."""
        worker = BlockingWorker(thin.device.worker())
        try:
            worker.write(offset, data)
        except OSError as error:
            return error.errno or -1
        finally:
            worker.close()
        return 0

    def get(self, thin: Thin, offset: int, length: int) -> bytes | int:
        buffer = bytearray(length)
        worker = BlockingWorker(thin.device.worker())
        try:
            worker.read(offset, memoryview(buffer))
        except OSError as error:
            return error.errno or -1
        finally:
            worker.close()
        return bytes(buffer)

    def check(self) -> None:
        image = bytearray(self.metadata.size)
        self.metadata.bad.clear()
        self.metadata.read(0, memoryview(image))
        path = self.folder / "meta.img"
        path.write_bytes(image)
        check_file(path)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Closed and checked at the end, whatever the test did to it, unless it tore the metadata itself."""
    made = Bench(tmp_path)
    yield made
    made.metadata.flush_error = made.metadata.write_error = made.data.flush_error = 0
    made.data.bad.clear()
    made.pool.close()
    if not made.torn:
        made.check()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_new_block_that_cannot_be_written(bench: Bench, number: int) -> None:
    base = bench.pool.create_thin(0, SIZE)
    assert bench.put(base, 0, b"a" * BLOCK) == 0
    bench.data.bad[range(BLOCK, 2 * BLOCK)] = number
    assert bench.put(base, BLOCK, b"b" * BLOCK) == number, "the second block of the data device"
    assert bench.get(base, 0, 2 * BLOCK) == b"a" * BLOCK + bytes(BLOCK), "nothing was mapped"
    bench.data.bad.clear()
    assert bench.put(base, BLOCK, b"c" * BLOCK) == 0
    assert bench.get(base, 0, 2 * BLOCK) == b"a" * BLOCK + b"c" * BLOCK
    assert bench.pool.status().split()[2] == "2/64", "the block that failed was given back"


def test_one_bad_block_of_a_long_write(bench: Bench) -> None:
    base = bench.pool.create_thin(0, SIZE)
    assert bench.put(base, 0, b"a" * 8 * BLOCK) == 0
    bench.data.bad[range(3 * BLOCK + 4096, 3 * BLOCK + 8192)] = errno.EIO
    assert bench.put(base, 0, b"b" * 8 * BLOCK) == errno.EIO
    for block in range(8):
        if block != 3:
            assert bench.put(base, block * BLOCK, b"c" * BLOCK) == 0
            assert bench.get(base, block * BLOCK, BLOCK) == b"c" * BLOCK
    assert bench.get(base, 3 * BLOCK, 4096) != errno.EIO, "sectors beside the bad ones"
    assert bench.get(base, 3 * BLOCK + 4096, 4096) == errno.EIO


def test_a_shared_block_that_cannot_be_read(bench: Bench) -> None:
    base = bench.pool.create_thin(0, SIZE)
    assert bench.put(base, 0, b"a" * 2 * BLOCK) == 0
    snap = bench.pool.create_snap(1, base)
    bench.data.bad[range(BLOCK)] = errno.EIO
    assert bench.put(snap, 100, b"x") == errno.EIO, "its sharing cannot be broken"
    assert bench.put(snap, BLOCK + 100, b"y") == 0
    bench.data.bad.clear()
    assert bench.put(snap, 100, b"x") == 0
    assert bench.get(base, 0, 2 * BLOCK) == b"a" * 2 * BLOCK
    assert bench.get(snap, 0, 2 * BLOCK) == (
        b"a" * 100 + b"x" + b"a" * (BLOCK - 101) + b"a" * 100 + b"y" + b"a" * (BLOCK - 101)
    )


def test_a_flush_that_fails_is_told(bench: Bench) -> None:
    base = bench.pool.create_thin(0, SIZE)
    assert bench.put(base, 0, b"a" * BLOCK) == 0
    with base.open() as file:
        file.flush()
        bench.data.flush_error = errno.EIO
        with pytest.raises(OSError) as caught:
            file.flush()
        assert caught.value.errno == errno.EIO
        bench.data.flush_error = 0
        file.flush()
    assert bench.pool.status().split()[4] == "rw", "no mapping was in the flush that failed"


@pytest.mark.parametrize("how", ["write_error", "flush_error"])
def test_metadata_that_cannot_be_written(bench: Bench, how: str) -> None:
    """The pool goes read-only; what it said is durable is there in the next opening."""
    base = bench.pool.create_thin(0, SIZE)
    assert bench.put(base, 0, b"a" * BLOCK) == 0
    with base.open() as file:
        file.flush()
    setattr(bench.metadata, how, errno.EIO)
    assert bench.put(base, BLOCK, b"b" * BLOCK) == 0
    worker = BlockingWorker(base.device.worker())
    with pytest.raises(OSError) as caught:
        worker.flush()
    assert caught.value.errno == errno.EIO
    worker.close()
    assert bench.pool.status().split()[4] == "ro"
    assert bench.get(base, 0, BLOCK) == b"a" * BLOCK, "reads go on"
    assert bench.put(base, 2 * BLOCK, b"c") == errno.EIO
    with pytest.raises(OSError):
        bench.pool.message("create_thin 5")
    bench.pool.close()
    setattr(bench.metadata, how, 0)
    bench.check()
    with Pool(bench.metadata, bench.data) as pool:
        again = pool.open_thin(0, SIZE)
        assert bench.get(again, 0, BLOCK) == b"a" * BLOCK
        # as on the kernel it asks for a check, where that could be written down
        marked = how == "flush_error"
        assert pool.status().split()[4:8:3] == (["ro", "needs_check"] if marked else ["rw", "-"])
        assert bench.put(again, 4 * BLOCK, b"d") == (errno.EIO if marked else 0)


def test_a_torn_superblock_is_refused_untouched(bench: Bench) -> None:
    bench.pool.create_thin(0, SIZE)
    bench.pool.close()
    first = bytearray(4096)
    bench.metadata.read(0, memoryview(first))
    bench.torn = True
    bench.metadata.write(200, b"torn")
    with pytest.raises(OSError) as caught:
        Pool(bench.metadata, bench.data)
    assert "checksum" in str(caught.value)
    now = bytearray(4096)
    bench.metadata.read(0, memoryview(now))
    assert now[:200] == first[:200] and now[204:] == first[204:]


def test_another_block_size_is_refused(bench: Bench) -> None:
    bench.pool.create_thin(0, SIZE)
    bench.pool.close()
    with pytest.raises(OSError) as caught:
        Pool(bench.metadata, bench.data, block_sectors=256)
    assert caught.value.errno == errno.EINVAL
    assert "256" in str(caught.value) and "128" in str(caught.value)


def test_two_pools_on_one_metadata_device(tmp_path: Path) -> None:
    with Pool(tmp_path / "m", tmp_path / "d", create=8 << 20) as pool:
        for metadata in (tmp_path / "m", tmp_path / "link"):
            if metadata.name == "link":
                metadata.symlink_to("m")
            with pytest.raises(OSError) as caught:
                Pool(metadata, MemoryStorage(8 << 20))
            assert caught.value.errno == errno.EBUSY
        pool.mapper.attached["other"] = MemoryStorage(8 << 20)
        device = pool.mapper.create("second")
        from userdm.mapper.table import Line

        with pytest.raises(OSError) as caught:
            pool.mapper.load(device, [Line(0, 16384, "thin-pool", f"{tmp_path / 'm'} other 128 0")])
        assert caught.value.errno == errno.EBUSY
        assert "already in use by a pool" in str(caught.value)
    check_file(tmp_path / "m")


def test_every_volume_is_told_of_a_flush_that_failed(bench: Bench, tmp_path: Path) -> None:
    """The kernel reports an error of write-back once; the volume that did not ask must not hear that all is well."""
    with Pool(tmp_path / "m", tmp_path / "d", create=8 << 20) as pool:
        thins = [pool.create_thin(dev_id, SIZE) for dev_id in range(2)]
        for thin in thins:
            assert bench.put(thin, 0, b"a" * BLOCK) == 0
            with thin.open() as file:
                file.flush()
        data = pool.device.live.entries[0].target.data  # type: ignore[union-attr]
        fileno = data.fileno
        data.fileno = 1 << 20  # fdatasync says EBADF, once
        first, second = (BlockingWorker(thin.device.worker()) for thin in thins)
        with pytest.raises(OSError):
            first.flush()
        data.fileno = fileno
        with pytest.raises(OSError) as caught:
            second.flush()
        assert caught.value.errno == errno.EIO
        for worker in (first, second):
            worker.flush()
            worker.close()
