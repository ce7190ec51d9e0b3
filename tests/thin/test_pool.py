"""A pool in use: provisioning, snapshots of snapshots, discards, space, suspension."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from userdm import Pool, Thin
from userdm.dataplane.plane import BlockingWorker

BLOCK = 65536
MakePool = Callable[..., Pool]


def get(thin: Thin, offset: int, length: int) -> bytes:
    with thin.open() as file:
        file.seek(offset)
        return file.read(length) or b""


def put(thin: Thin, offset: int, data: bytes) -> None:
    with thin.open() as file:
        file.seek(offset)
        assert file.write(data) == len(data)


def trim(thin: Thin, offset: int, length: int) -> None:
    with thin.open() as file:
        file.discard(offset, length)


def used(pool: Pool) -> int:
    """Data blocks in use."""
    return int(pool.status().split()[2].split("/")[0])


def test_ten_lines(make_pool: MakePool) -> None:
    pool = make_pool()
    base = pool.create_thin(0, 1 << 30)
    put(base, 5, b"hello")
    snap = pool.create_snap(1, base)
    put(snap, 5, b"HELLO")
    again = pool.create_snap(2, snap)
    put(again, 6, b"u")
    assert [get(thin, 4, 7) for thin in (base, snap, again)] == [b"\0hello\0", b"\0HELLO\0", b"\0HuLLO\0"]
    assert used(pool) == 3
    pool.close()
    pool = make_pool()
    for dev_id, expected in enumerate((b"\0hello\0", b"\0HELLO\0", b"\0HuLLO\0")):
        assert get(pool.open_thin(dev_id, 1 << 30), 4, 7) == expected


def test_holes_read_as_zeros_and_cost_nothing(make_pool: MakePool) -> None:
    pool = make_pool()
    base = pool.create_thin(0, 1 << 30)
    assert get(base, (1 << 30) - 100, 100) == bytes(100)
    assert get(base, BLOCK - 10, 20) == bytes(20)
    assert base.status() == "0 -"
    put(base, 3 * BLOCK, b"x")
    assert base.status() == f"128 {4 * 128 - 1}"
    assert used(pool) == 1


@pytest.mark.parametrize("features", [(), ("skip_block_zeroing",)])
def test_zeroing_of_new_blocks(make_pool: MakePool, tmp_path: Path, features: tuple[str, ...]) -> None:
    pool = make_pool(features=features)
    (tmp_path / "data.img").write_bytes(b"\xee" * (8 << 20))
    base = pool.create_thin(0, 1 << 20)
    put(base, 100, b"new")
    stale = b"\xee" if features else b"\0"
    assert get(base, 0, BLOCK) == stale * 100 + b"new" + stale * (BLOCK - 103)


def test_a_whole_block_write_copies_nothing(make_pool: MakePool) -> None:
    """The shared block is not even read: its storage fails every read."""
    pool = make_pool()
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"a" * 4 * BLOCK)
    snap = pool.create_snap(1, base)
    reads: list[int] = []
    data = pool.device.live.entries[0].target.data  # type: ignore[union-attr]
    real = data.read

    def spy(offset: int, view: memoryview) -> None:
        reads.append(offset)
        real(offset, view)

    data.read = spy
    put(snap, BLOCK, b"b" * 2 * BLOCK)
    assert reads == []
    put(snap, 0, b"b")
    assert reads, "a part write has to copy"
    data.read = real
    assert get(base, 0, 4 * BLOCK) == b"a" * 4 * BLOCK
    assert get(snap, 0, 4 * BLOCK) == b"b" + b"a" * (BLOCK - 1) + b"b" * 2 * BLOCK + b"a" * BLOCK


def test_the_last_sharer_writes_in_place(make_pool: MakePool) -> None:
    pool = make_pool()
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"a" * 4 * BLOCK)
    snap = pool.create_snap(1, base)
    snap.close()
    pool.delete(1)
    before = used(pool)
    put(base, 10, b"in place")
    assert used(pool) == before == 4
    snap = pool.create_snap(2, base)
    put(base, 10, b"of its o")
    assert used(pool) == 5
    assert get(snap, 10, 8) == b"in place"


def test_discard_gives_whole_blocks_back_and_zeros_the_rest(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"a" * 8 * BLOCK)
    snap = pool.create_snap(1, base)
    trim(base, BLOCK + 100, 3 * BLOCK)
    assert get(base, 0, 8 * BLOCK) == b"a" * (BLOCK + 100) + bytes(3 * BLOCK) + b"a" * (4 * BLOCK - 100)
    assert get(snap, 0, 8 * BLOCK) == b"a" * 8 * BLOCK
    snap.close()
    pool.delete(1)
    assert base.status().split()[0] == str(6 * 128)
    trim(base, 0, 1 << 20)
    assert get(base, 0, 1 << 20) == bytes(1 << 20)
    assert base.status() == "0 -"
    assert used(pool) == 0
    pool.close()
    assert (tmp_path / "data.img").stat().st_blocks * 512 < 8 * BLOCK, "discards were passed down to the file"


def test_ids_and_errors(make_pool: MakePool) -> None:
    pool = make_pool()
    base = pool.create_thin(7, 1 << 20)
    for text, number in (
        ("create_thin 7", errno.EEXIST),
        ("create_snap 7 7", errno.EEXIST),
        ("create_snap 8 9", errno.ENODATA),
        ("delete 9", errno.ENODATA),
        ("delete 7", errno.EBUSY),
        ("create_thin 16777216", errno.EINVAL),
        ("create_thin -1", errno.EINVAL),
        ("create_thin", errno.EINVAL),
        ("set_transaction_id 5 6", errno.EINVAL),
        ("release_metadata_snap", errno.EINVAL),
        ("make_coffee", errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            pool.message(text)
        assert caught.value.errno == number, text
    with pytest.raises(OSError) as caught:
        pool.open_thin(9, 1 << 20)
    assert caught.value.errno == errno.ENODATA
    pool.message("set_transaction_id 0 12")
    assert pool.status().split()[0] == "12"
    base.close()
    pool.delete(7)
    pool.create_thin(7, 1 << 20)


def test_full_pool_with_errors(make_pool: MakePool) -> None:
    pool = make_pool(size=4 * BLOCK, features=("error_if_no_space",))
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"a" * 4 * BLOCK)
    with pytest.raises(OSError) as caught:
        put(base, 5 * BLOCK, b"b")
    assert caught.value.errno == errno.ENOSPC
    assert "out_of_data_space" in pool.status()
    assert get(base, 0, 6 * BLOCK) == b"a" * 4 * BLOCK + bytes(2 * BLOCK)
    put(base, 0, b"c" * BLOCK)
    trim(base, 0, BLOCK)
    assert " rw " in pool.status(), "the commit brings the block back"
    put(base, 5 * BLOCK, b"b")
    assert get(base, 5 * BLOCK, 1) == b"b"


def test_full_pool_waits_for_a_discard(make_pool: MakePool) -> None:
    pool = make_pool(size=4 * BLOCK)
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"a" * 4 * BLOCK)
    thread = threading.Thread(target=put, args=(base, 5 * BLOCK, b"b"))
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive(), "queue_if_no_space: the write waits"
    assert get(base, 0, 1) == b"a", "reads go on"
    trim(base, 0, BLOCK)
    thread.join(10)
    assert not thread.is_alive()
    assert get(base, 5 * BLOCK, 1) == b"b"


def test_suspended_pool_holds_its_volumes(make_pool: MakePool) -> None:
    pool = make_pool()
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"a")
    pool.mapper.suspend(pool.device)
    thread = threading.Thread(target=put, args=(base, 0, b"b"))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    pool.mapper.resume(pool.device)
    thread.join(10)
    assert get(base, 0, 1) == b"b"


def test_the_pool_device_is_its_data(make_pool: MakePool) -> None:
    pool = make_pool()
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"z" * BLOCK)
    from userdm.api.pool import DeviceFile

    with DeviceFile(pool.device) as file:
        assert b"z" * BLOCK in (file.read(8 << 20) or b"")


def test_external_origin(make_pool: MakePool) -> None:
    from userdm.mapper.table import Line
    from userdm.storage import MemoryStorage

    pool = make_pool()
    origin = MemoryStorage(BLOCK + 1024)
    origin.write(0, b"o" * (BLOCK + 1024))
    pool.mapper.attached["origin"] = origin
    pool.message("create_thin 0")
    device = pool.mapper.create("with-origin")
    pool.mapper.load(device, [Line(0, 1024, "thin", "/dev/mapper/pool 0 origin")])
    pool.mapper.resume(device)
    thin = Thin(pool, 0, device)
    whole = bytearray(b"o" * (BLOCK + 1024) + bytes(512 * 1024 - BLOCK - 1024))
    assert get(thin, 0, 512 * 1024) == whole
    for offset, data in ((10, b"x"), (BLOCK + 1000, b"y" * 100), (3 * BLOCK, b"z")):
        put(thin, offset, data)
        whole[offset : offset + len(data)] = data
    assert get(thin, 0, 512 * 1024) == whole
    trim(thin, 0, 512)
    whole[:512] = bytes(512)
    trim(thin, BLOCK, BLOCK)
    whole[BLOCK : 2 * BLOCK] = bytes(BLOCK)
    assert get(thin, 0, 512 * 1024) == whole
    raw = bytearray(origin.size)
    origin.read(0, memoryview(raw))
    assert raw == b"o" * origin.size, "the origin is never written"


def test_snapshots_under_concurrent_writers(make_pool: MakePool) -> None:
    """Each writer counts up in a slot of its own; a snapshot never shows a slot going back, and none is torn."""
    pool = make_pool(size=64 << 20)
    base = pool.create_thin(0, 4 << 20)
    stop = threading.Event()
    counts = [0] * 3

    def writer(index: int) -> None:
        with base.open() as file:
            while not stop.is_set():
                counts[index] += 1
                file.seek(index * 100 * 4096)
                file.write(counts[index].to_bytes(8, "little") * 512)

    threads = [threading.Thread(target=writer, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    try:
        for dev_id in range(1, 30):
            floor = [count - 1 for count in counts]
            pool.message(f"create_snap {dev_id} 0")
            roof = list(counts)
            with pool.open_thin(dev_id, 4 << 20) as snap:
                seen = [get(snap, index * 100 * 4096, 4096) for index in range(3)]
                time.sleep(0.01)
                assert seen == [get(snap, index * 100 * 4096, 4096) for index in range(3)], "a snapshot never changes"
            for index, raw in enumerate(seen):
                values = {raw[at : at + 8] for at in range(0, 4096, 8)}
                assert len(values) == 1, "a 4 KiB write is in the snapshot whole or not at all"
                assert floor[index] <= int.from_bytes(values.pop(), "little") <= roof[index]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_two_writers_into_the_same_new_block(make_pool: MakePool) -> None:
    """Whoever comes second waits for the first one's block, and neither loses its bytes."""
    pool = make_pool(size=64 << 20)
    base = pool.create_thin(0, 32 << 20)
    errors: list[BaseException] = []

    def writer(index: int) -> None:
        try:
            with base.open() as file:
                for block in range(300):
                    file.seek(block * BLOCK + index * 4096)
                    file.write(bytes([index + 1]) * 4096)
        except BaseException as error:
            errors.append(error)

    for _ in range(2):
        threads = [threading.Thread(target=writer, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        expected = b"".join(bytes([index + 1]) * 4096 for index in range(4)) + bytes(BLOCK - 4 * 4096)
        for block in range(300):
            assert get(base, block * BLOCK, BLOCK) == expected
        assert used(pool) <= 600
        pool.message(f"create_snap {100 + _} 0")


def test_nothing_is_reached_past_the_end_of_a_volume(make_pool: MakePool) -> None:
    """Neither by what the cache keeps of the last block, nor into the next line of a table."""
    from userdm.mapper.table import Line

    pool = make_pool()
    whole = pool.create_thin(0, 2 * BLOCK)
    put(whole, 0, b"a" * 2 * BLOCK)
    whole.close()
    part = pool.open_thin(0, BLOCK + 512)
    assert get(part, BLOCK, 4096) == b"a" * 512
    assert get(part, BLOCK, 4096) == b"a" * 512
    worker = part.device.worker()
    with pytest.raises(OSError):
        worker.read(BLOCK, memoryview(bytearray(1024)))
    worker.close()
    part.close()
    device = pool.mapper.create("two-lines")
    pool.mapper.load(device, [Line(0, 129, "thin", "/dev/mapper/pool 0"), Line(129, 127, "zero", "")])
    pool.mapper.resume(device)
    thin = Thin(pool, 0, device)
    for _ in range(2):
        assert get(thin, BLOCK, 512) == b"a" * 512
        assert get(thin, BLOCK, 1024) == b"a" * 512 + bytes(512)
        assert get(thin, BLOCK + 512, 512) == bytes(512)


def test_a_pool_grows(make_pool: MakePool, tmp_path: Path) -> None:
    """Both files made larger, and the table loaded again over them, under a volume that is in use."""
    from userdm.mapper.table import Line

    pool = make_pool(size=4 * BLOCK)
    base = pool.create_thin(0, 1 << 20)
    put(base, 0, b"a" * 4 * BLOCK)
    waiting = threading.Thread(target=put, args=(base, 4 * BLOCK, b"b" * 4 * BLOCK))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    before = pool.status().split()[1]
    for name, size in (("data.img", 16 * BLOCK), ("meta.img", 4 << 20)):
        os.truncate(tmp_path / name, size)
    line = Line(0, 16 * 128, "thin-pool", f"{tmp_path / 'meta.img'} {tmp_path / 'data.img'} 128 0")
    pool.mapper.load(pool.device, [line])
    pool.mapper.resume(pool.device)
    waiting.join(10)
    assert not waiting.is_alive(), "the write that waited for space goes on"
    assert get(base, 0, 8 * BLOCK) == b"a" * 4 * BLOCK + b"b" * 4 * BLOCK
    assert (before.split("/")[1], pool.status().split()[1].split("/")[1]) == ("512", "1024")
    assert pool.status().split()[2] == "8/16"
    pool.mapper.load(pool.device, [Line(0, 8 * 128, *(line.type, line.params))])
    with pytest.raises(OSError) as caught:
        pool.mapper.resume(pool.device)
    assert caught.value.errno == errno.EINVAL
    pool.mapper.load(pool.device, [line])
    pool.mapper.resume(pool.device)
    assert get(base, 0, BLOCK) == b"a" * BLOCK


@pytest.mark.parametrize("size", [0, -512, 1001])
def test_a_size_that_cannot_be_makes_nothing(make_pool: MakePool, size: int) -> None:
    pool = make_pool()
    with pytest.raises(ValueError, match=f"size {size}: must be a multiple of 512"):
        pool.create_thin(0, size)
    pool.create_thin(0, 512)


def test_a_block_that_is_written_in_place_is_not_moved_by_others(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose snapshots are gone, a block is written where it is, also past the target; nobody may copy it meanwhile."""
    pool = make_pool()
    thin = pool.create_thin(0, BLOCK)
    put(thin, 0, b"a" * BLOCK)
    pool.create_snap(1, thin).close()
    pool.delete(1)
    assert pool.device.live is not None
    engine = pool.device.live.entries[0].target.pool  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while engine.settling and time.monotonic() < deadline:
        time.sleep(0.001)
    where = engine.volumes[0].metadata.lookup(0)[0]
    first, second = BlockingWorker(thin.device.worker()), BlockingWorker(thin.device.worker())
    first.write(0, b"b" * 512)
    # a commit is being settled: for a moment, whether a block is ours alone cannot be told
    monkeypatch.setattr(type(engine), "settling", True)
    thin.device.plane.fence()
    second.write(512, b"c" * 512)
    assert engine.volumes[0].metadata.lookup(0) == (where, False)
    monkeypatch.undo()
    assert get(thin, 0, BLOCK) == b"b" * 512 + b"c" * 512 + b"a" * (BLOCK - 1024)
