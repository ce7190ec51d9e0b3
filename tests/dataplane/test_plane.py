"""The moments between an answer and its use: what another thread may do there, done there on purpose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from userdm.dataplane.plane import Plane
from userdm.segment import Copy, Direct, Intent, Segment, Zero
from userdm.storage import MemoryStorage

BLOCK = 65536


class Script:
    """A layer that answers as a test says."""

    size = 4 * BLOCK

    def __init__(self, answer: Callable[[int, int, Intent], Sequence[Segment]]) -> None:
        self.resolve = answer

    def flush(self) -> None:
        pass


def test_an_answer_that_was_revoked_is_never_kept() -> None:
    """Not for a moment: another thread would find it, and nobody waits for that one."""
    old, new = MemoryStorage(BLOCK), MemoryStorage(BLOCK)
    new.write(0, b"n" * BLOCK)

    def answer(offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        plane.revoke(0, BLOCK)  # somebody moves the block as soon as we have answered
        return [Direct(length, old, offset)]

    class Watched(dict[int, object]):
        def __setitem__(self, key: int, value: object) -> None:
            kept.append(key)
            super().__setitem__(key, value)

    kept: list[int] = []
    plane = Plane(Script(answer))
    plane.cache = Watched()  # type: ignore[assignment]
    plane.worker().read(0, memoryview(bytearray(512)))
    assert kept == []


def test_giving_back_while_somebody_drains_under_the_same_lock() -> None:
    """A snapshot fences and drains with the pool's lock held; a token that is given back wants that lock."""
    lock = threading.Lock()
    storage = MemoryStorage(4 * BLOCK)
    giving_back, drained = threading.Event(), threading.Event()
    ended: list[int] = []

    class Token:
        def done(self, number: int) -> None:
            giving_back.set()
            with lock:
                ended.append(number)

    def snapshot() -> None:
        plane.fence()
        giving_back.wait(5)
        plane.drain(requests=False)
        lock.release()
        drained.set()

    def answer(offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        if ended:
            return [Direct(length, storage, offset)]
        lock.acquire()
        fence = plane.fence_number
        threading.Thread(target=snapshot, daemon=True).start()
        while plane.fence_number == fence:
            pass
        return [Direct(length, storage, offset, cacheable=False, token=Token())]

    plane = Plane(Script(answer))
    writer = threading.Thread(target=lambda: plane.worker().write(0, memoryview(b"x" * 512)), daemon=True)
    writer.start()
    assert drained.wait(5), "the drain waits for the writer, and the writer for the lock"
    writer.join(5)
    assert not writer.is_alive() and len(ended) == 1 and ended[0] != 0


def test_a_copy_into_a_place_that_copies() -> None:
    """The upper block is composed in a buffer, from which the lower layer composes blocks of the same size."""
    low = MemoryStorage(4 * BLOCK)

    def lower(offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        out: list[Segment] = []
        while length:
            block, at = divmod(offset, BLOCK)
            piece = min(length, BLOCK - at)
            if intent is Intent.READ:
                out.append(Direct(piece, low, offset, cacheable=False))
            else:
                out.append(Copy(piece, at, BLOCK, [Zero(BLOCK)], low, block * BLOCK))
            offset, length = offset + piece, length - piece
        return out

    class Layer:
        size = 4 * BLOCK
        resolve = staticmethod(lower)

    def upper(offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        return [Copy(length, offset, BLOCK, [Zero(BLOCK)], Layer(), 4096)]

    text = bytes(range(1, 251)) * 200
    Plane(Script(upper)).worker().write(8192, memoryview(text))
    buffer = bytearray(2 * BLOCK)
    low.read(0, memoryview(buffer))
    expected = bytearray(2 * BLOCK)
    expected[4096 + 8192 : 4096 + 8192 + len(text)] = text
    assert buffer == expected
