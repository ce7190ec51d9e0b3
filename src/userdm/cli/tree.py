"""ls --tree: the devices, each with those below it that it stands on."""

from __future__ import annotations

import os
import sys

from userdm.cli.blockdev import kernel_name
from userdm.cli.deptree import DepTree
from userdm.cli.options import abbreviated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.cli.deptree import Node
    from userdm.cli.session import Session

WORDS = (
    "device",
    "blkdevname",
    "nodevice",
    "status",
    "table",
    "active",
    "open",
    "uuid",
    "rw",
    "utf",
    "vt100",
    "ascii",
    "inverted",
    "compact",
    "notrunc",
)
WIDTH = 80
DEEPEST = 98


class Symbols:
    """What a line of the tree begins with: nothing, a branch, a line that goes on, the last branch; and compact."""

    def __init__(self, branch: str, line: str, last: str, single: str, first: str) -> None:
        self.branch = branch
        self.line = line
        self.last = last
        self.single = single
        self.first = first


ASCII = Symbols("|-", "| ", "`-", "---", "-+-")
UTF = Symbols("├─", "│ ", "└─", "───", "─┬─")
_ON, _OFF = "\033(0\017", "\033(B"
VT100 = Symbols(f"{_ON}tq{_OFF}", f"{_ON}x{_OFF} ", f"{_ON}mq{_OFF}", f"{_ON}qqq{_OFF}", f"{_ON}qwq{_OFF}")


def tree(session: Session, words: set[str]) -> None:
    view = View(words)
    whole = DepTree(session, open_count="open" in words)
    view.walk(whole.root, 0)
    session.write("".join(view.out))


def chosen(option: str | None) -> set[str]:
    words = {"device", "utf" if _utf8() else "ascii"}
    for word in abbreviated(option, WORDS, "Tree options not recognised"):
        if word in ("utf", "vt100", "ascii"):
            words -= {"utf", "vt100", "ascii"}
        if word == "nodevice":
            words.discard("device")
        else:
            words.add(word)
    return words


def _utf8() -> bool:
    """Whether the caller's locale is one. Python has made its own of a plain C locale: what it began with counts."""
    try:
        with open("/proc/self/environ", "rb") as file:
            begun = dict(pair.partition(b"=")[::2] for pair in file.read().split(b"\0"))
    except OSError:
        begun = dict(os.environb)
    locale = begun.get(b"LC_ALL") or begun.get(b"LC_CTYPE") or begun.get(b"LANG") or b""
    return b"utf8" in locale.lower().replace(b"-", b"")


class View:
    """Lines of at most a terminal's width; ``out`` has them."""

    def __init__(self, words: set[str]) -> None:
        self.out: list[str] = []
        self._words = words
        self._symbols = VT100 if "vt100" in words else UTF if "utf" in words else ASCII
        self._attributes = [word for word in ("active", "rw", "open", "uuid") if word in words]
        self._compact = "compact" in words and not self._attributes and not words & {"table", "status"}
        self._inverted = "inverted" in words
        self._line = ""
        # of each depth: whether more devices follow there, and, in compact lines, how wide its device was
        self._more = [False] * (DEEPEST + 2)
        self._width = [0] * (DEEPEST + 2)
        self._limit = WIDTH
        if "vt100" not in words:
            try:
                columns = os.get_terminal_size(sys.stdout.fileno()).columns
            except (OSError, ValueError):
                columns = 0
            if columns > 3:
                self._limit = columns - 3

    def walk(self, parent: Node, depth: int) -> None:
        children = parent.children(self._inverted)
        for child in children:
            below = bool(child.children(self._inverted))
            self._show(child, depth, child is children[-1], below)
            if below:
                self.walk(child, depth + 1)
        if depth == 0 and self._line:
            self.out.append(self._cut())

    def _show(self, node: Node, depth: int, last: bool, below: bool) -> None:
        words = self._words
        if depth > DEEPEST or (not node.name and not words & {"device", "blkdevname"}):
            return
        self._more[depth] = not last
        self._width[depth] = 0
        begins = not self._line
        if begins or not self._compact:
            self._line += self._prefix(depth)
        offset = len(self._line)
        if self._compact and not begins:
            self._line += self._symbols.single if last else self._symbols.first
        self._line += self._describe(node)
        if self._compact:
            self._width[depth] = len(self._line) - offset
        if not self._compact or not below:
            self.out.append(self._cut() + "\n")
            self._line = ""

    def _prefix(self, depth: int) -> str:
        text = ""
        for above in range(depth):
            text += " " * (self._width[above] + 1)
            if above == depth - 1:
                text += self._symbols.branch if self._more[depth] else self._symbols.last
            else:
                text += self._symbols.line if self._more[above + 1] else "  "
        return text

    def _describe(self, node: Node) -> str:
        text = node.name
        if "blkdevname" in self._words and (name := kernel_name(node.devno)):
            text += f" <{name}>"
        if "device" in self._words:
            text += " (%d:%d)" % node.devno
        info = node.info
        if info is not None and self._attributes:
            values = {
                "active": "SUSPENDED" if info.suspended else "ACTIVE",
                "rw": "RO" if info.readonly else "RW",
                "open": str(info.open_count),
                "uuid": node.uuid,
            }
            text += f" [{', '.join(values[word] for word in self._attributes)}]"
        return text

    def _cut(self) -> str:
        line, limit = self._line, self._limit
        if "notrunc" in self._words or len(line) < limit:
            return line
        if len(line) == limit and line[-1].isascii():
            return line
        return line[: limit - 1] + "..."
