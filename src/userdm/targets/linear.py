"""linear: a range of sectors of another device.

Table line:

    <start> <length> linear <device> <offset>

``device`` is a path or major:minor, ``offset`` the sector of it at which the target's sector 0 lies.
It has no status and takes no messages. Kernel document: Documentation/admin-guide/device-mapper/linear.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from userdm.segment import SECTOR, Direct, Intent, Place, Segment
from userdm.targets.base import MAX_SECTOR, Context, Target, check_area, count, number


class Linear(Target):
    """One line, one range."""

    name = "linear"
    version = (1, 4, 0)
    syntax = "<device> <offset>"

    def __init__(self, context: Context, arguments: Sequence[str]) -> None:
        super().__init__(context, arguments)
        count(arguments, 2, 2, self.syntax)
        self.start = number("offset", arguments[1], 0, MAX_SECTOR)
        self.place = context.open("device", arguments[0])
        check_area(context, "device", arguments[0], self.place, self.start, self.length)
        self._shift = self.start * SECTOR

    @property
    def places(self) -> Sequence[Place]:
        return (self.place,)

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        after = self.length * SECTOR - offset - length
        return (Direct(length, self.place, offset + self._shift, before=offset, after=after),)

    def above(self, place: Place, offset: int, length: int) -> Iterable[tuple[int, int]]:
        low = max(offset - self._shift, 0)
        high = min(offset + length - self._shift, self.length * SECTOR)
        return [(low, high - low)] if low < high else []

    def table_line(self) -> str:
        return f"{self.context.describe(self.place)} {self.start}"

    def measure_line(self) -> str:
        version = "%d.%d.%d" % self.version
        device = f"device_name={self.context.describe(self.place)},start={self.start}"
        return f"target_name={self.name},target_version={version},{device};"
