"""Who waits is woken, and who asks whether it is durable hears the truth."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

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


def put(thin: Thin, offset: int, data: bytes) -> None:
    BlockingWorker(thin.device.worker()).write(offset, data)


def get(thin: Thin, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    BlockingWorker(thin.device.worker()).read(offset, memoryview(buffer))
    return bytes(buffer)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[int]]:
    """The thread, and the errno with which it ended (0: well)."""
    ended: list[int] = []

    def body() -> None:
        try:
            call()
            ended.append(0)
        except OSError as error:
            ended.append(error.errno or -1)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, ended


class Metadata(MemoryStorage):
    """Memory that can fail."""

    broken = False

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        if self.broken:
            raise OSError(errno.EIO, "injected")
        super().write(offset, view)


class Data(MemoryStorage):
    """Memory on which one access can be held up."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.hold = ""
        self.error = 0
        self.inside, self.free = threading.Event(), threading.Event()

    def _meet(self, kind: str) -> None:
        if self.hold == kind:
            self.hold = ""
            self.inside.set()
            self.free.wait()
            if self.error:
                raise OSError(self.error, "injected")

    def read(self, offset: int, view: memoryview) -> None:
        self._meet("read")
        super().read(offset, view)

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self._meet("write")
        super().write(offset, view)


def test_a_flush_after_a_commit_that_failed_unseen() -> None:
    """The pool's own commit failed: whoever wrote before it must not be told that all is durable."""
    metadata = Metadata(2 << 20)
    pool = Pool(metadata, MemoryStorage(64 * BLOCK))
    thin = pool.create_thin(0, 16 * BLOCK)
    metadata.broken = True
    put(thin, 0, b"a" * BLOCK)
    for _ in range(500):
        if core(pool).readonly:
            break
        time.sleep(0.01)
    assert core(pool).readonly, "the commit that is due after a second failed"
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            BlockingWorker(thin.device.worker()).flush()
        assert caught.value.errno == errno.EIO
    pool.mapper.suspend(thin.device)  # as on the kernel, it can be taken out of service
    pool.mapper.resume(thin.device)
    pool.close()


def test_a_block_that_cannot_be_mapped_wakes_those_who_wait_for_it() -> None:
    data = Data(64 * BLOCK)
    pool = Pool(MemoryStorage(2 << 20), data)
    thin = pool.create_thin(0, 16 * BLOCK)
    data.hold = "write"
    first, one = in_thread(lambda: put(thin, 0, b"a" * BLOCK))
    assert data.inside.wait(5)
    second, two = in_thread(lambda: put(thin, 0, b"b" * BLOCK))
    second.join(0.05)
    assert second.is_alive(), "it waits for the first"
    core(pool).modes.set(Mode.READ_ONLY)
    data.free.set()
    first.join(5)
    second.join(5)
    assert one == [errno.EIO]
    assert two == [errno.EIO]
    core(pool).modes.set(Mode.WRITE)
    pool.close()


def fill(pool: Pool, thin: Thin, blocks: int) -> None:
    put(thin, 0, b"f" * (blocks * BLOCK))
    core(pool).commit()
    while core(pool)._reclaim:
        time.sleep(0.001)


def test_a_block_that_comes_back_unused_ends_the_wait_for_space() -> None:
    data = Data(4 * BLOCK)
    pool = Pool(MemoryStorage(2 << 20), data)
    thin = pool.create_thin(0, 16 * BLOCK)
    fill(pool, thin, 3)
    data.hold, data.error = "write", errno.EIO
    first, one = in_thread(lambda: put(thin, 3 * BLOCK, b"a" * BLOCK))
    assert data.inside.wait(5)
    second, two = in_thread(lambda: put(thin, 4 * BLOCK, b"b" * BLOCK))
    while core(pool).mode is not Mode.OUT_OF_DATA_SPACE:
        time.sleep(0.001)
    data.free.set()
    first.join(5)
    second.join(5)
    assert one == [errno.EIO] and two == [0]
    assert core(pool).mode is Mode.WRITE
    pool.close()


def waiting_for_space() -> tuple[Pool, Thin, threading.Thread, list[int]]:
    pool = Pool(MemoryStorage(2 << 20), MemoryStorage(2 * BLOCK))
    thin = pool.create_thin(0, 16 * BLOCK)
    fill(pool, thin, 2)
    thread, ended = in_thread(lambda: put(thin, 4 * BLOCK, b"b" * BLOCK))
    while core(pool).mode is not Mode.OUT_OF_DATA_SPACE:
        time.sleep(0.001)
    return pool, thin, thread, ended


def test_closing_a_full_pool_wakes_those_who_wait_for_space() -> None:
    pool, _, thread, ended = waiting_for_space()
    pool.close()
    thread.join(5)
    assert ended == [errno.EIO]


def test_a_reload_with_another_policy_reaches_those_who_wait_for_space() -> None:
    """As the kernel does: what was queued is tried again when the pool is resumed."""
    pool, _, thread, ended = waiting_for_space()
    pool.mapper.load(pool.device, [Line(0, 256, "thin-pool", "metadata data 128 0 1 error_if_no_space")])
    pool.mapper.resume(pool.device)
    thread.join(5)
    assert ended == [errno.ENOSPC]
    pool.close()


def test_a_transaction_that_cannot_end_wakes_those_who_wait_for_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(MemoryStorage(2 << 20), MemoryStorage(2 * BLOCK))
    thin = pool.create_thin(0, 16 * BLOCK)
    fill(pool, thin, 2)
    middle = core(pool)

    def seal() -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(middle.metadata, "seal", seal)
    BlockingWorker(thin.device.worker()).discard(0, BLOCK)
    thread, ended = in_thread(lambda: put(thin, 4 * BLOCK, b"b" * BLOCK))
    thread.join(5)
    assert ended == [errno.EIO]
    monkeypatch.undo()
    with suppress(OSError):
        pool.close()


def test_a_reader_on_its_way_never_sees_what_another_volume_writes_in_place() -> None:
    """It was sent to a block that its volume has left since; the new sole owner writes there when it has ended."""
    data = Data(64 * BLOCK)
    pool = Pool(MemoryStorage(2 << 20), data)
    base = pool.create_thin(0, 16 * BLOCK)
    put(base, 0, b"o" * BLOCK)
    snap = pool.create_snap(1, base)
    seen: list[bytes] = []
    data.hold = "read"
    reader, _ = in_thread(lambda: seen.append(get(base, 0, BLOCK)))
    assert data.inside.wait(5)
    put(base, 0, b"n" * BLOCK)
    core(pool).commit()
    put(snap, 0, b"s" * BLOCK)
    data.free.set()
    reader.join(5)
    assert seen[0] in (b"o" * BLOCK, b"n" * BLOCK)
    assert get(base, 0, BLOCK) == b"n" * BLOCK and get(snap, 0, BLOCK) == b"s" * BLOCK
    pool.close()


def test_an_origin_that_is_activated_while_its_snapshot_is_made() -> None:
    """Its writers got mappings after create_snap looked for them, and before it took the lock."""
    pool = Pool(MemoryStorage(2 << 20), MemoryStorage(64 * BLOCK))
    thin = pool.create_thin(0, 16 * BLOCK)
    put(thin, 0, b"o" * BLOCK)
    thin.close()
    middle = core(pool)
    inner = middle.lock
    active: list[Thin] = []

    class Late:
        def __enter__(self) -> None:
            if not active:
                middle.lock = inner
                active.append(pool.open_thin(0, 16 * BLOCK))
                put(active[0], 0, b"p" * BLOCK)  # its mapping is cached now
            inner.acquire()

        def __exit__(self, *_: object) -> None:
            inner.release()

    middle.lock = Late()  # type: ignore[assignment]
    middle.messages.create_snap(1, 0)
    put(active[0], 0, b"q" * BLOCK)
    assert get(pool.open_thin(1, 16 * BLOCK), 0, BLOCK) == b"p" * BLOCK
    pool.close()


def test_a_device_id_of_any_length_is_refused() -> None:
    pool = Pool(MemoryStorage(2 << 20), MemoryStorage(64 * BLOCK))
    with pytest.raises(OSError, match="device id") as caught:
        pool.mapper.load(pool.mapper.create("x"), [Line(0, 128, "thin", f"/dev/mapper/pool {'1' * 5000}")])
    assert caught.value.errno == errno.EINVAL
    pool.close()


def test_status_says_what_became_of_a_commit_that_failed() -> None:
    metadata = Metadata(2 << 20)
    pool = Pool(metadata, MemoryStorage(64 * BLOCK))
    thin = pool.create_thin(0, 16 * BLOCK)
    metadata.broken = True
    put(thin, 0, b"a" * BLOCK)
    assert pool.status().split()[4] == "ro"
    pool.close()
