"""Which block devices an open storage stands on: through file systems, loop devices and whatever sysfs calls slaves."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

Devno = tuple[int, int]


def devices_below(fds: Sequence[int]) -> set[Devno]:
    """(major, minor) of each, those of block devices themselves among them."""
    found: set[Devno] = set()
    ahead = [_device(os.fstat(fd)) for fd in fds]
    while ahead:
        number = ahead.pop()
        if number not in found:
            found.add(number)
            ahead.extend(_one_down(number))
    return found


def _device(info: os.stat_result) -> Devno:
    """The device itself, or the one that a file's file system is on."""
    number = info.st_rdev if stat.S_ISBLK(info.st_mode) else info.st_dev
    return os.major(number), os.minor(number)


def _one_down(number: Devno) -> Iterator[Devno]:
    folder = Path(f"/sys/dev/block/{number[0]}:{number[1]}")
    with suppress(OSError):
        backing = (folder / "loop/backing_file").read_text(errors="surrogateescape").rstrip("\n")
        yield _device(os.stat(backing))  # noqa: PTH116
    with suppress(OSError, ValueError):
        for slave in (folder / "slaves").iterdir():
            major, _, minor = (slave / "dev").read_text().strip().partition(":")
            yield int(major), int(minor)
    if number[0] == 0:
        yield from _mounted_from(number)


def _mounted_from(number: Devno) -> Iterator[Devno]:
    """The devices of a file system that has no number of its own in its files (btrfs)."""
    name = f"{number[0]}:{number[1]}"
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            words = line.split()
            source = words[words.index("-") + 2]
            if words[2] == name and source.startswith("/dev/"):
                with suppress(OSError):
                    yield _device(os.stat(source))  # noqa: PTH116
