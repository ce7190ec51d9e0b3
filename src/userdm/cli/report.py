"""A report: rows and columns as -o, -O, -S and their friends want them (info -c, splitname, stats)."""

from __future__ import annotations

import os
import sys

from userdm.cli.fields import HELP, SELECTED, STRING, Field, Row, find_field, section_fields
from userdm.cli.session import Failed, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Device
    from userdm.cli.deptree import DepTree
    from userdm.cli.selection import Selection
    from userdm.cli.session import Session

DEFAULT = "name,major,minor,attr,open,segments,events,uuid"


class Report:
    """What the options ask for, and the rows so far. Refused when they make no sense."""

    def __init__(self, session: Session, default: str = DEFAULT, *, section: str = "") -> None:
        """``section``: what the word "all" stands for, when not for everything."""
        options = session.options
        self._session = session
        self.fields = _fields(options.value("options"), default, section)
        self._keys = _keys(options.value("sort") or "")
        text = options.value("select")
        self.selection = self._selection(text) if text is not None else None
        sections = {field.section for field in self._used()}
        self._tree: DepTree | None = None
        self._wants_tree = "tree" in sections
        self._splits = "splitname" in sections
        self._wants_open = any(field.name == "open" for field in self._used())
        self.empty = bool(sections & {"stats", "region"}) or HELP in self.fields or text in ("help", "?")
        """No device has what it shows."""
        self.rows: list[Row] = []
        self.headings = not options.flag("noheadings") and HELP not in self.fields
        self._aligned = not (
            options.flag("noheadings") or options.flag("nameprefixes") or options.value("separator") is not None
        )
        separator = options.value("separator")
        self._between = separator if separator is not None else ":" if options.flag("noheadings") else " "

    def _selection(self, text: str) -> Selection | None:
        from userdm.cli import selection

        if text.lower() == "help" or text == "?":
            _list(sections=False)
            sys.stderr.write(selection.USAGE)
            return None
        return selection.Selection(text)

    def _used(self) -> list[Field]:
        wanted = self.selection.fields if self.selection is not None else []
        return [*self.fields, *(field for field, _ in self._keys), *wanted]

    def plant(self) -> None:
        """Look at how the devices stand on each other, if that is asked for."""
        if self._wants_tree and self._tree is None:
            from userdm.cli.deptree import DepTree

            self._tree = DepTree(self._session)

    def row(self, device: Device) -> Row:
        info = self._session.info(device, open_count=self._wants_open)
        if info is None:
            raise Failed("Device does not exist.")
        row = Row(self._session, info, self._tree)
        if self._splits:
            subsystem, hyphen, _ = row.uuid.partition("-")
            row.split(subsystem if hyphen else "", row.name)
        return row

    def wants(self, row: Row) -> bool:
        selection = self.selection
        if selection is None:
            return True
        wanted = selection.wants(row.get)
        row.selected = wanted
        return wanted

    def add(self, row: Row) -> None:
        """With the column "selected", the others are shown as well."""
        if not self.empty and (self.wants(row) or SELECTED in self.fields):
            for field in self._used():
                row.get(field)
            self.rows.append(row)

    # ---- the output -------------------------------------------------------------------------------------------

    def output(self) -> None:
        """Write the rows, and forget them."""
        rows, self.rows = self.rows, []
        if not rows:
            return
        for field, backwards in reversed(self._keys):
            if field.kind == STRING:
                rows.sort(key=lambda row, field=field: os.fsencode(str(row.get(field))), reverse=backwards)  # type: ignore[misc]
            else:
                rows.sort(key=lambda row, field=field: row.get(field), reverse=backwards)  # type: ignore[misc]
        cells = [[str(row.get(field)) for field in self.fields] for row in rows]
        if self._session.flag("rows"):
            lines = self._turned(cells)
        else:
            lines = self._straight(cells)
        self._session.write("".join(f"{line}\n" for line in lines))

    def _straight(self, cells: list[list[str]]) -> list[str]:
        lines = []
        widths = [max(field.width, *(_length(row[at]) for row in cells)) for at, field in enumerate(self.fields)]
        if self.headings:
            heads = [field.heading for field in self.fields]
            if self._aligned:
                heads = [head[:width].ljust(width) for head, width in zip(heads, widths, strict=True)]
            lines.append(self._session.style.heading(self._between.join(heads)))
        for row in cells:
            if self._aligned:
                row = [_pad(field, cell, width) for field, cell, width in zip(self.fields, row, widths, strict=True)]
            lines.append(self._between.join(map(self._labelled, self.fields, row)))
        return lines

    def _turned(self, cells: list[list[str]]) -> list[str]:
        """A line for each column. Their alignment is that of the columns."""
        lines = []
        for at, field in enumerate(self.fields):
            values = [self._labelled(field, row[at]) for row in cells]
            lines.append(self._between.join([field.heading, *values] if self.headings else values))
        return lines

    def _labelled(self, field: Field, cell: str) -> str:
        if not self._session.flag("nameprefixes"):
            return cell
        quote = "" if self._session.flag("unquoted") else "'"
        return f"DM_{field.name.upper()}={quote}{cell}{quote}"


def _length(cell: str) -> int:
    return len(cell) if cell.isascii() else len(os.fsencode(cell))


def _pad(field: Field, cell: str, width: int) -> str:
    blank = " " * (width - _length(cell))
    return cell + blank if field.kind == STRING else blank + cell


def _list(*, sections: bool = True) -> None:
    from userdm.cli.fields import list_fields

    sys.stderr.write(list_fields(sections=sections))


def _words(text: str) -> list[str]:
    """Between commas, of which many are as good as one, except at the end."""
    words = [word for word in text.split(",") if word]
    return [*words, ""] if text.endswith(",") else words


def _fields(option: str | None, default: str, section: str) -> list[Field]:
    text = default if option is None else f"{default},{option[1:]}" if option.startswith("+") else option
    fields: list[Field] = []
    for word in _words(text):
        field = find_field(word) if word else None
        several = [field] if field is not None else section_fields(section + word if word == "all" else word)
        if not several:
            raise Refused(f"Unrecognised field: {word}", fields=True)
        fields += several
    if HELP in fields:
        _list()
    return fields


def _keys(text: str) -> list[tuple[Field, bool]]:
    """(field, backwards) of each key of -O."""
    keys: list[tuple[Field, bool]] = []
    for word in _words(text):
        name = word[1:] if word[:1] in ("+", "-") else word
        field = find_field(name) if name else None
        if field is None:
            missing = ["dm_report: Missing sort field name"] if word and not name else []
            raise Refused(*missing, f"dm_report: Unrecognised field: {word}", fields=True)
        if any(field is known for known, _ in keys):
            sys.stderr.write(f"dm_report: Ignoring duplicate sort field: {field.name}.\n")
            continue
        keys.append((field, word.startswith("-")))
    return keys


def report_devices(session: Session) -> None:
    """info -c."""
    report = Report(session)
    repeated(session, report, lambda: _ask(session, report))


def _ask(session: Session, report: Report) -> None:
    report.plant()
    for device, _ in session.each():
        report.add(report.row(device))


def repeated(session: Session, report: Report, fill: object) -> None:
    """As often as --count says, --interval seconds apart; what there is before a failure is shown."""
    from userdm.cli.options import atoi

    count, interval = session.options.value("count"), session.options.value("interval")
    left = atoi(count) if count is not None else 0 if interval is not None else 1
    while True:
        try:
            fill()  # type: ignore[operator]
        finally:
            report.output()
        left -= 1
        if left == 0:
            return
        from time import sleep

        session.write("\n")
        sys.stdout.flush()
        sleep(atoi(interval or "1"))


def selected(session: Session) -> list[str]:
    """The names of the devices that -S wants, of those that the command is for."""
    report = Report(session)
    report.plant()
    names = []
    for device, _ in session.each():
        row = report.row(device)
        if not report.empty and report.wants(row):
            names.append(row.name)
    return names
