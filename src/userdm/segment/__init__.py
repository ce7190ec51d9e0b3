"""The vocabulary between targets and the data plane: contract 2 of the house.

A target is asked about a range of bytes and an intent, and answers in *segments* that cover the range in
order. It moves no byte itself. All offsets and lengths here are in **bytes**; tables and the control
protocol count in sectors of 512 bytes.

A place is anything that a segment can point at: a *leaf* (storage, whose ``resolve`` is None) or a *layer*
(another mapped device, whose ``resolve`` answers in segments of its own). The data plane resolves
until only leaves are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

SECTOR = 512
"""Bytes in a sector, always."""


class Intent(IntEnum):
    """What the asker is about to do with a range."""

    READ = 0
    WRITE = 1
    DISCARD = 2
    """The range must read as zeros afterwards; its space may be given back."""
    ZERO = 3
    """The range must read as zeros afterwards; its space, where it has some, is kept."""


class Place(Protocol):
    """Something with positioned bytes. ``size`` is in bytes."""

    @property
    def size(self) -> int: ...

    @property
    def resolve(self) -> Callable[[int, int, Intent], Sequence[Segment]] | None:
        """None for a leaf; for a layer, the function that maps (offset, length, intent) to segments."""
        ...


class Token(Protocol):
    """Carried by a segment: the target learns how the work on it ended.

    ``done`` is called exactly once for each segment that was handed out with the token: with 0 after the
    bytes are in the storage's hands, with an errno when they are not, with ECANCELED when the segment was not
    used at all (the data plane asks again). It may raise OSError, which becomes the request's error.
    """

    def done(self, errno: int) -> None: ...


class Gate:
    """What a parked request waits for. It opens once; ``then`` runs at once if it is open already."""

    __slots__ = ("_event", "_callbacks", "_lock")

    def __init__(self) -> None:
        import threading

        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    def open(self) -> None:
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def is_open(self) -> bool:
        return self._event.is_set()

    def then(self, callback: Callable[[], None]) -> None:
        """Call back when the gate opens. The callback must neither block nor raise."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the gate opens; False when ``timeout`` seconds passed first."""
        return self._event.wait(timeout)


@dataclass(slots=True)
class Direct:
    """These bytes are at ``offset`` of ``place``.

    ``cacheable``: the answer holds until the target revokes it. ``writable``: the answer may serve later writes
    too (an answer to READ that is cacheable and not writable serves reads alone). ``before`` and ``after``: the same
    holds for so many bytes on either side of the range that was asked about, so that neighbours need not ask.
    """

    length: int
    place: Place
    offset: int
    cacheable: bool = True
    writable: bool = True
    token: Token | None = None
    before: int = 0
    after: int = 0


@dataclass(slots=True)
class Zero:
    """The range reads as zeros; a write-zeroes or discard of it has nothing to do."""

    length: int


@dataclass(slots=True)
class Fail:
    """The range fails with this errno."""

    length: int
    errno: int


@dataclass(slots=True)
class All:
    """Do the same to each of ``parts`` (each covers the whole length); complete when all have."""

    length: int
    parts: Sequence[Segment]


@dataclass(slots=True)
class Copy:
    """A write that covers part of a block which must first be brought to a new home.

    The block's ``size`` bytes come from ``source`` (a Direct, or a Zero) and go to ``dest`` at ``dest_offset``;
    the write itself covers ``length`` bytes from ``at`` in the block. The data plane may merge the two.
    ``token.done(0)`` after both: only then does the target map the new home.
    """

    length: int
    at: int
    size: int
    source: Sequence[Segment]
    dest: Place
    dest_offset: int
    token: Token | None = None


@dataclass(slots=True)
class Wait:
    """Parked until the gate opens; then ask again."""

    length: int
    gate: Gate


@dataclass(slots=True)
class Through:
    """The target must see the bytes: ``handler(intent, view)`` gets the whole piece, in one buffer.

    For READ the handler fills the view; for WRITE it consumes it. It raises OSError for an error.
    """

    length: int
    handler: Callable[[Intent, memoryview], Any]


Segment = Direct | Zero | Fail | All | Copy | Wait | Through
