"""A table as text: a line each, "start length type arguments", # begins a comment."""

from __future__ import annotations

import os
import sys

from userdm.abi.dm_ioctl import TYPE_LEN
from userdm.cli.session import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from userdm.api.control import Record
    from userdm.cli.session import Session

_U64 = (1 << 64) - 1


def read_table(session: Session, files: Sequence[str]) -> list[Record]:
    """The table of --table, of the file that is named, or of the standard input."""
    text = session.options.value("table")
    if text is not None:
        return parse_table(text, "")
    if not files:
        return parse_table(sys.stdin.buffer.read().decode(errors="surrogateescape"), "on stdin")
    try:
        with open(files[0], encoding="utf-8", errors="surrogateescape") as file:
            return parse_table(file.read(), files[0])
    except OSError:
        raise Failed(f"Couldn't open '{files[0]}' for reading.") from None


def parse_table(text: str, where: str) -> list[Record]:
    """Backslashes are doubled on their way to the driver, which takes one away: an argument is what was written."""
    records: list[Record] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split(None, 3)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3:
            raise _invalid(number, where)
        start, length = _sectors(words[0]), _sectors(words[1])
        if start is None or length is None:
            raise _invalid(number, where)
        if len(os.fsencode(words[2])) >= TYPE_LEN:
            raise Failed(f"Target type name {words[2]} is too long.")
        params = words[3].partition("#")[0].rstrip() if len(words) > 3 else ""
        records.append((start, length, words[2], params.replace("\\", "\\\\")))
    return records


def _invalid(number: int, where: str) -> Failed:
    return Failed(f"Invalid format on line {number} of table {where}.")


def _sectors(word: str) -> int | None:
    """As scanf reads %llu: a sign is allowed, what is too large is as large as can be."""
    digits = word[1:] if word[0] in "+-" else word
    if not (digits.isascii() and digits.isdigit()):
        return None
    value = min(int(digits[:40]), _U64)
    return -value & _U64 if word[0] == "-" else value
