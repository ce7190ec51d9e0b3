"""Names of devices: how they are written so that udev accepts them, and how a path to a node becomes a name.

A character outside of the white list is written \\xNN, each byte of it. What of that is done to a name that is given,
and undone before it is shown, is libdevmapper's *mangling mode*:

- "auto": a name that has such sequences already is left as it is, and one that has both is refused;
- "hex": every such character is written so, the backslash of a sequence as well;
- "none": names are taken and shown as they are.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENXIO

from userdm.abi import runtime
from userdm.abi.dm_ioctl import NAME_LEN, UUID_LEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Control

MODES = ("auto", "hex", "none")

_WHITE = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#+-.:=@_")
_HEX = frozenset(b"0123456789abcdefABCDEF")


def mangle(text: str, mode: str = "auto", what: str = "name", limit: int = NAME_LEN) -> str:
    """In mode "auto" or "hex", and in fewer than ``limit`` bytes. EINVAL in libdevmapper's words."""
    raw = os.fsencode(text)
    if _WHITE.issuperset(raw) and len(raw) < limit:
        return text
    out = bytearray()
    plain = coded = False
    at = 0
    while at < len(raw):
        if mode != "hex" and raw[at : at + 2] == b"\\x":
            coded = True
            if plain or len(raw) - at < 4:
                raise _mixed(text, what)
            out += raw[at : at + 4]
            at += 4
            continue
        if raw[at] in _WHITE:
            out.append(raw[at])
        elif coded:
            raise _mixed(text, what)
        else:
            plain = True
            out += b"\\x%02x" % raw[at]
        at += 1
    if len(out) >= limit:
        raise OSError(EINVAL, f'Mangled form of the {what} too long for "{text}".')
    return os.fsdecode(bytes(out))


def _mixed(text: str, what: str) -> OSError:
    why = "contains mixed mangled and unmangled characters or it's already mangled improperly."
    return OSError(EINVAL, f'The {what} "{text}" {why}')


def unmangle(text: str) -> str:
    """As it was given."""
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


def is_mangled(text: str) -> bool:
    """Whether the driver's name or uuid has only characters that udev accepts."""
    return _WHITE.issuperset(os.fsencode(text.replace("\\", "")))


def _is_coded(raw: bytes, at: int) -> bool:
    return raw[at : at + 2] == b"\\x" and len(raw) >= at + 4 and _HEX.issuperset(raw[at + 2 : at + 4])


def check_name(name: str, mode: str = "auto") -> str:
    """A device's name as the driver gets it; EINVAL in libdevmapper's words, as from the others here."""
    if len(os.fsencode(name)) >= NAME_LEN:
        raise OSError(EINVAL, f'Name "{name}" too long.')
    return _mangled(name, mode, "name", f'Failed to mangle device name "{name}".')


def check_created_name(name: str, mode: str = "auto") -> str:
    _check_no_path(name)
    return check_name(name, mode)


def check_new_name(name: str, mode: str = "auto") -> str:
    """The name that a device is to be given in place of its own."""
    _check_no_path(name)
    if len(os.fsencode(name)) >= NAME_LEN:
        raise OSError(EINVAL, f'Name "{name}" too long')
    if not name:
        raise OSError(EINVAL, "Non empty new name is required.")
    return _mangled(name, mode, "new name", f'Failed to mangle new device name "{name}"')


def check_uuid(uuid: str, mode: str = "auto") -> str:
    return _mangled(uuid, mode, "UUID", f'Failed to mangle device uuid "{uuid}".', UUID_LEN)


def check_new_uuid(uuid: str, mode: str = "auto") -> str:
    if len(os.fsencode(uuid)) >= UUID_LEN:
        raise OSError(EINVAL, f'Uuid "{uuid}" too long')
    return _mangled(uuid, mode, "new UUID", f'Failed to mangle new device UUID "{uuid}"', UUID_LEN)


def _check_no_path(name: str) -> None:
    if "/" in name:
        raise OSError(EINVAL, f'Name "{name}" invalid. It contains "/".')


def _mangled(text: str, mode: str, what: str, otherwise: str, limit: int = NAME_LEN) -> str:
    if mode == "auto" and "\\x5cx" in text:
        why = "seems to be mangled more than once. This is not allowed in auto mode."
        raise OSError(EINVAL, f'The {what} "{text}" {why}')
    if mode == "none":
        return text
    try:
        return mangle(text, mode, what, limit)
    except OSError as error:
        raise OSError(EINVAL, f"{error.strerror}\n{otherwise}") from None


def find_name(control: Control, given: str, mode: str = "auto") -> str:
    """The name of the device that the user means: a name, or the path of a node. ENXIO for a path that leads to none.

    Folders of nodes are listed, never looked into: what is in them may be served by a daemon that hangs.
    """
    if "/" not in given:
        return check_name(given, mode)
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
