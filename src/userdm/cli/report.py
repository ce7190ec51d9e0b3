"""info -c: a row for each device, columns as -o names them."""

from __future__ import annotations

import sys

from userdm.api.control import Device
from userdm.api.names import mangle, unmangle
from userdm.cli.blockdev import kernel_name, read_ahead
from userdm.cli.session import Failed, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from userdm.api.control import Info

    Value = str | int

DEFAULT = "name,major,minor,attr,open,segments,events,uuid"


class Row:
    """One device, and what has to be asked for beyond its info."""

    def __init__(self, session: Session, info: Info) -> None:
        self.session = session
        self.info = info
        self.devno = "%d:%d" % info.devno

    def deps(self) -> list[tuple[int, int]]:
        device = Device(self.info.name)
        return self.session.ioctl("deps", device, self.session.control.deps, device)[1]

    def users(self) -> list[tuple[str, tuple[int, int]]]:
        """(name, number) of the devices whose live tables name this one."""
        control = self.session.control
        return [(name, devno) for name, devno in control.devices() if self.info.devno in control.deps(Device(name))[1]]

    def names_of(self, numbers: list[tuple[int, int]]) -> list[str]:
        """The names of those that are mapped devices."""
        mapped = {devno: unmangle(name) for name, devno in self.session.control.devices()}
        return [mapped[number] for number in numbers if number in mapped]

    def lvm(self, part: int) -> str:
        """Volume group, logical volume and layer of an LVM device's name: parts at single hyphens."""
        if not self.info.uuid.startswith("LVM-"):
            return ""
        parts = self.info.name.replace("--", "\0").split("-", 2)
        return parts[part].replace("\0", "-") if part < len(parts) else ""


def _attr(row: Row) -> str:
    info = row.info
    letters = ("L" if info.live else "-", "I" if info.inactive else "-", "s" if info.suspended else "-")
    return "".join(letters) + ("r" if info.readonly else "w")


def _tables(row: Row) -> str:
    info = row.info
    return "Both" if info.live and info.inactive else "Live" if info.live else "Inactive" if info.inactive else "None"


def _numbers(numbers: list[tuple[int, int]]) -> str:
    return ",".join("%d:%d" % number for number in numbers)


class Field:
    """A column; negative widths are of columns that are aligned to the right."""

    def __init__(self, heading: str, width: int, value: Callable[[Row], Value], text: str) -> None:
        self.heading = heading
        self.width = abs(width)
        self.right = width < 0
        self.value = value
        self.text = text


NAME = {
    "name": Field("Name", 16, lambda row: unmangle(row.info.name), "Name of mapped device."),
    "mangled_name": Field("MangledName", 16, lambda row: mangle(row.info.name), "Mangled name."),
    "unmangled_name": Field("UnmangledName", 16, lambda row: unmangle(row.info.name), "Unmangled name."),
    "uuid": Field("UUID", 32, lambda row: unmangle(row.info.uuid), "Unique (optional) identifier."),
    "mangled_uuid": Field("MangledUUID", 32, lambda row: mangle(row.info.uuid), "Mangled identifier."),
    "unmangled_uuid": Field("UnmangledUUID", 32, lambda row: unmangle(row.info.uuid), "Unmangled identifier."),
    "read_ahead": Field("RAhead", -6, lambda row: read_ahead(row.info) or 0, "Read ahead in sectors."),
}
INFO = {
    "blkdevname": Field(
        "BlkDevName", 16, lambda row: kernel_name(row.info.devno) or row.info.name, "Name of block device."
    ),
    "attr": Field("Stat", 4, _attr, "(L)ive, (I)nactive, (s)uspended, (r)ead-only, read-(w)rite."),
    "tables_loaded": Field("Tables", 6, _tables, "Which of the table slots are filled."),
    "suspended": Field("Suspended", 9, lambda row: "Suspended" if row.info.suspended else "Active", "Or active."),
    "readonly": Field("Read-only", 9, lambda row: "Read-only" if row.info.readonly else "Writeable", "Or writeable."),
    "devno": Field("DevNo", 5, lambda row: row.devno, "Device major and minor numbers."),
    "major": Field("Maj", -3, lambda row: row.info.devno[0], "Block device major number."),
    "minor": Field("Min", -3, lambda row: row.info.devno[1], "Block device minor number."),
    "open": Field("Open", -4, lambda row: row.info.open_count, "Number of openers."),
    "segments": Field("Targ", -4, lambda row: row.info.target_count, "Number of lines of the live table."),
    "events": Field("Event", -6, lambda row: row.info.event_nr, "Number of most recent event."),
}
DEPS = {
    "device_count": Field("#Devs", -5, lambda row: len(row.deps()), "Number of devices used by this one."),
    "devs_used": Field(
        "DevNamesUsed", 16, lambda row: ",".join(row.names_of(row.deps())), "Mapped devices used by this one."
    ),
    "devnos_used": Field("DevNosUsed", 16, lambda row: _numbers(row.deps()), "Devices used by this one."),
    "blkdevs_used": Field(
        "BlkDevNamesUsed",
        16,
        lambda row: ",".join(kernel_name(number) or "%d:%d" % number for number in row.deps()),
        "Block devices used by this one.",
    ),
    "device_ref_count": Field("#Refs", -5, lambda row: len(row.users()), "Mapped devices using this one."),
    "names_using_dev": Field(
        "RefNames", 8, lambda row: ",".join(unmangle(name) for name, _ in row.users()), "Their names."
    ),
    "devnos_using_dev": Field(
        "RefDevNos", 9, lambda row: _numbers([devno for _, devno in row.users()]), "Their numbers."
    ),
}
SPLIT = {
    "subsystem": Field("Subsys", 6, lambda row: row.info.uuid[:3] if row.lvm(0) else "", "Whose device it is."),
    "vg_name": Field("VG", 4, lambda row: row.lvm(0), "LVM volume group."),
    "lv_name": Field("LV", 4, lambda row: row.lvm(1), "LVM logical volume."),
    "lv_layer": Field("LVLayer", 7, lambda row: row.lvm(2), "LVM layer."),
}
SECTIONS = {"name": NAME, "info": INFO, "deps": DEPS, "splitname": SPLIT}
FIELDS: dict[str, Field] = {name: field for section in SECTIONS.values() for name, field in section.items()}


def report(session: Session) -> None:
    fields = _chosen(session.options.value("options"))
    order = _sort_keys(session.options.value("sort"))
    rows = []
    for device, _ in session.each():
        info = session.info(device)
        if info is None:
            raise Failed("Device does not exist.")
        rows.append(Row(session, info))
    if not rows:
        return
    for name, backwards in reversed(order):
        rows.sort(key=FIELDS[name].value, reverse=backwards)
    cells = [[str(field.value(row)) for field in fields] for row in rows]
    headings = not session.flag("noheadings")
    separator = session.options.value("separator")
    if headings and separator is None:
        _write_aligned(session, fields, cells)
        return
    if headings:
        cells.insert(0, [field.heading for field in fields])
    between = ":" if separator is None else separator
    session.write("".join(f"{between.join(row)}\n" for row in cells))


def _write_aligned(session: Session, fields: list[Field], cells: list[list[str]]) -> None:
    widths = [
        max(field.width, len(field.heading), *(len(row[column]) for row in cells))
        for column, field in enumerate(fields)
    ]
    session.write(" ".join(f.heading.ljust(width) for f, width in zip(fields, widths, strict=True)) + "\n")
    for row in cells:
        padded = (
            cell.rjust(width) if field.right else cell.ljust(width)
            for field, cell, width in zip(fields, row, widths, strict=True)
        )
        session.write(" ".join(padded) + "\n")


def _chosen(option: str | None) -> list[Field]:
    text = DEFAULT if option is None else f"{DEFAULT},{option[1:]}" if option.startswith("+") else option
    fields: list[Field] = []
    for name in text.split(","):
        section = SECTIONS.get(name.removesuffix("_all")) if name.endswith("_all") else None
        if section is not None:
            fields += section.values()
        else:
            fields.append(FIELDS[_known(name)])
    return fields


def _sort_keys(option: str | None) -> list[tuple[str, bool]]:
    """(field, backwards) of each key of -O."""
    if option is None:
        return []
    return [(_known(key.lstrip("+-")), key.startswith("-")) for key in option.split(",")]


def _known(name: str) -> str:
    if name in FIELDS:
        return name
    if name not in ("help", "?"):
        _list_fields()
        sys.stderr.write(f"Unrecognised field: {name}\n")
        raise SystemExit(1)
    _list_fields()
    raise SystemExit(0)


def _list_fields() -> None:
    for title, section in SECTIONS.items():
        sys.stderr.write(f"  {title + '_all':<21} - All fields in this section.\n")
        for name, field in section.items():
            sys.stderr.write(f"  {name:<21} - {field.text}\n")
        sys.stderr.write(" \n")
