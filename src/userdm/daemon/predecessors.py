"""Workers before this one that are dead and cannot end yet: what may their threads still do to a storage?

Each such thread sits in one system call and dies when that returns. Mostly it waits for an answer on a device of ours
(a loop device's ioctl, an open, a close) and harms nobody. But one that writes, to a file system that stands on a
device of ours or to a slow disk, does so whenever it gets to it: what it writes to may not be served before. What a
thread does is read from /proc; where that says nothing, it counts as one that writes anywhere.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable

from userdm.daemon.packets import readable

_HARMLESS = {
    # ioctl, open, close, fstat, fsync, fdatasync, pread64, readlink, openat, unlinkat, newfstatat, preadv, statx
    "x86_64": frozenset({16, 2, 3, 5, 74, 75, 17, 89, 257, 263, 262, 295, 332}),
    # ioctl, unlinkat, openat, close, pread64, preadv, readlinkat, newfstatat, fstat, fsync, fdatasync, statx
    "aarch64": frozenset({29, 35, 56, 57, 67, 69, 78, 79, 80, 82, 83, 291}),
}.get(os.uname().machine, frozenset())
_WRITING = {
    # pwrite64, pwritev, fallocate: the descriptor is the first argument
    "x86_64": frozenset({18, 296, 285}),
    "aarch64": frozenset({68, 70, 47}),
}.get(os.uname().machine, frozenset())
PAUSE = 0.01

Identity = tuple[int, int]


class Predecessors:
    """``pids``: children of the keeper that are dead."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._left: dict[int, int] = {}
        for pid in pids:
            try:
                self._left[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue

    def gone(self) -> bool:
        """Whether nothing is left of any of them."""
        for pid, fd in list(self._left.items()):
            if readable(fd):
                os.close(self._left.pop(pid))
        return not self._left

    def wait_gone(self) -> None:
        while not self.gone():
            time.sleep(PAUSE)

    def wait_still(self) -> None:
        """Return when each thread that is left waits in the kernel: one that is on its way out of there may yet take a
        request from a connection, and nobody would answer that."""
        while not self.gone() and any(_moves(pid) for pid in list(self._left)):
            time.sleep(PAUSE)

    def let_go_of(self, fds: Iterable[int]) -> None:
        """Return when none of them can write any more to what these descriptors are open on."""
        if self.gone():
            return
        wanted = {identity for fd in fds if (identity := _identity(os.fstat(fd))) is not None}
        while wanted and not self.gone() and any(_writes(pid, wanted) for pid in list(self._left)):
            time.sleep(PAUSE)


def _identity(info: os.stat_result) -> Identity | None:
    if stat.S_ISBLK(info.st_mode):
        return info.st_rdev, 0
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None


def _moves(pid: int) -> bool:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return any(_state(f"/proc/{pid}/task/{thread}") not in "DZX" for thread in threads)
    except OSError:
        return True  # one has just ended: look again


def _state(folder: str) -> str:
    with open(f"{folder}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


def _writes(pid: int, wanted: set[Identity]) -> bool:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return any(_thread_writes(f"/proc/{pid}/task/{thread}", wanted) for thread in threads)


def _thread_writes(folder: str, wanted: set[Identity]) -> bool:
    try:
        state = _state(folder)
        if state in "ZX":
            return False
        with open(f"{folder}/syscall", encoding="ascii") as file:
            words = file.read().split()
        if state != "D" or not words[0].isdigit():
            return True  # about to end
        number = int(words[0])
        if number in _WRITING:
            return _identity(os.stat(f"{folder}/fd/{int(words[1], 16)}")) in wanted  # noqa: PTH116
        return number not in _HARMLESS
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, IndexError):
        return True
