"""The modes of a pool in this process: beside tests/full, with many blocks and with storage that fails."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from support.check import check_file
from userdm import Pool, Thin
from userdm.dataplane.plane import BlockingWorker
from userdm.mapper.table import Line
from userdm.storage import MemoryStorage
from userdm.targets.thin_pool import ThinPool
from userdm.thin.modes import Mode
from userdm.thin.pool import Pool as ThinPoolCore

BLOCK = 65536


def core(pool: Pool) -> ThinPoolCore:
    assert pool.device.live is not None
    target = pool.device.live.entries[0].target
    assert isinstance(target, ThinPool)
    return target.pool


def put(thin: Thin, offset: int, data: bytes = b"x") -> int:
    """The errno, 0 for success."""
    return told(thin, lambda worker: worker.write(offset, data))


def told(thin: Thin, call: Callable[[BlockingWorker], None]) -> int:
    worker = BlockingWorker(thin.device.worker())
    try:
        call(worker)
    except OSError as error:
        return error.errno or -1
    finally:
        worker.close()
    return 0


def flush(thin: Thin) -> int:
    return told(thin, lambda worker: worker.flush())


class Disk(MemoryStorage):
    """Memory that can lose its reads and writes, as a device that was pulled out."""

    gone = False
    deaf = False

    def read(self, offset: int, view: memoryview) -> None:
        if self.gone:
            raise OSError(errno.EIO, "injected")
        super().read(offset, view)

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        if self.gone or self.deaf:
            raise OSError(errno.EIO, "injected")
        super().write(offset, view)


def check(storage: MemoryStorage, folder: Path) -> None:
    image = bytearray(storage.size)
    storage.read(0, memoryview(image))
    path = folder / "image"
    path.write_bytes(image)
    check_file(path)


def test_writes_that_fill_the_metadata(tmp_path: Path) -> None:
    """Blocks far apart, each with a leaf of its own before long: EIO on the write that finds no room, and what was
    written before it is durable, readable, and deletable when the device has grown."""
    metadata = MemoryStorage(32 * 4096)
    pool = Pool(metadata, MemoryStorage(20_000 * BLOCK), features=("skip_block_zeroing",))
    thin = pool.create_thin(0, 1 << 50)
    done = 0
    while (number := put(thin, done * 1000 * BLOCK)) == 0:
        done += 1
        if done % 50 == 0:
            assert flush(thin) in (0, errno.EIO)
    assert number == errno.EIO
    assert done > 200
    assert core(pool).mode is Mode.OUT_OF_METADATA_SPACE
    fields = pool.status().split()
    assert (fields[4], fields[7]) == ("ro", "-"), "read-only, and no check is needed"
    assert flush(thin) == 0, "what was written before can be made durable"
    for block in range(0, done, 7):
        assert put(thin, block * 1000 * BLOCK) == 0, "what is mapped can be written"
    assert put(thin, 1 << 49) == errno.EIO
    with pytest.raises(OSError) as caught:
        pool.message("create_thin 1")
    assert caught.value.errno == errno.EOPNOTSUPP
    check(metadata, tmp_path)
    pool.close()
    check(metadata, tmp_path)
    larger = MemoryStorage(64 * 4096)
    image = bytearray(metadata.size)
    metadata.read(0, memoryview(image))
    larger.write(0, image)
    with Pool(larger, MemoryStorage(20_000 * BLOCK), features=("skip_block_zeroing",)) as pool:
        assert pool.status().split()[4] == "rw"
        assert pool.status().split()[2] == f"{done}/20000"
        pool.delete(0)
        assert pool.status().split()[2] == "0/20000"
    check(larger, tmp_path)


def test_the_metadata_low_water_mark_is_told_when_it_is_passed() -> None:
    pool = Pool(MemoryStorage(64 * 4096), MemoryStorage(64 * BLOCK))
    assert pool.status().split()[8] == "16"
    dev_id = 0
    while pool.device.event_nr == 0:
        assert dev_id < 64
        pool.message(f"create_thin {dev_id}")
        dev_id += 1
    assert dev_id > 20
    assert 16 <= core(pool).metadata.space.nr_free < 16 + 8, "a transaction needs a few more than are left after it"
    pool.close()


def test_metadata_that_cannot_be_written_asks_for_a_check(tmp_path: Path) -> None:
    metadata = Disk(2 << 20)
    pool = Pool(metadata, MemoryStorage(16 * BLOCK))
    thin = pool.create_thin(0, 1 << 20)
    assert put(thin, 0) == 0
    metadata.deaf = True
    before = pool.device.event_nr
    assert flush(thin) == errno.EIO
    assert pool.device.event_nr == before + 1
    fields = pool.status().split()
    assert (fields[4], fields[7]) == ("ro", "needs_check")
    metadata.deaf = False
    pool.close()
    check(metadata, tmp_path)
    with Pool(metadata, MemoryStorage(16 * BLOCK)) as pool:
        fields = pool.status().split()
        assert (fields[4], fields[7]) == ("ro", "needs_check"), "it was written down when that was possible again"
        assert pool.device.event_nr == 1, "the mode that its table asks for was not to be had"
        line = Line(0, 32 * 128, "thin-pool", "metadata data 128 0")
        pool.mapper.attached["data"] = MemoryStorage(32 * BLOCK)
        with pytest.raises(OSError) as caught:
            pool.mapper.load(pool.device, [line])
        assert caught.value.errno == errno.EBUSY, "another data device"
        with pytest.raises(OSError) as caught:
            pool.message("create_thin 5")
        assert caught.value.errno == errno.EOPNOTSUPP
    check(metadata, tmp_path)


def test_metadata_that_cannot_be_read_fail_the_pool(tmp_path: Path) -> None:
    metadata = Disk(2 << 20)
    pool = Pool(metadata, MemoryStorage(16 * BLOCK))
    thin = pool.create_thin(0, 1 << 20)
    assert put(thin, 0, b"a" * BLOCK) == 0
    assert flush(thin) == 0
    assert put(thin, BLOCK) == 0
    buffer = bytearray(512)
    assert told(thin, lambda worker: worker.read(0, memoryview(buffer))) == 0
    metadata.gone = True
    before = pool.device.event_nr
    assert flush(thin) == errno.EIO
    assert pool.device.event_nr == before + 1
    assert (pool.status(), thin.status()) == ("Fail", "Fail")
    for _ in range(2):
        assert told(thin, lambda worker: worker.read(0, memoryview(buffer))) == errno.EIO, "not even from the cache"
        assert put(thin, 0) == errno.EIO
    with pytest.raises(OSError) as caught:
        pool.mapper.load(pool.mapper.create("other"), [Line(0, 128, "thin", "/dev/mapper/pool 0")])
    assert caught.value.errno == errno.EINVAL
    pool.mapper.suspend(pool.device)
    pool.mapper.resume(pool.device)
    metadata.gone = False
    pool.close()
    check(metadata, tmp_path)
    with Pool(metadata, MemoryStorage(16 * BLOCK)) as pool:
        assert pool.status().split()[2] == "1/16"


def test_a_read_only_pool_discards_without_changing_anything() -> None:
    pool = Pool(MemoryStorage(2 << 20), MemoryStorage(16 * BLOCK))
    thin = pool.create_thin(0, 1 << 20)
    assert put(thin, 0, b"a" * 2 * BLOCK) == 0
    pool.mapper.load(pool.device, [Line(0, 16 * 128, "thin-pool", "metadata data 128 0 1 read_only")])
    pool.mapper.resume(pool.device)
    assert told(thin, lambda worker: worker.discard(0, 3 * BLOCK)) == 0
    buffer = bytearray(b"z" * 3 * BLOCK)
    assert told(thin, lambda worker: worker.read(0, memoryview(buffer))) == 0
    assert not any(buffer), "it may have been a write of zeros"
    assert thin.status() == "256 255"
    pool.close()


def test_an_error_table_takes_the_place_of_a_pool_in_use() -> None:
    metadata, data = MemoryStorage(2 << 20), MemoryStorage(16 * BLOCK)
    pool = Pool(metadata, data)
    thin = pool.create_thin(0, 1 << 20)
    assert put(thin, 0, b"a" * BLOCK) == 0
    pool.mapper.load(pool.device, [Line(0, 16 * 128, "error", "")])
    pool.mapper.resume(pool.device)
    buffer = bytearray(512)
    assert told(thin, lambda worker: worker.read(0, memoryview(buffer))) == errno.EIO
    assert put(thin, 0) == errno.EIO
    pool.close()
    with Pool(metadata, data) as pool:
        again = pool.open_thin(0, 1 << 20)
        assert told(again, lambda worker: worker.read(0, memoryview(buffer))) == 0
        assert buffer == b"a" * 512


@pytest.mark.parametrize(("limit", "expected"), [(None, "discard_passdown"), (BLOCK, "discard_passdown"), (4096, "no")])
def test_discards_are_passed_down_where_a_whole_block_can_be(limit: int | None, expected: str) -> None:
    class Data(MemoryStorage):
        max_discard = limit

    pool = Pool(MemoryStorage(2 << 20), Data(16 * BLOCK))
    assert pool.status().split()[5] == (expected if expected != "no" else "no_discard_passdown")
    assert core(pool).features.passdown is (expected != "no")
    pool.close()
