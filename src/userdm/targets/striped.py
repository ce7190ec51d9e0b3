"""striped: chunks dealt out over several devices in turn (RAID 0).

Table line:

    <start> <length> striped <number of stripes> <chunk size> <device> <offset> [<device> <offset> ...]

``chunk size`` and ``offset`` are in sectors. The length is a multiple of number times chunk size.
Status: the number of stripes, each device, and for each an A (alive), or a D when a request to it has failed.
The first errors of each stripe are events.
Kernel document: Documentation/admin-guide/device-mapper/striped.rst.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Sequence

from userdm.segment import SECTOR, Direct, Intent, Place, Segment
from userdm.targets.base import MAX_SECTOR, Context, Target, TargetError, check_area, count, number
from userdm.targets.watched import Watched

MOST_EVENTS = 15
"""DM_IO_ERROR_THRESHOLD of dm-stripe.c: from that error on a stripe makes no event."""


class Striped(Target):
    """Chunk ``n`` lies on stripe ``n % stripes``, at chunk ``n // stripes`` of it."""

    name = "striped"
    version = (1, 6, 0)
    syntax = "<number of stripes> <chunk size> <device> <offset> [<device> <offset> ...]"

    def __init__(self, context: Context, arguments: Sequence[str]) -> None:
        super().__init__(context, arguments)
        count(arguments, 2, None, self.syntax)
        stripes = number("number of stripes", arguments[0], 1, 0xFFFFFFFF)
        self.chunk = number("chunk size", arguments[1], 1, 0xFFFFFFFF)
        if self.length % stripes:
            raise TargetError(errno.EINVAL, f"length {self.length}: must be a multiple of number of stripes {stripes}")
        width = self.length // stripes
        if width % self.chunk:
            raise TargetError(
                errno.EINVAL,
                f"length {self.length}: its share of a stripe, {width}, must be a multiple of "
                f"chunk size {self.chunk}",
            )
        if len(arguments) != 2 + 2 * stripes:
            raise TargetError(
                errno.EINVAL,
                f"{len(arguments) - 2} arguments after chunk size, must be {2 * stripes}: "
                "a device and an offset for each stripe",
            )
        self.stripes: list[tuple[Place, int]] = []
        self._watched: list[Watched] = []
        self._errors = [0] * stripes
        self._errors_lock = threading.Lock()
        for index in range(stripes):
            device, offset = arguments[2 + 2 * index : 4 + 2 * index]
            start = number(f"offset of stripe {index}", offset, 0, MAX_SECTOR)
            place = context.open(f"device of stripe {index}", device)
            check_area(context, f"device of stripe {index}", device, place, start, width)
            self.stripes.append((place, start))
            self._watched.append(Watched(place, self._hears(index)))
        self._chunk_bytes = self.chunk * SECTOR

    def _hears(self, index: int) -> Callable[[], None]:
        def failed() -> None:
            with self._errors_lock:
                self._errors[index] += 1
                event = self._errors[index] < MOST_EVENTS
            if event:
                self.context.host.event()

        return failed

    @property
    def places(self) -> Sequence[Place]:
        return tuple(reversed(dict.fromkeys(place for place, _ in self.stripes)))

    @property
    def granule(self) -> int:
        return min(self._chunk_bytes, super().granule)

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        out: list[Segment] = []
        chunk_bytes, stripes, watched = self._chunk_bytes, self.stripes, self._watched
        while length > 0:
            chunk, within = divmod(offset, chunk_bytes)
            row, column = divmod(chunk, len(stripes))
            _, start = stripes[column]
            piece = min(length, chunk_bytes - within)
            where = start * SECTOR + row * chunk_bytes + within
            out.append(Direct(piece, watched[column], where, before=within, after=chunk_bytes - within - piece))
            offset, length = offset + piece, length - piece
        return out

    def above(self, place: Place, offset: int, length: int) -> Iterable[tuple[int, int]]:
        # Whole rows: a little more than needed, and right for any number of stripes on one device.
        row_bytes = self._chunk_bytes * len(self.stripes)
        for stripe, start in self.stripes:
            if stripe is place:
                low = max(offset - start * SECTOR, 0) // self._chunk_bytes * row_bytes
                high = -(-(offset + length - start * SECTOR) // self._chunk_bytes) * row_bytes
                high = min(high, self.length * SECTOR)
                if low < high:
                    yield low, high - low

    def table_line(self) -> str:
        stripes = " ".join(f"{self.context.describe(place)} {start}" for place, start in self.stripes)
        return f"{len(self.stripes)} {self.chunk} {stripes}"

    def status_line(self, *, noflush: bool = False) -> str:
        devices = " ".join(self.context.describe(place) for place, _ in self.stripes)
        return f"{len(self.stripes)} {devices} 1 {self._states()}"

    def _states(self) -> str:
        return "".join("D" if errors else "A" for errors in self._errors)

    def measure_line(self) -> str:
        version = "%d.%d.%d" % self.version
        stripes = "".join(
            f",stripe_{index}_device_name={self.context.describe(place)},stripe_{index}_physical_start={start},"
            f"stripe_{index}_status={state}"
            for index, ((place, start), state) in enumerate(zip(self.stripes, self._states(), strict=True))
        )
        what = f"stripes={len(self.stripes)},chunk_size={self.chunk}"
        return f"target_name={self.name},target_version={version},{what}{stripes};"
