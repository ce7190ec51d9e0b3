"""The columns of a report: what they are called, how wide they are, and what a device has in them."""

from __future__ import annotations

from userdm.api.control import Device
from userdm.cli.blockdev import kernel_name, read_ahead
from userdm.cli.session import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from userdm.api.control import Info
    from userdm.cli.deptree import DepTree, Node
    from userdm.cli.session import Session

    Value = str | int

STRING, NUMBER, SIZE = "string", "number", "size"

SECTIONS = {
    "name": "Name",
    "info": "State",
    "deps": "Relations",
    "tree": "Relations",
    "splitname": "Parts of the Name",
    "stats": "Statistics",
    "region": "Regions of Statistics",
    "special": "Special",
}


class Field:
    """Numbers stand at the right of their column and are sorted as numbers."""

    __slots__ = ("section", "name", "kind", "heading", "width", "value", "text")

    def __init__(
        self,
        section: str,
        name: str,
        heading: str,
        width: int,
        value: Callable[[Row], Value],
        text: str = "",
        /,
        *,
        kind: str = "",
    ) -> None:
        """A negative width is a number's."""
        self.section = section
        self.name = name
        self.kind = kind or (NUMBER if width < 0 else STRING)
        self.heading = heading
        self.width = abs(width)
        self.value = value
        self.text = text


class Row:
    """One device, and what has to be asked for beyond its info. Of a bare name (splitname) there is no info."""

    def __init__(self, session: Session, info: Info | None, tree: DepTree | None = None) -> None:
        self.session = session
        self._info = info
        self._tree = tree
        self._deps: list[tuple[int, int]] | None = None
        self._values: dict[Field, Value] = {}
        self.selected = True
        self.subsystem = ""
        self.parts = ("", "", "")

    def get(self, field: Field) -> Value:
        if field is SELECTED:
            return int(self.selected)
        if field not in self._values:
            self._values[field] = field.value(self)
        return self._values[field]

    @property
    def info(self) -> Info:
        assert self._info is not None
        return self._info

    @property
    def name(self) -> str:
        return self.session.shown(self.info.name)

    @property
    def uuid(self) -> str:
        return self.session.shown(self.info.uuid, "UUID")

    @property
    def devno(self) -> tuple[int, int]:
        return self.info.devno

    @property
    def deps(self) -> list[tuple[int, int]]:
        if self._deps is None:
            device = Device(devno=self.devno)
            inactive = self.session.flag("inactive")
            self._deps = self.session.ioctl("deps", device, self.session.control.deps, device, inactive=inactive)[1]
        return self._deps

    @property
    def block_name(self) -> str:
        return kernel_name(self.devno) or self.info.name

    @property
    def users(self) -> list[Node]:
        """The mapped devices that stand on it."""
        return self.node.mapped_users()

    @property
    def node(self) -> Node:
        assert self._tree is not None
        node = self._tree.nodes.get(self.devno)
        if node is None:
            raise Failed("Cannot find node %d:%d." % self.devno)
        return node

    def split(self, subsystem: str, name: str) -> None:
        """Volume group, logical volume and layer of an LVM device's name."""
        self.subsystem = subsystem
        if subsystem == "LVM":
            self.parts = split_lvm(name)


def split_lvm(name: str) -> tuple[str, str, str]:
    """The three parts stand between single hyphens; two hyphens are one of the part's own, and so is the last one."""
    parts: list[str] = []
    part = ""
    at = 0
    while at < len(name) and len(parts) < 3:
        if name[at] == "-" and at + 1 < len(name):
            at += 1
            if name[at] != "-":
                parts.append(part)
                part = ""
                continue
        part += name[at]
        at += 1
    parts += [part, "", ""]
    return parts[0], parts[1], parts[2]


def _attr(row: Row) -> str:
    info = row.info
    letters = ("L" if info.live else "-", "I" if info.inactive else "-", "s" if info.suspended else "-")
    return "".join(letters) + ("r" if info.readonly else "w")


def _tables(row: Row) -> str:
    info = row.info
    return "Both" if info.live and info.inactive else "Live" if info.live else "Inactive" if info.inactive else "None"


def _numbers(numbers: list[tuple[int, int]]) -> str:
    return ",".join("%d:%d" % number for number in numbers)


def _names(nodes: list[Node]) -> str:
    return ",".join(node.name for node in nodes if node.name)


def _block_names(row: Row) -> str:
    return ",".join(kernel_name(number) or "%d:%d" % number for number in row.deps)


def _no_value(row: Row) -> Value:
    """Statistics are kept of regions, and no device has any: a report that shows them has no rows."""
    raise AssertionError


FIELDS = [
    Field("name", "name", "Name", 16, lambda row: row.name, "The device's name."),
    Field("name", "mangled_name", "MangledName", 16, lambda row: row.session.mangled(row.name), "With \\xNN in it."),
    Field("name", "unmangled_name", "UnmangledName", 16, lambda row: row.session.plain(row.name), "Without."),
    Field("name", "uuid", "UUID", 32, lambda row: row.uuid, "Its uuid, if it has one."),
    Field("name", "mangled_uuid", "MangledUUID", 32, lambda row: row.session.mangled(row.uuid, "UUID"), "With \\xNN."),
    Field("name", "unmangled_uuid", "UnmangledUUID", 32, lambda row: row.session.plain(row.uuid), "Without."),
    Field("name", "read_ahead", "RAhead", -6, lambda row: read_ahead(row.info) or 0, "Read-ahead in sectors."),
    Field("info", "blkdevname", "BlkDevName", 16, lambda row: row.block_name, "The kernel's name for it."),
    Field("info", "attr", "Stat", 4, _attr, "(L)ive, (I)nactive, (s)uspended, (r)ead-only or read-(w)rite."),
    Field("info", "tables_loaded", "Tables", 6, _tables, "Live, Inactive, Both, or None."),
    Field("info", "suspended", "Suspended", 9, lambda row: ("Active", "Suspended")[row.info.suspended], "Or Active."),
    Field(
        "info", "readonly", "Read-only", 9, lambda row: ("Writeable", "Read-only")[row.info.readonly], "Or Writeable."
    ),
    Field("info", "devno", "DevNo", 5, lambda row: "%d:%d" % row.devno, "Major and minor number."),
    Field("info", "major", "Maj", -3, lambda row: row.devno[0], "Major number."),
    Field("info", "minor", "Min", -3, lambda row: row.devno[1], "Minor number."),
    Field("info", "open", "Open", -4, lambda row: row.info.open_count, "How many have it open."),
    Field("info", "segments", "Targ", -4, lambda row: row.info.target_count, "Lines of the live table."),
    Field("info", "events", "Event", -6, lambda row: row.info.event_nr, "Number of the last event."),
    Field("deps", "device_count", "#Devs", -5, lambda row: len(row.deps), "How many devices it stands on."),
    Field(
        "tree", "devs_used", "DevNamesUsed", 16, lambda row: _names(row.node.uses), "Names of those that are mapped."
    ),
    Field("deps", "devnos_used", "DevNosUsed", 16, lambda row: _numbers(row.deps), "Their numbers."),
    Field("deps", "blkdevs_used", "BlkDevNamesUsed", 16, _block_names, "The kernel's names for them."),
    Field("tree", "device_ref_count", "#Refs", -5, lambda row: len(row.users), "How many mapped devices stand on it."),
    Field("tree", "names_using_dev", "RefNames", 8, lambda row: _names(row.users), "Their names."),
    Field(
        "tree", "devnos_using_dev", "RefDevNos", 9, lambda row: _numbers([u.devno for u in row.users]), "Their numbers."
    ),
    Field("splitname", "subsystem", "Subsys", 6, lambda row: row.subsystem, "Whose device it is."),
    Field("splitname", "vg_name", "VG", 4, lambda row: row.parts[0], "LVM: the volume group."),
    Field("splitname", "lv_name", "LV", 4, lambda row: row.parts[1], "LVM: the logical volume."),
    Field("splitname", "lv_layer", "LVLayer", 7, lambda row: row.parts[2], "LVM: the layer."),
]
"""In dmsetup's order."""

_STATS = """read_count reads_merged_count read_sector_count read_time write_count writes_merged_count
    write_sector_count write_time in_progress_count io_ticks queue_ticks read_ticks write_ticks reads_merged_per_sec
    writes_merged_per_sec reads_per_sec writes_per_sec read_size_per_sec write_size_per_sec avg_request_size queue_size
    await read_await write_await throughput service_time util hist_count$ hist_count_bounds$ hist_count_ranges$
    hist_percent$ hist_percent_bounds$ hist_percent_ranges$ interval_ns interval"""
_REGION = """region_id region_start* region_len* area_id area_start* area_len* area_offset* area_count group_id
    program_id$ user_data$ precise$ hist_bins$ hist_bounds$ hist_ranges$ stats_name$ obj_type$"""
_KINDS = {"$": STRING, "*": SIZE}

SELECTED = Field("special", "selected", "Selected", -8, lambda row: int(row.selected), "Whether -S wants the row.")
HELP = Field("special", "help", "Help", 8, _no_value, "This list.", kind="help")


def statistics() -> list[Field]:
    return [
        Field(section, word.rstrip("$*"), "", 0, _no_value, kind=_KINDS.get(word[-1], NUMBER))
        for section, words in (("stats", _STATS), ("region", _REGION))
        for word in words.split()
    ]


def find_field(name: str) -> Field | None:
    """Underscores and capital letters do not matter."""
    plain = name.replace("_", "").lower()
    if plain in ("help", "?"):
        return HELP
    for field in (SELECTED, *FIELDS):
        if field.name.replace("_", "") == plain:
            return field
    for field in statistics():
        if field.name.replace("_", "") == plain:
            return field
    return None


def section_fields(name: str) -> list[Field]:
    """What "all" or "deps_all" stands for; nothing when it is no such word."""
    plain = name.replace("_", "").lower()
    if not plain.endswith("all"):
        return []
    section = plain[:-3]
    return [field for field in (*FIELDS, *statistics()) if section in ("", field.section)]


def list_fields(*, sections: bool = True) -> str:
    """Every field and what it is, section by section."""
    lines: list[str] = []
    before = ""
    for field in (*FIELDS, *statistics(), SELECTED, HELP):
        if field.section != before:
            title = f"{SECTIONS[field.section]} Fields" if field.section != "tree" or before != "deps" else ""
            lines += [" ", title, "-" * len(title)] if before else [title, "-" * len(title)]
            if sections and field.section != "special":
                lines.append(f"  {field.section + '_all':<21} - All of these.")
            before = field.section
        what = field.text if sections else f"{field.text} [{field.kind}]".lstrip()
        lines.append(f"  {field.name:<21} - {what}")
    return "".join(f"{line}\n" for line in lines) + " \n"
