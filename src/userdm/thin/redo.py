"""The redo log of a pool: what was changed since the last commit, for the process that comes after this one.

It lies in memory that a keeper holds (memfds), and survives the process, not the machine. Each change of the metadata
is appended in the order in which it was made, under the pool's lock, before anybody is told that it was made.

Two segments, a memfd each. A segment begins with a MARK, which has the digest of a superblock: what follows was done
on top of the state that this superblock describes. When a commit is sealed, the other segment starts anew with the
digest of the superblock that is about to be written; when the next one is sealed, that commit is durable, and the
first segment is used again. So whichever of the two superblocks a successor finds, what came after it is there.

A record is RECORD bytes: checksum, kind, sequence number, four words. A segment ends at the first record that does
not hold, or does not follow the one before it: a torn one, or what is left of an earlier use.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple

from crc32c import crc32c

RECORD = 48
START = 64 << 10
"""Bytes of a new segment; it doubles when it is full."""
LIMIT = 256 << 20
"""Bytes that a segment may have: five million changes between two commits."""
SPARE = 4
"""Records that there is always room for, so that what cannot be refused need not be."""
FORMAT = "userdm redo log 1"
"""The note beside the descriptors; another one is not ours to read."""

_BODY = struct.Struct("<IQQQQQ")
_CHECKSUM = struct.Struct("<I")
_WORDS = struct.Struct("<4Q")
_CHUNK = RECORD * 16384


class Kind(IntEnum):
    """What a record says; its words in the order given."""

    MARK = 1
    """The digest of a superblock, in all four words."""
    MAP = 2
    """device, virtual block, data block, number of blocks"""
    UNMAP = 3
    """device, first virtual block, last virtual block"""
    CREATE_THIN = 4
    """device"""
    CREATE_SNAP = 5
    """device, origin"""
    DELETE = 6
    """device"""
    TRANSACTION_ID = 7
    """old, new"""
    RESERVE = 8
    RELEASE = 9
    RESIZE_DATA = 10
    """blocks"""
    RESIZE_METADATA = 11
    """blocks"""
    NEEDS_CHECK = 12
    FAILED = 13
    """Nothing may be changed any more: a flush or a commit failed, and what it was to make durable may be lost."""


class Record(NamedTuple):
    kind: int
    sequence: int
    words: tuple[int, int, int, int]


def digest(superblock: bytes | bytearray) -> tuple[int, int, int, int]:
    """What tells one commit from the next. Checksum and flags are left out: needs_check may be set on its own."""
    words: tuple[int, int, int, int] = _WORDS.unpack(hashlib.blake2b(superblock[8:512], digest_size=32).digest())
    return words


class Segment:
    """One memfd, filled from the start."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("userdm-redo", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, START)
            # nobody can take the memory away under our feet, which would be a SIGBUS
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self.map = mmap.mmap(self.fd, START)
        except BaseException:
            os.close(self.fd)
            raise
        self.at = 0
        self.size = START

    def grow(self) -> None:
        """Twice the size. The memory is allocated here: storing into it cannot fail."""
        size = 2 * self.size
        if size > LIMIT:
            raise OSError(errno.ENOMEM, f"the redo log has {self.size} bytes for one commit, allowed are {LIMIT}")
        try:
            os.posix_fallocate(self.fd, self.size, self.size)
            self.map.resize(size)
        except (OSError, SystemError) as error:
            raise OSError(errno.ENOMEM, f"the redo log cannot grow to {size} bytes: {error}") from error
        self.size = size

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class RedoLog:
    """The side that writes. Every method wants the pool's lock."""

    def __init__(self, superblock: bytes | bytearray) -> None:
        """A log of what will be done on top of the superblock that is on disk."""
        self._sequence = 1
        self._now = Segment()
        try:
            self._other = Segment()
        except BaseException:
            self._now.close()
            raise
        self._put(Kind.MARK, *digest(superblock))

    @property
    def fds(self) -> Sequence[int]:
        """For the keeper."""
        return self._now.fd, self._other.fd

    def make_room(self) -> None:
        """ENOMEM unless the next change can be appended. Asked before it is made."""
        now = self._now
        if now.at + SPARE * RECORD > now.size:
            now.grow()

    def append(self, kind: Kind, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> None:
        """A change was made. `make_room` was asked."""
        now = self._now
        if now.at + RECORD > now.size:
            now.grow()
        self._put(kind, a, b, c, d)

    def _put(self, kind: int, a: int, b: int, c: int, d: int) -> None:
        now = self._now
        body = _BODY.pack(kind, self._sequence, a, b, c, d)
        at = now.at
        now.map[at : at + RECORD] = _CHECKSUM.pack(crc32c(body)) + body
        now.at = at + RECORD
        self._sequence += 1

    def mark(self, superblock: bytes) -> None:
        """A commit is sealed, and the one before it is durable: what follows is on top of this superblock."""
        self._now, self._other = self._other, self._now
        self._now.at = 0
        self._put(Kind.MARK, *digest(superblock))

    def failed(self) -> None:
        """Whoever comes after us may not change anything either."""
        with suppress(OSError):
            self.append(Kind.FAILED)

    def close(self) -> None:
        self._now.close()
        self._other.close()


# the side that reads: what a process before us left is checked like anything that comes from outside


def _records(fd: int) -> Iterator[Record]:
    """A segment's records, as far as they hold."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size > LIMIT:
        raise OSError(errno.EIO, f"redo log: {info.st_size} bytes, at most {LIMIT} in memory are expected")
    sequence: int | None = None
    for start in range(0, info.st_size, _CHUNK):
        chunk = os.pread(fd, _CHUNK, start)
        for at in range(0, len(chunk) - RECORD + 1, RECORD):
            body = chunk[at + _CHECKSUM.size : at + RECORD]
            if _CHECKSUM.unpack_from(chunk, at)[0] != crc32c(body):
                return
            kind, number, *words = _BODY.unpack(body)
            if number == 0 or (sequence is not None and number != sequence + 1):
                return
            sequence = number
            yield Record(kind, number, tuple(words))


def changes_since(superblock: bytes | bytearray, fds: Sequence[int]) -> list[Record]:
    """What was done on top of the superblock that is on disk. EIO when the log does not know it."""
    segments = [records for records in (list(_records(fd)) for fd in fds) if records]
    segments.sort(key=lambda records: records[0].sequence)
    found = digest(superblock)
    out: list[Record] | None = None
    after = 0
    for records in segments:
        first, *rest = records
        if first.kind != Kind.MARK:
            raise OSError(errno.EIO, f"redo log: a segment begins with a record of kind {first.kind}, expected a mark")
        if first.words == found:
            out = []
        elif out is not None and first.sequence != after:
            raise OSError(errno.EIO, f"redo log: record {first.sequence} follows, expected {after}")
        if out is not None:
            out += rest
        after = records[-1].sequence + 1
    if out is None:
        raise OSError(
            errno.EIO,
            "the redo log of the process before does not belong to what is on the metadata device: "
            "somebody else has changed it since",
        )
    return out
