"""zero: reads as zeros, and swallows what is written.

Table line:

    <start> <length> zero

Kernel document: Documentation/admin-guide/device-mapper/zero.rst.
"""

from __future__ import annotations

from collections.abc import Sequence

from userdm.segment import Intent, Segment
from userdm.segment import Zero as ZeroSegment
from userdm.targets.base import Context, Target, count


class Zero(Target):
    """No storage at all."""

    name = "zero"
    version = (1, 1, 0)
    syntax = ""

    def __init__(self, context: Context, arguments: Sequence[str]) -> None:
        super().__init__(context, arguments)
        count(arguments, 0, 0, self.syntax)

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        return (ZeroSegment(length),)

    def table_line(self) -> str:
        return ""
