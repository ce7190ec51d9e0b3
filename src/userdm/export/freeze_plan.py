"""What has to be frozen and synced so that nothing of some block devices is in memory only, and in which order."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from userdm.export import holders, mountinfo
from userdm.export.loop import status
from userdm.export.mountinfo import Mount

Devno = tuple[int, int]
UNMOUNTED = "a file system that is mounted nowhere any more"


@dataclass(frozen=True, slots=True)
class FreezeStep:
    """Freeze the super block with this number; it can be reached at any of the mounts, none when it has no more."""

    superblock: Devno
    mounts: tuple[Mount, ...]

    @property
    def point(self) -> str:
        return self.mounts[0].point if self.mounts else UNMOUNTED


@dataclass(frozen=True, slots=True)
class SyncStep:
    """Write down the page cache of the block device at this node."""

    node: str


@dataclass(frozen=True, slots=True)
class _Loop:
    devno: Devno
    node: str
    backing: str
    """The path of its file, as the driver knows it."""


@dataclass
class _World:
    """/proc and sysfs as they were at one moment."""

    mounts: dict[Devno, list[Mount]] = field(default_factory=dict)
    loops: list[_Loop] = field(default_factory=list)


def _decode(number: int) -> Devno:
    """A device number as the loop driver gives it (the kernel's new_encode_dev)."""
    return (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)


def _devno(path: Path) -> Devno:
    major, _, minor = path.read_text().strip().partition(":")
    return int(major), int(minor)


def _foreign_loops() -> Iterator[_Loop]:
    for name, backing in holders.loops_bound():
        # "/": over a detached mount, one of ours, whose file is on no file system
        if backing != "/":
            with contextlib.suppress(OSError, ValueError):
                yield _Loop(_devno(Path(f"/sys/block/{name}/dev")), f"/dev/{name}", backing)


def _has_file_on(loop: _Loop, superblock: Devno, mounts: list[Mount]) -> bool:
    """Whether a loop device's file is on the file system.

    The driver is asked only when the path speaks for it: while one has a loop device open, others cannot detach it.
    """
    if not any(loop.backing.startswith(mount.point.rstrip("/") + "/") for mount in mounts):
        return False
    try:
        fd = os.open(loop.node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = status(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return info is not None and isinstance(info[0], int) and _decode(info[0]) == superblock


def _world() -> _World:
    world = _World(loops=list(_foreign_loops()))
    for mount in mountinfo.all_mounts():
        world.mounts.setdefault(mount.devno, []).append(mount)
    return world


def _btrfs_members(name: str) -> set[str]:
    """All devices of the btrfs that the device with this kernel name is part of."""
    for folder in Path("/sys/fs/btrfs").glob("*/devices"):
        members = {entry.name for entry in folder.iterdir()}
        if name in members:
            return members
    return set()


def _superblocks(world: _World, devno: Devno) -> Iterator[Devno]:
    """Super blocks of the file systems on a device: of its own number, or (btrfs) with the device as their source."""
    if devno in world.mounts:
        yield devno
    folder = Path(f"/sys/dev/block/{devno[0]}:{devno[1]}")
    members = _btrfs_members(folder.resolve().name)
    numbers = {devno}
    for member in members:
        numbers.add(_devno(Path(f"/sys/class/block/{member}/dev")))
    for number, mounts in world.mounts.items():
        if number[0] == 0 and any(_comes_from(mount, numbers) for mount in mounts):
            yield number


def _comes_from(mount: Mount, numbers: set[Devno]) -> bool:
    if not mount.source.startswith("/") or mount.kind in ("fuse", "nfs", "nfs4", "cifs", "overlay", "tmpfs"):
        return False
    source = f"/proc/{mount.pid}/root{mount.source}"
    return any(holders.leads_to(source, number) for number in numbers)


def _above(world: _World, devno: Devno) -> Iterator[tuple[Devno, str]]:
    """(number, node) of every device made of this one: foreign loop devices, partitions, and the kernel's holders."""
    for loop in world.loops:
        if loop.backing.startswith("/dev/") and holders.leads_to(loop.backing, devno):
            yield loop.devno, loop.node
    folder = Path(f"/sys/dev/block/{devno[0]}:{devno[1]}")
    for entry in [*folder.glob("*/partition"), *folder.glob("holders/*/dev")]:
        name = entry.parent.name
        yield _devno(Path(f"/sys/class/block/{name}/dev")), f"/dev/{name}"


def _is_claimed(node: str) -> bool:
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def plan(devices: list[tuple[Devno, str]]) -> list[FreezeStep | SyncStep]:
    """The steps for devices given as (number, node), the topmost first: whatever lies on something comes before it."""
    world = _world()
    steps: list[FreezeStep | SyncStep] = []
    seen: set[Devno] = set()
    seen_superblocks: set[Devno] = set()

    def visit(devno: Devno, node: str) -> None:
        if devno in seen:
            return
        seen.add(devno)
        for above in _above(world, devno):
            visit(*above)
        superblocks = list(_superblocks(world, devno))
        for number in superblocks:
            for loop in world.loops:
                if _has_file_on(loop, number, world.mounts[number]):
                    visit(loop.devno, loop.node)
            if number not in seen_superblocks:
                seen_superblocks.add(number)
                steps.append(FreezeStep(number, tuple(world.mounts[number])))
        if not superblocks and _is_claimed(node):
            steps.append(FreezeStep(devno, ()))
        steps.append(SyncStep(node))

    for device in devices:
        visit(*device)
    return steps
