"""error: every read, write and discard fails with EIO.

Table line:

    <start> <length> error

Arguments are ignored, as the kernel does. It is what ``remove --force`` puts in a table's place.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from userdm.segment import Fail, Intent, Segment
from userdm.targets.base import Target


class Error(Target):
    """No storage, and no mercy."""

    name = "error"
    version = (1, 5, 0)
    syntax = ""
    wildcard = True

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        return (Fail(length, errno.EIO),)

    def table_line(self) -> str:
        return ""
