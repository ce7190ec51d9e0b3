"""A metadata block's envelope: checksum and block number, per kind of block."""

from __future__ import annotations

import errno
import struct
import sys
from typing import ClassVar

from crc32c import crc32c

if sys.byteorder != "little":  # pragma: no cover - memoryview.cast knows only the machine's own byte order
    raise ImportError("userdm reads the little-endian metadata in place and needs a little-endian machine")

BLOCK_SIZE = 4096
"""Bytes in a metadata block."""

# Each kind of block mixes its own constant into the checksum, so that no kind passes for another.
SUPERBLOCK_SALT = 160774
NODE_SALT = 121107
BITMAP_SALT = 240779
INDEX_SALT = 160478

_CHECKSUM = struct.Struct("<I")
_BLOCKNR = struct.Struct("<Q")
_BLOCKNR_AT = 8


def corrupt(blocknr: int, text: str) -> OSError:
    """The error for a block whose contents cannot be right."""
    return OSError(errno.EILSEQ, f"metadata block {blocknr}: {text}")


def checksum(buffer: memoryview | bytes | bytearray, salt: int) -> int:
    """Of everything after the checksum field itself."""
    return crc32c(memoryview(buffer)[4:]) ^ 0xFFFFFFFF ^ salt


def seal(buffer: bytearray, blocknr: int, salt: int) -> None:
    """Write block number and checksum into a block that is about to go to disk."""
    _BLOCKNR.pack_into(buffer, _BLOCKNR_AT, blocknr)
    _CHECKSUM.pack_into(buffer, 0, checksum(buffer, salt))


def verify(buffer: bytearray, blocknr: int, salt: int, kind: str) -> None:
    """Raise OSError unless the block is intact, of this kind, and the one that was asked for."""
    found = _BLOCKNR.unpack_from(buffer, _BLOCKNR_AT)[0]
    if found != blocknr:
        raise OSError(errno.ENOTBLK, f"metadata block {blocknr}: {kind} says that it is block {found}")
    found, wanted = _CHECKSUM.unpack_from(buffer)[0], checksum(buffer, salt)
    if found != wanted:
        raise corrupt(blocknr, f"checksum of the {kind} is {found:#010x}, expected {wanted:#010x}")


class Block:
    """4096 bytes in memory. Subclasses know what is in them."""

    __slots__ = ("blocknr", "buffer")

    salt: ClassVar[int]
    kind: ClassVar[str]

    def __init__(self, blocknr: int, buffer: bytearray) -> None:
        self.blocknr = blocknr
        self.buffer = buffer

    def check(self) -> None:
        """Raise OSError unless the block, just read, is what it should be."""
        verify(self.buffer, self.blocknr, self.salt, self.kind)

    def finish(self) -> None:
        """Make the buffer what goes to disk. The block does not change any more."""
        seal(self.buffer, self.blocknr, self.salt)
