"""A place whose errors a target wants to hear of, without being asked about each request."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from userdm.segment import Direct, Fail, Intent, Place, Segment


class Watched:
    """Stands for a place in a target's answers: a leaf, or a layer whose answers lead to leaves that are watched, too.

    So its answers can be kept, and whoever acts on a kept one is heard as well. What has no such operation is no error.
    """

    def __init__(self, place: Place, failed: Callable[[], None]) -> None:
        self._place = place
        self._failed = failed
        self._below: dict[int, Watched] = {}
        self.resolve = None if place.resolve is None else self._resolve

    @property
    def size(self) -> int:
        return self._place.size

    def _resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        resolve = self._place.resolve
        assert resolve is not None
        segments = resolve(offset, length, intent)
        for segment in segments:
            if isinstance(segment, Fail):
                self._hear(segment.errno)
            elif isinstance(segment, Direct):
                segment.place = self._watch(segment.place)
        return segments

    def _watch(self, place: Place) -> Watched:
        found = self._below.get(id(place))
        if found is None:
            found = self._below[id(place)] = Watched(place, self._failed)
        return found

    def _hear(self, number: int | None) -> None:
        if number != errno.EOPNOTSUPP:
            self._failed()

    def read(self, offset: int, view: memoryview) -> None:
        try:
            self._place.read(offset, view)  # type: ignore[attr-defined]
        except OSError as error:
            self._hear(error.errno)
            raise

    def write(self, offset: int, view: memoryview) -> None:
        try:
            self._place.write(offset, view)  # type: ignore[attr-defined]
        except OSError as error:
            self._hear(error.errno)
            raise

    def discard(self, offset: int, length: int) -> None:
        try:
            self._place.discard(offset, length)  # type: ignore[attr-defined]
        except OSError as error:
            self._hear(error.errno)
            raise

    def zero(self, offset: int, length: int) -> None:
        try:
            self._place.zero(offset, length)  # type: ignore[attr-defined]
        except OSError as error:
            self._hear(error.errno)
            raise
