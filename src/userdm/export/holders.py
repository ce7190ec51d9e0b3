"""Who has a block device open: processes, mounts, and devices made on top of it. Read from /proc and sysfs.

The kernel shows its own count to nobody, so this is as near as one gets; 5 to 10 ms on a machine with a few hundred
processes. Nothing here opens a file that somebody else serves, or asks its server for anything.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from functools import cmp_to_key
from itertools import pairwise
from pathlib import Path

from userdm.export import mountinfo

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE = 1
_S_IFMT, _S_IFBLK = 0o170000, 0o060000
_STATX = struct.Struct("=28xH98xIIII112x")
"""Of struct statx: mode, rdev major and minor, dev major and minor"""

_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
"""The number of the system call kcmp(2)."""
_KCMP_FILE = 0

_libc = ctypes.CDLL(None, use_errno=True)


def leads_to(path: str, devno: tuple[int, int]) -> bool:
    """Whether ``path`` is a node of the block device, as far as the kernel knows without asking a file server."""
    mode, *numbers = _statx(path)
    return mode & _S_IFMT == _S_IFBLK and (numbers[0], numbers[1]) == devno


def superblock_of(path: str) -> tuple[int, int]:
    """The number of the file system that the path leads to, as far as the kernel knows without asking its server."""
    numbers = _statx(path)
    return numbers[3], numbers[4]


def _statx(path: str) -> tuple[int, ...]:
    """The fields of _STATX, zeros for what cannot be reached."""
    found = ctypes.create_string_buffer(_STATX.size)
    _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_TYPE, found)
    return _STATX.unpack(found)


def descriptors(devno: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """(pid, path as it was opened) of each descriptor of the device, in each process that we may look at."""
    return ((pid, path) for pid, _, path in _descriptors(devno))


def _descriptors(devno: tuple[int, int]) -> Iterator[tuple[int, int, str]]:
    """(pid, number, path as it was opened)."""
    for pid in mountinfo.pids():
        folder = f"/proc/{pid}/fd"
        try:
            numbers = os.listdir(folder)
        except OSError:
            continue
        for number in numbers:
            link = f"{folder}/{number}"
            try:
                path = os.readlink(link)  # noqa: PTH115 - hot
            except OSError:
                continue
            # sockets, pipes and the like have no path
            if path.startswith("/") and leads_to(link, devno):
                yield pid, int(number), path


def _order(one: tuple[int, int, str], other: tuple[int, int, str]) -> int:
    """Of two descriptors, by what they are of: 0 when that was opened once, and inherited or duplicated."""
    answer = _libc.syscall(_KCMP, one[0], other[0], _KCMP_FILE, one[1], other[1]) if _KCMP else -1
    if answer in (0, 1, 2):
        return (0, -1, 1)[answer]
    # not to be asked, or gone meanwhile: taken for two
    return -1 if one < other else 1


def _opens(devno: tuple[int, int]) -> int:
    """How often open(2) has succeeded, of what is not closed again."""
    found = sorted(_descriptors(devno), key=cmp_to_key(_order))
    return len(found) - sum(_order(one, other) == 0 for one, other in pairwise(found))


def paths_in(superblock: tuple[int, int]) -> Iterator[str]:
    """Names in /proc of what processes have open in a file system, mounted or not; not its device, if it has one."""
    for pid in mountinfo.pids():
        folder = f"/proc/{pid}"
        try:
            links = [f"{folder}/cwd", f"{folder}/root", *(f"{folder}/fd/{name}" for name in os.listdir(f"{folder}/fd"))]
        except OSError:
            continue
        for link in links:
            if superblock_of(link) == superblock:
                yield link


def loops_bound() -> Iterator[tuple[str, str]]:
    """(name in /dev, path of the backing file) of each bound loop device."""
    for folder in Path("/sys/block").glob("loop*/loop"):
        try:
            backing = (folder / "backing_file").read_text(errors="surrogateescape").rstrip("\n")
        except OSError:
            continue
        yield folder.parent.name, backing


def stacked(devno: tuple[int, int]) -> Iterator[str]:
    """Names of the devices that the kernel keeps on top of this one: loop devices, and what sysfs calls holders."""
    for name, backing in loops_bound():
        if backing.startswith("/dev/") and leads_to(backing, devno):
            yield name
    try:
        yield from os.listdir(f"/sys/dev/block/{devno[0]}:{devno[1]}/holders")
    except OSError:
        return


def is_mounted(devno: tuple[int, int]) -> bool:
    """Whether any mount namespace has a file system of this device."""
    return any(mount.devno == devno for mount in mountinfo.all_mounts())


def count_openers(devno: tuple[int, int], is_claimed: Callable[[], bool]) -> int:
    """How often the device is open. A mounted file system counts once, as it does in the kernel.

    ``is_claimed`` tries to open it exclusively, which sees what no list shows: a lazily unmounted file system,
    swap. It is asked last and only when nothing else was found, since a mount at that very moment would fail.
    """
    count = _opens(devno) + sum(1 for _ in stacked(devno)) + is_mounted(devno)
    return count or int(is_claimed())
