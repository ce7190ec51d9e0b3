"""Pools on mapped devices, and mapped devices below and above pools: suspended, swapped and stacked."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from userdm.dataplane.plane import BlockingWorker
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import MemoryStorage

BLOCK = 65536
POOL_SECTORS = 64 * 128


class Held(MemoryStorage):
    """Memory whose writes and flushes wait while a test says so."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.free = threading.Event()
        self.free.set()
        self.waiting = threading.Event()

    def _hold(self) -> None:
        if not self.free.is_set():
            self.waiting.set()
            self.free.wait()

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self._hold()
        super().write(offset, view)

    def flush(self) -> None:
        self._hold()


@pytest.fixture
def mapper() -> Iterator[Mapper]:
    mapper = Mapper()
    mapper.attached["meta"] = Held(2 << 20)
    mapper.attached["data"] = Held(64 * BLOCK)
    yield mapper
    mapper.close()


def make(mapper: Mapper, name: str, sectors: int, kind: str, params: str) -> MappedDevice:
    device = mapper.create(name)
    mapper.load(device, [Line(0, sectors, kind, params)])
    mapper.resume(device)
    return device


def stack(mapper: Mapper) -> tuple[MappedDevice, MappedDevice, MappedDevice, MappedDevice]:
    """(metadata, data, pool, thin): a pool on two linear devices."""
    meta = make(mapper, "m", 4096, "linear", "meta 0")
    data = make(mapper, "d", POOL_SECTORS, "linear", "data 0")
    pool = make(mapper, "pool", POOL_SECTORS, "thin-pool", "/dev/mapper/m /dev/mapper/d 128 0")
    mapper.message(pool, 0, "create_thin 0")
    return meta, data, pool, make(mapper, "thin", 16 * 128, "thin", "/dev/mapper/pool 0")


def put(device: MappedDevice, offset: int, data: bytes) -> None:
    BlockingWorker(device.worker()).write(offset, data)


def get(device: MappedDevice, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    BlockingWorker(device.worker()).read(offset, memoryview(buffer))
    return bytes(buffer)


def start(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("which", ["meta", "data"])
def test_suspend_below_a_pool_while_it_commits(mapper: Mapper, which: str) -> None:
    """The request above waits for the device below, so the device must not wait for the request."""
    meta, data, _, thin = stack(mapper)
    below = meta if which == "meta" else data
    storage = mapper.attached[which]
    assert isinstance(storage, Held)
    put(thin, 0, b"a" * BLOCK)
    storage.free.clear()
    flusher = start(lambda: BlockingWorker(thin.worker()).flush())
    assert storage.waiting.wait(5)
    suspender = start(lambda: mapper.suspend(below))
    while not below.suspended:
        time.sleep(0.001)
    storage.free.set()
    suspender.join(5)
    stuck = suspender.is_alive()
    if stuck:
        below._open_gate()
    else:
        mapper.resume(below)
    flusher.join(5)
    assert not stuck, "the device waits for the flush, and the flush for the device"
    assert not flusher.is_alive()


@pytest.mark.parametrize("which", ["meta", "data"])
@pytest.mark.parametrize("reload", [False, True])
def test_suspend_below_a_pool_waits_for_its_io(mapper: Mapper, which: str, reload: bool) -> None:
    """Otherwise a table could be swapped under a commit."""
    meta, data, pool, thin = stack(mapper)
    below = meta if which == "meta" else data
    storage = mapper.attached[which]
    assert isinstance(storage, Held)
    if reload:
        assert pool.live is not None
        mapper.load(pool, pool.live.lines)
        mapper.resume(pool)
    put(thin, 0, b"a" * BLOCK)
    storage.free.clear()
    flusher = start(lambda: BlockingWorker(thin.worker()).flush())
    assert storage.waiting.wait(5)
    suspender = start(lambda: mapper.suspend(below, flush=False))
    suspender.join(0.3)
    early = not suspender.is_alive()
    storage.free.set()
    suspender.join(5)
    mapper.resume(below)
    flusher.join(5)
    assert not early
    assert not flusher.is_alive()


def test_a_pool_on_a_thin_that_does_not_line_up(mapper: Mapper) -> None:
    """Blocks of the upper pool straddle blocks of the lower one, and both are composed."""
    mapper.attached["meta2"] = MemoryStorage(2 << 20)
    stack(mapper)
    make(mapper, "shift", 12 * 128, "linear", "/dev/mapper/thin 8")
    upper = make(mapper, "pool2", 12 * 128, "thin-pool", "meta2 /dev/mapper/shift 128 0")
    mapper.message(upper, 0, "create_thin 0")
    top = make(mapper, "top", 8 * 128, "thin", "/dev/mapper/pool2 0")
    text = bytes(range(1, 251)) * 200
    put(top, 8192, text)
    assert get(top, 8192, len(text)) == text
    assert get(top, 0, 8192) == bytes(8192)
    assert get(top, 8192 + len(text), BLOCK - 8192 - len(text)) == bytes(BLOCK - 8192 - len(text))


def test_a_different_pool_cannot_replace_a_pool(mapper: Mapper) -> None:
    _, _, pool, thin = stack(mapper)
    put(thin, 0, b"a" * BLOCK)
    mapper.attached["meta2"] = MemoryStorage(2 << 20)
    with pytest.raises(OSError, match="different pool") as caught:
        mapper.load(pool, [Line(0, POOL_SECTORS, "thin-pool", "meta2 /dev/mapper/d 128 0")])
    assert caught.value.errno == errno.EINVAL
    mapper.resume(pool)
    BlockingWorker(thin.worker()).flush()
    assert get(thin, 0, BLOCK) == b"a" * BLOCK


@pytest.mark.parametrize("reader", ["thin", "linear"])
def test_a_read_only_device_is_not_written_through_what_was_read(mapper: Mapper, reader: str) -> None:
    _, _, _, thin = stack(mapper)
    put(thin, 0, b"a" * BLOCK)
    assert thin.live is not None
    mapper.load(thin, thin.live.lines, readonly=True)
    mapper.resume(thin)
    device = thin if reader == "thin" else make(mapper, "top", 128, "linear", "/dev/mapper/thin 0")
    assert get(device, 0, 512) == b"a" * 512
    with pytest.raises(OSError) as caught:
        put(device, 0, b"x" * 512)
    assert caught.value.errno == errno.EROFS
    assert get(device, 0, 512) == b"a" * 512
