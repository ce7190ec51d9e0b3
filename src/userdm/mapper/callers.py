"""What a path means to the caller of a command, who may have another root: openat2(2) with RESOLVE_IN_ROOT.

A symbolic link that begins with a slash begins at *his* root, wherever on the way it is met.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

SYS_OPENAT2 = 437
"""The same on every architecture."""
RESOLVE_IN_ROOT = 0x10
_OPEN_HOW = struct.Struct("=QQQ")
"""flags, mode, resolve"""

_libc = ctypes.CDLL(None, use_errno=True)


def path_of(root: str, folder: str | None, value: str) -> str:
    """A path of ours to what ``value`` is to a caller with this root, /proc/PID/root. OSError as of open(2).

    ``folder`` is his working folder as /proc shows it to us. Nothing is opened but a name: not a device, nor a file
    that somebody serves.
    """
    if not value.startswith("/"):
        top = os.readlink(root).rstrip("/")  # noqa: PTH115
        if folder is None or not f"{folder}/".startswith(f"{top}/"):
            raise OSError(errno.ENOENT, "the caller's working folder is not below his root")
        value = f"{folder[len(top) :]}/{value}"
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _openat2(base, value)
    finally:
        os.close(base)
    try:
        name = os.readlink(f"/proc/self/fd/{found}")  # noqa: PTH115
        try:
            if os.path.samestat(os.stat(name), os.fstat(found)):  # noqa: PTH116
                return name
        except OSError:
            pass
        # on a mount that we do not see: it is there for as long as he is
        return f"{root}{name}"
    finally:
        os.close(found)


def _openat2(base: int, path: str) -> int:
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT)
    fd = _libc.syscall(SYS_OPENAT2, base, os.fsencode(path), how, _OPEN_HOW.size)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(fd)
