"""Devices on one line: name,uuid,minor,flags,table line[,table line ...][;the next device].

A backslash takes the next character as it is. Flags are ro, rw, or nothing, which is rw.
"""

from __future__ import annotations

import sys

from userdm.api.names import check_created_name, check_uuid
from userdm.cli.options import atoi
from userdm.cli.session import Failed, Session, refused
from userdm.cli.tabletext import parse_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from userdm.api.control import Info, Record

FIELDS = ("name", "uuid", "minor", "flags", "table")
_BLANK = " \t\n\v\f\r"
_REQUIRED = "ive comma-separated fields are required for each device"


def create_concise(session: Session) -> None:
    if len(session.arguments) > 1:
        raise Failed("dmsetup create --concise takes at most one argument")
    if any(map(session.flag, ("table", "minor", "uuid", "notable", "inactive"))):
        raise Failed("--concise is incompatible with --[no]table, --minor, --uuid and --inactive.")
    from userdm.cli.create import create_device

    if session.arguments:
        text = session.arguments[0]
    else:
        text = sys.stdin.buffer.read().decode(errors="surrogateescape").partition("\0")[0]
    readonly = session.flag("readonly")
    for name, uuid, minor, flags, table in devices(text):
        if flags not in ("", "ro", "rw"):
            raise Failed(f"Invalid flags parameter '{flags}' must be 'ro' or 'rw' or empty.")
        lines = parse_table(table, "")
        create_device(
            session,
            refused(check_created_name, name, session.mode),
            refused(check_uuid, uuid, session.mode),
            lines,
            (0, atoi(minor)) if minor else None,
            readonly=readonly or flags == "ro",
        )
        # -r is for the first device, as it is with dmsetup
        readonly = False


def devices(text: str) -> Iterator[list[str]]:
    """The five fields of each device; the lines of its table with line ends between them."""
    fields: list[list[str]] = [[]]
    """Each by its letters: a table may have a hundred thousand lines."""
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == "\\":
            if at == len(text):
                raise Failed("Backslash must be followed by another character at end of string.", _parsed(fields))
            fields[-1].append(text[at])
            at += 1
        elif letter == "," and len(fields) < len(FIELDS):
            fields.append([])
            at = _skip(text, at)
        elif letter == ",":
            fields[-1].append("\n")
        elif letter == ";" or at == len(text):
            if letter != ";":
                fields[-1].append(letter)
            if len(fields) != len(FIELDS):
                raise Failed(f"F{_REQUIRED}", _parsed(fields))
            yield ["".join(field) for field in fields]
            fields = [[]]
            at = _skip(text, at)
        else:
            fields[-1].append(letter)
    if fields != [[]]:
        raise Failed(f"Incomplete entry: f{_REQUIRED}", _parsed(fields))


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _parsed(fields: list[list[str]]) -> str:
    texts = [*("".join(field) for field in fields), *["(null)"] * len(FIELDS)]
    return f"Parsed {len(fields)} fields: " + " ".join(f"{name}: {text}" for name, text in zip(FIELDS, texts))  # noqa: B905


def describe(session: Session, info: Info, records: list[Record]) -> str:
    """A device as `create --concise` takes it."""
    head = [_quote(session.shown(info.name)), _quote(session.shown(info.uuid, "UUID")), str(info.devno[1])]
    head.append("ro" if info.readonly else "rw")
    lines = [f"{start} {length} {kind} {_quote(text)}" for start, length, kind, text in records]
    return ",".join([*head, *lines])


def _quote(text: str) -> str:
    return "".join(f"\\{letter}" if letter in ",;\\" else letter for letter in text)
