"""Names of devices: how they are written so that udev accepts them, and how a path to a node becomes a name.

A character outside of the white list is written \\xNN (each byte of it); a name that has such sequences already is
left as it is, one that has both is refused: libdevmapper's mode "auto".
"""

from __future__ import annotations

import os
from errno import EINVAL, ENXIO

from userdm.abi import runtime
from userdm.abi.dm_ioctl import NAME_LEN, UUID_LEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Control

_WHITE = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#+-.:=@_")
_HEX = frozenset(b"0123456789abcdefABCDEF")


def mangle(text: str) -> str:
    """As the driver gets it. EINVAL for a name in which only some characters are written as \\xNN."""
    raw = os.fsencode(text)
    if _WHITE.issuperset(raw):
        return text
    out = bytearray()
    plain = coded = False
    at = 0
    while at < len(raw):
        if _is_coded(raw, at):
            out += raw[at : at + 4]
            coded = True
            at += 4
            continue
        white = raw[at] in _WHITE
        out += raw[at : at + 1] if white else b"\\x%02x" % raw[at]
        plain = plain or not white
        at += 1
    if plain and coded:
        raise OSError(EINVAL, f'The string "{text}" contains mixed mangled and unmangled characters.')
    return out.decode("ascii")


def unmangle(text: str) -> str:
    """As it is shown."""
    if "\\" not in text:
        return text
    raw = os.fsencode(text)
    out = bytearray()
    at = 0
    while at < len(raw):
        if _is_coded(raw, at):
            out.append(int(raw[at + 2 : at + 4], 16))
            at += 4
        else:
            out.append(raw[at])
            at += 1
    return os.fsdecode(bytes(out))


def _is_coded(raw: bytes, at: int) -> bool:
    return raw[at : at + 2] == b"\\x" and len(raw) >= at + 4 and _HEX.issuperset(raw[at + 2 : at + 4])


def check_new_name(name: str) -> str:
    """The name for a new device, as the driver gets it; EINVAL in libdevmapper's words."""
    if "/" in name:
        raise OSError(EINVAL, f'Name "{name}" invalid. It contains "/".')
    mangled = mangle(name)
    if len(os.fsencode(mangled)) >= NAME_LEN:
        raise OSError(EINVAL, f'Name "{name}" too long.')
    return mangled


def check_uuid(uuid: str) -> str:
    """The uuid as the driver gets it; EINVAL in libdevmapper's words."""
    mangled = mangle(uuid)
    if len(os.fsencode(mangled)) >= UUID_LEN:
        raise OSError(EINVAL, f'Mangled form of the UUID too long for "{uuid}".')
    return mangled


def find_name(control: Control, given: str) -> str:
    """The name of the device that the user means: a name, or the path of a node. ENXIO for a path that leads to none.

    Folders of nodes are listed, never looked into: what is in them may be served by a daemon that hangs.
    """
    if "/" not in given:
        return mangle(given)
    folder, _, name = given.rpartition("/")
    for ours in runtime.mapper_dirs():
        if folder == ours or _same_folder(folder, ours):
            try:
                if name in os.listdir(ours):
                    return name
                if (mangled := mangle(name)) in os.listdir(ours):
                    return mangled
            except OSError:
                continue
    number = _block_number(given)
    if number is not None:
        for known, devno in control.devices():
            if devno == number:
                return known
    shown = given.removeprefix("/dev/") if not given.startswith("/dev/mapper/") else given
    raise OSError(ENXIO, f"Device {shown} not found")


def _same_folder(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one or ".", other)  # noqa: PTH121
    except OSError:
        return False


def _block_number(path: str) -> tuple[int, int] | None:
    """The number of the block device at ``path``; only in /dev, where nothing of ours is mounted."""
    if not os.path.abspath(path).startswith("/dev/"):  # noqa: PTH100
        return None
    try:
        info = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if info.st_mode & 0o170000 != 0o060000:
        return None
    return os.major(info.st_rdev), os.minor(info.st_rdev)
