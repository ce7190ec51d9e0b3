"""The mounts of every mount namespace that a process lives in, as /proc/PID/mountinfo tells them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line: ``pid`` is a process that sees it, ``devno`` the super block's own number."""

    pid: int
    id: int
    devno: tuple[int, int]
    point: str
    kind: str
    source: str

    @property
    def path(self) -> str:
        """Where it can be reached from here."""
        return f"/proc/{self.pid}/root{self.point}"


def _plain(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))


def parse(pid: int, text: bytes) -> Iterator[Mount]:
    """The mounts in the text of a mountinfo file; a line that is not understood is passed over."""
    for line in text.splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if len(fields) < 6 or len(rest) < 2:
            continue
        major, _, minor = fields[2].partition(b":")
        try:
            devno = int(major), int(minor)
            number = int(fields[0])
        except ValueError:
            continue
        yield Mount(pid, number, devno, _plain(fields[4]), _plain(rest[0]), _plain(rest[1]))


def pids() -> list[int]:
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def all_mounts() -> Iterator[Mount]:
    """Each mount of each namespace once. Our own namespace comes first; a process that vanishes is no error."""
    seen = set()
    for pid in [os.getpid(), *pids()]:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115
            if namespace in seen:
                continue
            text = Path(f"/proc/{pid}/mountinfo").read_bytes()
        except OSError:
            continue
        if text:
            seen.add(namespace)
            yield from parse(pid, text)
