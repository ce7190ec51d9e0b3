"""struct dm_ioctl, its commands and its flags, as <linux/dm-ioctl.h> lays them out (little-endian hosts).

A buffer is the header, its 312 bytes padded to a multiple of 8, and a payload that begins at ``data_start``.
Everything in a buffer was written by somebody else: it is checked before it is used, and what does not hold
raises OSError with EINVAL.
"""

from __future__ import annotations

import os
from errno import EINVAL
from struct import Struct

VERSION = (4, 47, 0)
"""What the driver answers: every client that was tried is satisfied by it."""

# Commands: _IOWR(0xfd, nr, struct dm_ioctl).
DM_VERSION = 0
DM_REMOVE_ALL = 1
DM_LIST_DEVICES = 2
DM_DEV_CREATE = 3
DM_DEV_REMOVE = 4
DM_DEV_RENAME = 5
DM_DEV_SUSPEND = 6
DM_DEV_STATUS = 7
DM_DEV_WAIT = 8
DM_TABLE_LOAD = 9
DM_TABLE_CLEAR = 10
DM_TABLE_DEPS = 11
DM_TABLE_STATUS = 12
DM_LIST_VERSIONS = 13
DM_TARGET_MSG = 14
DM_DEV_SET_GEOMETRY = 15
DM_DEV_ARM_POLL = 16
DM_GET_TARGET_VERSION = 17

# Flags.
READONLY = 1 << 0
SUSPEND = 1 << 1
EXISTS = 1 << 2
PERSISTENT_DEV = 1 << 3
STATUS_TABLE = 1 << 4
ACTIVE_PRESENT = 1 << 5
INACTIVE_PRESENT = 1 << 6
BUFFER_FULL = 1 << 8
SKIP_BDGET = 1 << 9
SKIP_LOCKFS = 1 << 10
NOFLUSH = 1 << 11
QUERY_INACTIVE = 1 << 12
UEVENT_GENERATED = 1 << 13
UUID = 1 << 14
SECURE_DATA = 1 << 15
DATA_OUT = 1 << 16
DEFERRED_REMOVE = 1 << 17
INTERNAL_SUSPEND = 1 << 18
IMA_MEASUREMENT = 1 << 19

NAME_LEN = 128
"""Bytes of a name's field, its NUL included."""
UUID_LEN = 129
TYPE_LEN = 16
"""Bytes of a target type's field, its NUL included."""

DATA_OFFSET = 305
"""Where the header's last member begins: a reply without a payload is this long."""
HEADER_SIZE = 312
"""sizeof(struct dm_ioctl), and where payloads begin in what this project writes."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Buffer: TypeAlias = "bytes | bytearray"
    """What came from a client: bytes, or a bytearray that is wiped when there were secrets in it."""

_HEADER = Struct("<3IIIIiIIIQ128s129s7x")
_VERSION = Struct("<3I")


def invalid(text: str) -> OSError:
    """What every decoder here raises."""
    return OSError(EINVAL, text)


def align(offset: int) -> int:
    """Round up to the 8 bytes that records in a payload are aligned to."""
    return (offset + 7) & ~7


def encode_dev(devno: tuple[int, int]) -> int:
    """A device number as dm_ioctl carries it (the kernel's huge_encode_dev)."""
    major, minor = devno
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12


def decode_dev(dev: int) -> tuple[int, int]:
    """(major, minor) of a number as dm_ioctl carries it."""
    return (dev & 0xFFF00) >> 8, (dev & 0xFF) | ((dev >> 12) & 0xFFF00)


def c_string(buffer: Buffer, start: int, what: str) -> tuple[str, int]:
    """The NUL-terminated string at ``start`` and the offset after its NUL."""
    if not 0 <= start < len(buffer):
        raise invalid(f"{what}: begins at byte {start} of {len(buffer)}")
    end = buffer.find(b"\0", start)
    if end < 0:
        raise invalid(f"{what}: no NUL before the buffer's end at byte {len(buffer)}")
    return os.fsdecode(bytes(buffer[start:end])), end + 1


def cut_string(raw: Buffer) -> str:
    """The string in a fixed field; one without a NUL is cut to leave room for it, as the kernel does."""
    return os.fsdecode(bytes(raw[:-1].partition(b"\0")[0]))


def terminated(text: str, what: str) -> bytes:
    """``text`` and a NUL."""
    raw = os.fsencode(text)
    if b"\0" in raw:
        raise invalid(f"{what} {text!r}: a NUL is not allowed")
    return raw + b"\0"


def fixed_string(text: str, room: int, what: str) -> bytes:
    """``text`` for a fixed field of ``room`` bytes, NUL included."""
    raw = os.fsencode(text)
    if len(raw) >= room or b"\0" in raw:
        raise invalid(f"{what} {text!r}: {len(raw)} bytes, allowed are {room - 1} without a NUL")
    return raw


class Header:
    """struct dm_ioctl. ``data_size`` is the whole buffer's, in bytes; ``dev`` is encoded (see encode_dev)."""

    __slots__ = (
        "version",
        "data_size",
        "data_start",
        "target_count",
        "open_count",
        "flags",
        "event_nr",
        "dev",
        "name",
        "uuid",
    )

    def __init__(
        self,
        *,
        version: tuple[int, int, int] = (4, 0, 0),
        data_size: int = HEADER_SIZE,
        data_start: int = HEADER_SIZE,
        target_count: int = 0,
        open_count: int = 0,
        flags: int = 0,
        event_nr: int = 0,
        dev: int = 0,
        name: str = "",
        uuid: str = "",
    ) -> None:
        self.version = version
        self.data_size = data_size
        self.data_start = data_start
        self.target_count = target_count
        self.open_count = open_count
        self.flags = flags
        self.event_nr = event_nr
        self.dev = dev
        self.name = name
        self.uuid = uuid

    def pack(self) -> bytes:
        """312 bytes."""
        return _HEADER.pack(
            *self.version,
            self.data_size,
            self.data_start,
            self.target_count,
            self.open_count,
            self.flags,
            self.event_nr,
            0,
            self.dev,
            fixed_string(self.name, NAME_LEN, "name"),
            fixed_string(self.uuid, UUID_LEN, "uuid"),
        )

    @classmethod
    def unpack(cls, buffer: Buffer) -> Header:
        """The header at the front of ``buffer``, which may lack its 7 bytes of padding."""
        if len(buffer) < DATA_OFFSET:
            raise invalid(f"dm_ioctl: {len(buffer)} bytes, at least {DATA_OFFSET} are needed")
        fields = _HEADER.unpack(buffer[:DATA_OFFSET] + bytes(HEADER_SIZE - DATA_OFFSET))
        return cls(
            version=fields[0:3],
            data_size=fields[3],
            data_start=fields[4],
            target_count=fields[5],
            open_count=fields[6],
            flags=fields[7],
            event_nr=fields[8],
            dev=fields[10],
            name=cut_string(fields[11]),
            uuid=cut_string(fields[12]),
        )

    def __repr__(self) -> str:
        return "Header(" + ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__) + ")"


def pack_version(version: tuple[int, int, int]) -> bytes:
    """The 12 bytes that are written back even when a command fails."""
    return _VERSION.pack(*version)


def unpack_version(buffer: Buffer) -> tuple[int, int, int]:
    if len(buffer) < _VERSION.size:
        raise invalid(f"version: {len(buffer)} bytes, {_VERSION.size} are needed")
    first, second, third = _VERSION.unpack(buffer[: _VERSION.size])
    return first, second, third
