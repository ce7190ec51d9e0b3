"""One device's data plane: it executes segments, and keeps those that may be kept.

Offsets and lengths are in bytes. A request is served in one of two ways.

*Hot*: the cache knows where the bytes are; no target is asked and no lock is taken.
*Cold*: the layer is asked for the whole request at once, its answer is executed, and what is cacheable kept.

Revocation (contract 2). Each serving thread owns a slot: its number is odd while a request is in the data plane,
and it is idle while the thread is asking a target or reporting to one, when it holds no mapping. Whoever changes a
mapping calls

- ``revoke`` when old answers must not be given *from now on* (a block got a new home, or lost it). Requests in
  flight may still finish on the old mapping; the pool keeps what they use out of anybody's hands;
- ``fence`` and then ``drain`` when nobody may still *act* on an old answer (snapshot, suspend, table swap):
  whoever comes out of a target afterwards sees the new fence number and starts its request over, and drain
  waits for those who hold a mapping at this moment.

The order of stores matters: a thread leaves idle first and looks at the fence after, the revoker raises the fence first
and looks at idle after. The interpreter's lock makes these stores and loads sequentially consistent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from userdm.dataplane import Parked
from userdm.dataplane.cold import Again, ColdPath, cancel
from userdm.segment import Direct, Intent, Place, Segment

DEFAULT_GRANULE = 1 << 20

# (first byte, end byte, what to add to get the storage's offset, storage.read, storage.write or None)
Entry = tuple[int, int, int, Callable[[int, memoryview], None], Callable[[int, memoryview], None] | None]


def _nothing(offset: int, view: memoryview) -> None:
    raise AssertionError("no request fits into an empty range")


NOWHERE: Entry = (0, -1, 0, _nothing, None)
"""What the hot path finds where nothing is kept: no request lies in it."""


class Layer(Protocol):
    """What a plane needs to know of the device that it serves."""

    @property
    def size(self) -> int: ...

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]: ...

    def flush(self) -> None:
        """Make everything that was completed durable; OSError, or Parked."""
        ...


class Slot:
    """Where one serving thread is; see the module's text."""

    __slots__ = ("idle", "sequence")

    def __init__(self) -> None:
        self.sequence = 0
        self.idle = False


class Plane:
    """The cache, the fence and the workers of one device."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.granule = DEFAULT_GRANULE
        self.cache: dict[int, Entry] = {}
        self.version = 0
        self.fence_number = 0
        self._slots: list[Slot] = []
        self._flushes: list[Slot] = []
        self._lock = threading.Lock()
        self._cache_lock = threading.Lock()
        """Held to change the cache, never to look: what was revoked must not come back for a moment, since whoever
        found it then would be waited for by nobody."""

    def worker(self) -> PlaneWorker:
        """A way in for one thread. Its slot goes when the worker is closed."""
        worker = PlaneWorker(self)
        with self._lock:
            self._slots.append(worker.slot)
        return worker

    def forget(self, slot: Slot) -> None:
        with self._lock:
            if slot in self._slots:
                self._slots.remove(slot)

    def revoke(self, offset: int, length: int) -> None:
        """No answer for this range is given from the cache any more; requests in flight may still finish on it."""
        with self._cache_lock:
            self.version += 1
            cache, granule = self.cache, self.granule
            first, last = offset // granule, (offset + length - 1) // granule
            if last - first > len(cache):
                self.cache = {key: entry for key, entry in cache.items() if not first <= key <= last}
                return
            for key in range(first, last + 1):
                cache.pop(key, None)

    def fence(self, granule: int | None = None) -> None:
        """Drop the whole cache and send whoever comes out of a target back to the start of its request."""
        with self._cache_lock:
            self.version += 1
            if granule is not None:
                self.granule = granule
            self.cache = {}
            self.fence_number += 1

    def drain(self, *, requests: bool) -> None:
        """Wait for who was here at the call: with ``requests`` until each request and flush has ended or is parked,
        otherwise only until none acts on a mapping that it got before."""
        with self._lock:
            slots = self._slots + self._flushes if requests else list(self._slots)
        for slot in slots:
            sequence = slot.sequence
            pause = 0.00005
            while sequence & 1 and slot.sequence == sequence and (requests or not slot.idle):
                time.sleep(pause)
                pause = min(pause * 2, 0.01)

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Around a flush of the layer, whoever asks for it: a worker of this plane, or a device above.

        It holds no mapping, so that `grace` does not wait for it: a flush may itself wait for the blocks
        that come back after the grace.
        """
        slot = Slot()
        slot.sequence = 1
        with self._lock:
            self._flushes.append(slot)
        try:
            yield
        finally:
            slot.sequence += 1
            with self._lock:
                self._flushes.remove(slot)

    def grace(self) -> Callable[[], bool]:
        """A look at who is in flight now; the result answers whether all of those have left since."""
        with self._lock:
            inside = [(slot, slot.sequence) for slot in self._slots if slot.sequence & 1]
        return lambda: all(slot.sequence != sequence for slot, sequence in inside)

    def keep(self, offset: int, segment: Direct, version: int) -> None:
        """Cache one plain answer for ``offset``, in the granules that it touches, unless it was revoked since."""
        place = segment.place
        read = place.read  # type: ignore[attr-defined]
        write = place.write if segment.writable else None  # type: ignore[attr-defined]
        delta = segment.offset - offset
        low, high = offset - segment.before, offset + segment.length + segment.after
        with self._cache_lock:
            if self.version != version:
                return
            granule, cache = self.granule, self.cache
            for key in range(offset // granule, (offset + segment.length - 1) // granule + 1):
                start, stop = max(low, key * granule), min(high, (key + 1) * granule)
                old = cache.get(key)
                if old is not None and old[0] <= start and old[1] >= stop and (old[4] is not None or write is None):
                    continue
                cache[key] = (start, stop, delta, read, write)


class PlaneWorker:
    """One thread's way into a plane; implements `userdm.dataplane.Worker`."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.slot = Slot()
        self._cold = ColdPath(self)

    def close(self) -> None:
        self.plane.forget(self.slot)

    def read(self, offset: int, view: memoryview) -> None:
        slot = self.slot
        slot.sequence += 1
        try:
            plane = self.plane
            length = len(view)
            start, end, delta, read, _ = plane.cache.get(offset // plane.granule, NOWHERE)
            if start <= offset and offset + length <= end:
                read(offset + delta, view)
            elif not self._long(offset, view, 3):
                self._cold.run(Intent.READ, offset, view, length)
        finally:
            slot.sequence += 1

    def write(self, offset: int, view: memoryview) -> None:
        slot = self.slot
        slot.sequence += 1
        try:
            plane = self.plane
            length = len(view)
            start, end, delta, _, write = plane.cache.get(offset // plane.granule, NOWHERE)
            if write is not None and start <= offset and offset + length <= end:
                write(offset + delta, view)
            elif not self._long(offset, view, 4):
                self._cold.run(Intent.WRITE, offset, view, length)
        finally:
            slot.sequence += 1

    def _long(self, offset: int, view: memoryview, method: int) -> bool:
        """Serve a request of several granules from the cache, in as few calls as the storage's layout allows."""
        plane = self.plane
        cache, granule = plane.cache, plane.granule
        end = offset + len(view)
        pieces: list[tuple[int, int, Entry]] = []
        at = offset
        while at < end:
            entry = cache.get(at // granule)
            if entry is None or entry[0] > at or entry[1] <= at or entry[method] is None:
                return False
            stop = min(end, entry[1])
            if pieces and pieces[-1][2][2] == entry[2] and pieces[-1][2][3] == entry[3]:
                pieces[-1] = (pieces[-1][0], stop, entry)
            else:
                pieces.append((at, stop, entry))
            at = stop
        for start, stop, entry in pieces:
            call = entry[3] if method == 3 else entry[4]
            assert call is not None
            call(start + entry[2], view[start - offset : stop - offset])
        return True

    def discard(self, offset: int, length: int) -> None:
        self._trim(Intent.DISCARD, offset, length)

    def zero(self, offset: int, length: int) -> None:
        self._trim(Intent.ZERO, offset, length)

    def _trim(self, intent: Intent, offset: int, length: int) -> None:
        # In steps, so that a discard of a whole volume does not keep a target busy in one go.
        step = max(self.plane.granule * 4096, 1 << 28)
        while length > 0:
            piece = min(length, step - offset % step)
            self.slot.sequence += 1
            try:
                self._cold.run(intent, offset, None, piece)
            finally:
                self.slot.sequence += 1
            offset, length = offset + piece, length - piece

    def flush(self) -> None:
        self.plane.layer.flush()

    # what the cold path asks of its worker

    def ask(self, place: Place | Layer, offset: int, length: int, intent: Intent, fence: int) -> Sequence[Segment]:
        """The place's answer; Again when a mapping was fenced meanwhile."""
        slot = self.slot
        slot.idle = True
        try:
            resolve = place.resolve
            assert resolve is not None
            segments = resolve(offset, length, intent)
        finally:
            slot.idle = False
        if self.plane.fence_number != fence:
            self.give_back(segments)
            raise Again
        return segments

    def give_back(self, segments: Sequence[Segment]) -> None:
        """Cancel segments that will not be used. Idle: a token may want the lock under which somebody drains."""
        slot = self.slot
        slot.idle = True
        try:
            cancel(segments)
        finally:
            slot.idle = False

    def report(self, segment: Segment, number: int, fence: int) -> None:
        """Tell the segment's token, if it has one, how it ended."""
        token = getattr(segment, "token", None)
        if token is None:
            return
        slot = self.slot
        slot.idle = True
        try:
            token.done(number)
        finally:
            slot.idle = False
        if number == 0 and self.plane.fence_number != fence:
            raise Again


class BlockingWorker:
    """A worker for code that simply waits while a request is parked (file objects, metadata on a mapped device).

    Also a `userdm.storage.Storage` as far as its methods go.
    """

    def __init__(self, worker: PlaneWorker) -> None:
        self._worker = worker

    def close(self) -> None:
        self._worker.close()

    def read(self, offset: int, view: memoryview) -> None:
        self._patiently(lambda: self._worker.read(offset, view))

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        whole = memoryview(view)
        self._patiently(lambda: self._worker.write(offset, whole))

    def discard(self, offset: int, length: int) -> None:
        self._patiently(lambda: self._worker.discard(offset, length))

    def zero(self, offset: int, length: int) -> None:
        self._patiently(lambda: self._worker.zero(offset, length))

    def flush(self) -> None:
        self._patiently(self._worker.flush)

    @staticmethod
    def _patiently(call: Callable[[], None]) -> None:
        while True:
            try:
                return call()
            except Parked as parked:
                parked.gate.wait()
