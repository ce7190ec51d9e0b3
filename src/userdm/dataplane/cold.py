"""The cold path: ask the targets, execute their segments. Offsets and lengths are in bytes.

A request is executed whole or tried again whole: every segment is harmless when it is repeated. Each token that
was handed out hears exactly once how its segment ended, whatever happens on the way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from userdm.dataplane import Parked
from userdm.segment import All, Copy, Direct, Fail, Intent, Place, Segment, Through, Wait, Zero

if TYPE_CHECKING:
    from userdm.dataplane.plane import PlaneWorker

ZEROS = memoryview(bytes(1 << 20))
CHUNK = len(ZEROS)


def cancel(segments: Sequence[Segment]) -> None:
    """Give back what the segments' tokens hold."""
    for segment in segments:
        token = getattr(segment, "token", None)
        if token is not None:
            token.done(errno.ECANCELED)
        if isinstance(segment, All):
            cancel(segment.parts)


class Again(Exception):
    """A mapping was fenced while the request was in a target's hands: start it over."""


def fill_zeros(view: memoryview) -> None:
    for start in range(0, len(view), CHUNK):
        piece = view[start : start + CHUNK]
        piece[:] = ZEROS[: len(piece)]


class ColdPath:
    """Executes one request at a time for one worker."""

    def __init__(self, worker: PlaneWorker) -> None:
        self._worker = worker
        self._fence = 0
        self._block = bytearray()

    def run(self, intent: Intent, offset: int, view: memoryview | None, length: int) -> None:
        """Ask the plane's layer about the range and do what it says. ``view`` is None for DISCARD and ZERO."""
        plane = self._worker.plane
        if length <= 0:
            return
        while True:
            self._fence = plane.fence_number
            version = plane.version
            try:
                segments = self._worker.ask(plane.layer, offset, length, intent, self._fence)
                if intent <= Intent.WRITE:
                    segments = self._flatten(segments, intent, offset, version)
                self._execute(segments, intent, view)
                return
            except Again:
                continue

    def _flatten(self, segments: Sequence[Segment], intent: Intent, offset: int, version: int) -> Sequence[Segment]:
        """Resolve plain answers down to their leaves, and keep those that are cacheable all the way down."""
        flat: list[Segment] = []
        rest = list(reversed(segments))
        try:
            while rest:
                segment = rest.pop()
                if not isinstance(segment, Direct) or segment.token is not None or segment.place.resolve is None:
                    flat.append(segment)
                    continue
                lower = self._worker.ask(segment.place, segment.offset, segment.length, intent, self._fence)
                _narrow(lower, segment)
                rest.extend(reversed(lower))
        except BaseException:
            self._worker.give_back(flat)
            self._worker.give_back(rest)
            raise
        at = offset
        for segment in flat:
            if isinstance(segment, Direct) and segment.token is None and segment.cacheable:
                self._worker.plane.keep(at, segment, version)
            at += segment.length
        return flat

    def _execute(self, segments: Sequence[Segment], intent: Intent, view: memoryview | None) -> None:
        at = 0
        for index, segment in enumerate(segments):
            part = None if view is None else view[at : at + segment.length]
            try:
                self._one(segment, intent, part)
            except BaseException as error:
                number = error.errno or errno.EIO if isinstance(error, OSError) else errno.ECANCELED
                try:
                    if not isinstance(error, _Reported):
                        self._worker.report(segment, number, self._fence)
                finally:
                    self._worker.give_back(segments[index + 1 :])
                if isinstance(error, _Reported):
                    raise error.cause from None
                raise
            at += segment.length

    def _one(self, segment: Segment, intent: Intent, view: memoryview | None) -> None:
        """Do one segment, and report its success; a failure is reported by the caller."""
        if isinstance(segment, Direct):
            self._direct(segment.place, segment.offset, segment.length, intent, view)
        elif isinstance(segment, Zero):
            if intent is Intent.READ and view is not None:
                fill_zeros(view)
        elif isinstance(segment, Fail):
            raise OSError(segment.errno, os.strerror(segment.errno))
        elif isinstance(segment, Wait):
            raise Parked(segment.gate)
        elif isinstance(segment, Copy):
            self._copy(segment, view)
        elif isinstance(segment, All):
            self._all(segment, intent, view)
        elif isinstance(segment, Through):
            segment.handler(intent, view if view is not None else memoryview(bytearray(segment.length)))
        try:
            self._worker.report(segment, 0, self._fence)
        except BaseException as error:
            raise _Reported(error) from None

    def _direct(self, place: Place, offset: int, length: int, intent: Intent, view: memoryview | None) -> None:
        if place.resolve is not None:
            self._execute(self._worker.ask(place, offset, length, intent, self._fence), intent, view)
        elif intent is Intent.READ:
            place.read(offset, view)  # type: ignore[attr-defined]
        elif intent is Intent.WRITE:
            place.write(offset, view)  # type: ignore[attr-defined]
        elif intent is Intent.DISCARD:
            place.discard(offset, length)  # type: ignore[attr-defined]
        else:
            place.zero(offset, length)  # type: ignore[attr-defined]

    def _all(self, segment: All, intent: Intent, view: memoryview | None) -> None:
        if intent is not Intent.READ:
            self._every(segment, intent, view)
            return
        failure: OSError | None = None
        for index, part in enumerate(segment.parts):
            try:
                self._execute([part], intent, view)
            except OSError as error:
                failure = error
                continue
            except BaseException:
                self._worker.give_back(segment.parts[index + 1 :])
                raise
            self._worker.give_back(segment.parts[index + 1 :])
            if self._worker.plane.fence_number != self._fence:
                raise Again
            return
        raise failure or OSError(errno.EIO, "no part to read from")

    def _every(self, segment: All, intent: Intent, view: memoryview | None) -> None:
        failure: OSError | None = None
        for index, part in enumerate(segment.parts):
            try:
                self._execute([part], intent, view)
            except OSError as error:
                failure = error
            except BaseException:
                self._worker.give_back(segment.parts[index + 1 :])
                raise
        if failure is not None:
            raise failure

    def _copy(self, segment: Copy, view: memoryview | None) -> None:
        """Compose the block in its new home: its old bytes around the write, in one write where it is small.

        Without a view (discard, write-zeroes) the written part is zeros.
        """
        tail = segment.at + segment.length
        if segment.size <= CHUNK:
            # taken out while it is in use: the destination may be a layer that has a block to compose as well
            buffer, self._block = self._block, bytearray()
            if len(buffer) != segment.size:
                buffer = bytearray(segment.size)
            block = memoryview(buffer)
            self._read_source(segment.source, 0, block[: segment.at])
            if view is None:
                fill_zeros(block[segment.at : tail])
            else:
                block[segment.at : tail] = view
            self._read_source(segment.source, tail, block[tail:])
            self._direct(segment.dest, segment.dest_offset, segment.size, Intent.WRITE, block)
            self._block = buffer
            return
        for start, end in ((0, segment.at), (tail, segment.size)):
            for at in range(start, end, CHUNK):
                block = memoryview(bytearray(min(CHUNK, end - at)))
                self._read_source(segment.source, at, block)
                self._direct(segment.dest, segment.dest_offset + at, len(block), Intent.WRITE, block)
        intent = Intent.ZERO if view is None else Intent.WRITE
        self._direct(segment.dest, segment.dest_offset + segment.at, segment.length, intent, view)

    def _read_source(self, source: Sequence[Segment], at: int, view: memoryview) -> None:
        """Read ``len(view)`` bytes from ``at`` of what the source segments describe."""
        start = 0
        for segment in source:
            low, high = max(at, start), min(at + len(view), start + segment.length)
            if low < high:
                piece = view[low - at : high - at]
                if isinstance(segment, Direct):
                    self._direct(segment.place, segment.offset + low - start, high - low, Intent.READ, piece)
                else:
                    self._one(segment, Intent.READ, piece)
            start += segment.length


def _narrow(pieces: Sequence[Segment], above: Direct) -> None:
    """A piece of a layer's answer may be kept only as long, as far and for what the answer above it may be."""
    at = 0
    for piece in pieces:
        if isinstance(piece, Direct):
            piece.writable = piece.writable and above.writable
            piece.cacheable = piece.cacheable and above.cacheable
            piece.before = min(piece.before, at + above.before)
            piece.after = min(piece.after, above.length - at - piece.length + above.after)
        at += piece.length


class _Reported(Exception):
    """The token itself failed: it has been told, it must not be told again."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause
