"""The mapper folder of root: a link from each device's name to its loop device."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

DEV = Path("/dev")
FORBIDDEN = frozenset({"", ".", ".."})


def check_name(name: str) -> None:
    """EINVAL for what cannot be a file's name. Which characters are mangled is decided above us."""
    if name in FORBIDDEN or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, f"device name {name!r} cannot name a node")


class Nodes:
    """Makes and takes away names in one folder; touches nothing there that is not a device's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, device: Path) -> None:
        """Let ``name`` lead to ``device``, a node in /dev. EEXIST when the name is something that is no device."""
        check_name(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        link = self._folder / name
        target = self._target(device)
        try:
            link.symlink_to(target)
            return
        except FileExistsError:
            mode = link.lstat().st_mode
            if stat.S_ISLNK(mode) and str(link.readlink()) == target:
                return
            if not stat.S_ISLNK(mode) and not stat.S_ISBLK(mode):
                raise OSError(errno.EEXIST, f"{link} exists and is no device's name") from None
        # a stale link, or a node that libdevmapper made: replaced at once, the name is never missing
        fresh = self._folder / f".{device.name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(link)

    def _target(self, device: Path) -> str:
        folder = self._folder.resolve()
        if folder.is_relative_to(DEV):
            return os.path.relpath(device, folder)
        return str(device)

    def take(self, name: str, device: Path, devno: tuple[int, int]) -> None:
        """Take the name away if it still leads to ``device``."""
        link = self._folder / name
        try:
            info = link.lstat()
            if stat.S_ISLNK(info.st_mode):
                ours = link.readlink().name == device.name
            else:
                ours = stat.S_ISBLK(info.st_mode) and info.st_rdev == os.makedev(*devno)
            if ours:
                link.unlink()
        except FileNotFoundError:
            pass

    def leading_to(self, device: Path) -> list[str]:
        """Every name that is a link to ``device``."""
        try:
            entries = list(self._folder.iterdir())
        except FileNotFoundError:
            return []
        return [entry.name for entry in entries if entry.is_symlink() and entry.readlink().name == device.name]
