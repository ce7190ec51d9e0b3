"""What the harness printed, case by case, in words that do not depend on the machine.

Made equal, and why:

- device numbers and the nodes that have them in their name (the kernel counts its own, we take loop devices' numbers):
  a disk is <A>, a mapped device <NAME>, one that has no node <?>;
- the folder of nodes and the folder of the case: /dev/mapper and TMP;
- /bin/dd, as dd calls itself where busybox has one of its own;
- lines of ours that begin with "userdm: ", which say on stderr what the kernel writes into its log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAPPED_KERNEL = 253
LOOP = 7

NODE = re.compile(r"^b.* (?P<major>\d+), +(?P<minor>\d+) .* (?P<name>\S+)$")
LINK = re.compile(r"^l.* (?P<name>\S+) -> \S*loop(?P<minor>\d+)$")
"""A line of ls -l: a node of libdevmapper's, or a link of ours to a loop device."""


@dataclass
class Side:
    """Where the cases ran."""

    nodes: str
    temporary: str
    mapped_major: int
    names: dict[tuple[int, int], str] = field(default_factory=dict)

    def disk(self, letter: str, node: str) -> None:
        self.names[LOOP, int(node.removeprefix("/dev/loop"))] = letter


class Names:
    """Symbols for device numbers, in one case."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.listed: dict[tuple[int, int], str] = {}
        self.names = dict(side.names)

    def command(self) -> None:
        """Another command: what has gone has no name any more."""
        self.names = self.side.names | self.listed

    def node(self, text: str) -> None:
        """A line of ls -l of the folder of nodes."""
        if text.startswith("total "):
            self.listed = {}
        elif found := NODE.match(text):
            self.listed[int(found["major"]), int(found["minor"])] = found["name"]
        elif found := LINK.match(text):
            self.listed[LOOP, int(found["minor"])] = found["name"]
        self.names |= self.listed

    def of(self, major: int, minor: int) -> str | None:
        if (major, minor) in self.names:
            return f"<{self.names[major, minor]}>"
        return "<?>" if major == self.side.mapped_major else None

    def replace(self, text: str, pattern: str) -> str:
        return re.sub(pattern, lambda found: self.of(int(found["major"]), int(found["minor"])) or found[0], text)

    def line(self, text: str) -> str:
        """One line of an answer."""
        side = self.side
        text = text.replace(side.nodes + "/", "/dev/mapper/").replace(side.temporary, "TMP")
        text = re.sub(r"^err: /bin/(\w+: )", r"err: \1", text)
        text = re.sub(r"(?:/dev/)?\bloop(\d+)\b", lambda found: self.of(LOOP, int(found[1])) or found[0], text)
        if side.mapped_major != LOOP:
            text = re.sub(
                r"(?:/dev/)?\bdm-(\d+)\b", lambda found: self.of(side.mapped_major, int(found[1])) or found[0], text
            )
        number = r"\b(?P<major>253|7)"
        text = self.replace(text, number + r":(?P<minor>\d+)\b")
        text = self.replace(text, number + r", (?P<minor>\d+)\b")
        minor = r"(?<=,)(?P<minor>\d+)(?=,r[ow],)"  # table --concise
        text = re.sub(minor, lambda found: self.of(side.mapped_major, int(found[0])) or found[0], text)
        # the columns of info -c, whose width follows the number's; and major, minor between separators
        text = re.sub(r"\bMaj Min *(?= Stat| UUID)", "Maj:Min", text)
        text = self.replace(text, r" *" + number + r" +(?P<minor>\d+)(?= [L-][I-][s-][rw])")
        return self.replace(text, number + r"(?P<comma>[,;/])(?P<minor>\d+)(?=(?P=comma))")


def parse(text: str, side: Side) -> dict[str, list[str]]:
    """Each case's lines by its name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    names = Names(side)
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "disk":
            side.disk(*rest.split())
        elif word == "==":
            lines = found[rest] = []
            names = Names(side)
        elif word == "node:":
            names.node(rest)
        elif word == "$":
            names.command()
            lines.append(line)
        elif word == "rc:":
            lines.append(line)
        elif not line.startswith("err: userdm: "):
            lines.append(names.line(line))
    return found


def as_text(answers: dict[str, list[str]]) -> str:
    return "\n".join("\n".join([f"== {name}", *lines, ""]) for name, lines in answers.items())


def from_text(text: str) -> dict[str, list[str]]:
    """What `as_text` made."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("== "):
            found[line[3:]] = []
        elif line:
            found[list(found)[-1]].append(line)
    return found
