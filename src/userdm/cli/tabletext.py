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

_BLANK = " \t\n\v\f\r"
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
    """Backslashes are doubled on their way to the driver, which takes one away: an argument is what was written.

    Start and length are read as scanf reads them: a number ends where its digits do, blank or not.
    """
    records: list[Record] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(_BLANK)
        if not line or line.startswith("#"):
            continue
        start, rest = _sectors(line)
        length, rest = _sectors(rest) if start is not None else (None, "")
        kind, params = _word(rest)
        if start is None or length is None or not kind:
            raise Failed(f"Invalid format on line {number} of table {where}.")
        if len(os.fsencode(kind)) >= TYPE_LEN:
            raise Failed(f"Target type name {kind} is too long.")
        params = params.partition("#")[0].rstrip(_BLANK)
        records.append((start, length, kind, params.replace("\\", "\\\\")))
    return records


def _sectors(text: str) -> tuple[int | None, str]:
    """(the number at the front, what follows). A sign is allowed, what is too large is as large as can be."""
    text = text.lstrip(_BLANK)
    sign = text[:1] if text[:1] in ("+", "-") else ""
    end = len(sign)
    while end < len(text) and text[end] in "0123456789":
        end += 1
    digits = text[len(sign) : end]
    if not digits:
        return None, text
    value = min(int(digits[:40]), _U64)
    return -value & _U64 if sign == "-" else value, text[end:]


def _word(text: str) -> tuple[str, str]:
    """(the word at the front, what follows)."""
    text = text.lstrip(_BLANK)
    end = min((at for blank in _BLANK if (at := text.find(blank)) >= 0), default=len(text))
    return text[:end], text[end:].lstrip(_BLANK)
