"""The mapper folder of root: a link from each device's name to its loop device.

A logical volume of LVM has a second one, /dev/VG/LV, which udev makes elsewhere: LVM itself looks for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

DEV = Path("/dev")
FORBIDDEN = frozenset({"", ".", ".."})
LVM = "LVM-"
LVM_LENGTH = len(LVM) + 64
"""Of the uuid of a volume that people use: what serves another has a suffix."""


def check_name(name: str) -> None:
    """EINVAL for what cannot be a file's name. Which characters are mangled is decided above us."""
    if name in FORBIDDEN or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, f"device name {name!r} cannot name a node")


def volume(name: str) -> tuple[str, str] | None:
    """Volume group and volume that LVM means by the name: one hyphen between them, the others are doubled."""
    group, hyphen, rest = name.replace("--", "\0").partition("-")
    words = group.replace("\0", "-"), rest.replace("\0", "-")
    if not hyphen or "-" in rest or FORBIDDEN & set(words):
        return None
    return words


class Nodes:
    """Makes and takes away names in one folder; touches nothing there that is not a device's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, device: Path, uuid: str = "") -> None:
        """Let ``name`` lead to ``device``, a node in /dev. EEXIST when the name is something that is no device."""
        check_name(name)
        self._put(name, device)
        path = self._volume_path(name)
        if path is not None and uuid.startswith(LVM) and len(uuid) == LVM_LENGTH:
            try:
                path.parent.mkdir(exist_ok=True)
                if path.is_symlink():
                    path.unlink()
                path.symlink_to(os.path.relpath(device, path.parent))
            except OSError as error:
                # somebody else's file is in the way, and is left alone
                log.warning("%s: %s", path, error)

    def _volume_path(self, name: str) -> Path | None:
        """Where LVM looks for a volume of that name: only beside a folder that is called as the kernel's."""
        found = volume(name)
        if found is None or self._folder.name != "mapper" or found[0] == "mapper":
            return None
        return self._folder.parent / found[0] / found[1]

    def _put(self, name: str, device: Path) -> None:
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
        path = self._volume_path(name)
        if path is not None and path.is_symlink() and path.readlink().name == device.name:
            path.unlink()
            with contextlib.suppress(OSError):  # another volume of the group is there
                path.parent.rmdir()
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
