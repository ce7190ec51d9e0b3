"""Storage that misbehaves: power cuts and errors, for any test that can hand out its own storage."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from userdm.storage import MemoryStorage, Storage

SECTOR = 512


@dataclass(frozen=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True)
class Flush:
    pass


Event = Write | Flush


class CrashStorage(MemoryStorage):
    """Memory that records what is done to it, and can say what a power cut at any moment may leave of it.

    The medium's promises: a sector is written whole or not at all, and order holds only across a flush.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.events: list[Event] = []
        self.before_event: Callable[[], None] | None = None
        """Called before each write and flush: a place to do something else in the middle of a commit."""
        self._start = bytes(size)

    def _record(self, event: Event) -> None:
        if self.before_event is not None:
            self.before_event()
        self.events.append(event)

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self._record(Write(offset, bytes(view)))
        super().write(offset, view)

    def zero(self, offset: int, length: int) -> None:
        self._record(Write(offset, bytes(length)))
        super().zero(offset, length)

    def flush(self) -> None:
        self._record(Flush())

    def checkpoint(self) -> None:
        """Forget what was recorded: everything up to now is durable."""
        self._start = bytes(self._bytes)
        self.events.clear()

    def cuts(self, rng: random.Random) -> Iterator[tuple[int, MemoryStorage]]:
        """For each moment, (how many events came before the cut, an image that the cut may leave)."""
        durable = bytearray(self._start)
        pending: list[Write] = []
        for at in range(len(self.events) + 1):
            yield at, _image(durable, pending, rng)
            if at == len(self.events):
                return
            event = self.events[at]
            if isinstance(event, Write):
                pending.append(event)
                continue
            for write in pending:
                durable[write.offset : write.offset + len(write.data)] = write.data
            pending.clear()


def _image(durable: bytearray, pending: list[Write], rng: random.Random) -> MemoryStorage:
    """The durable bytes with some of the writes that came after: each kept, lost, or torn at sectors."""
    image = MemoryStorage(len(durable))
    image.write(0, durable)
    for write in rng.sample(pending, len(pending)):
        fate = rng.choice(("kept", "lost", "torn"))
        for at in range(0, len(write.data), SECTOR):
            if fate == "kept" or (fate == "torn" and rng.random() < 0.5):
                image.write(write.offset + at, write.data[at : at + SECTOR])
    return image


@dataclass
class Fault:
    """Operations of these kinds on the bytes begin to end fail, after ``skip`` of them went well."""

    errno: int
    begin: int = 0
    end: int = 1 << 62
    kinds: frozenset[str] = frozenset({"read", "write", "flush"})
    skip: int = 0


class FailingStorage:
    """Another storage, with errors where a test wants them."""

    resolve: None = None

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.faults: list[Fault] = []

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def readonly(self) -> bool:
        return self.inner.readonly

    def _meet(self, kind: str, offset: int, length: int) -> None:
        for fault in self.faults:
            if kind in fault.kinds and offset < fault.end and offset + length > fault.begin:
                if fault.skip == 0:
                    raise OSError(fault.errno, f"injected: {kind} of bytes {offset}+{length}")
                fault.skip -= 1

    def read(self, offset: int, view: memoryview) -> None:
        self._meet("read", offset, len(view))
        self.inner.read(offset, view)

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self._meet("write", offset, len(view))
        self.inner.write(offset, view)

    def flush(self) -> None:
        self._meet("flush", 0, 1 << 62)
        self.inner.flush()

    def discard(self, offset: int, length: int) -> None:
        self._meet("discard", offset, length)
        self.inner.discard(offset, length)

    def zero(self, offset: int, length: int) -> None:
        self._meet("zero", offset, length)
        self.inner.zero(offset, length)

    def close(self) -> None:
        self.inner.close()
