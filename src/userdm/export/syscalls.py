"""System calls that Python has no function for. All of them release the interpreter while they wait."""

from __future__ import annotations

import ctypes
import os

# The new mount calls have the same numbers on every architecture.
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432

FSOPEN_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def fsopen(kind: str) -> int:
    """A descriptor on which a file system of this kind is put together."""
    fd: int = _libc.syscall(ctypes.c_long(_SYS_FSOPEN), ctypes.c_char_p(kind.encode()), ctypes.c_uint(FSOPEN_CLOEXEC))
    if fd < 0:
        _raise(f"fsopen {kind}")
    return fd


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    done = _libc.syscall(
        ctypes.c_long(_SYS_FSCONFIG),
        ctypes.c_int(fd),
        ctypes.c_uint(command),
        ctypes.c_char_p(None if key is None else key.encode()),
        ctypes.c_char_p(None if value is None else value.encode()),
        ctypes.c_int(0),
    )
    if done < 0:
        _raise(f"fsconfig {command} {key}={value}")


def fsmount(fd: int, attributes: int = 0) -> int:
    """Mount what ``fd`` describes, nowhere: the mount lives while the returned descriptor, or a file in it, does."""
    mount: int = _libc.syscall(
        ctypes.c_long(_SYS_FSMOUNT), ctypes.c_int(fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes)
    )
    if mount < 0:
        _raise("fsmount")
    return mount
