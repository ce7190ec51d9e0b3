"""The part of the kernel's FUSE protocol that one fixed file needs: numbers and layouts of <linux/fuse.h>.

Everything is in the machine's own byte order. Offsets and sizes are bytes.
"""

from __future__ import annotations

import struct
from enum import IntEnum

VERSION = 7
OLDEST_MINOR = 31
NEWEST_MINOR = 40
"""The newest minor whose structures are written here; 40 is the one that brought FUSE_HAS_RESEND."""

ROOT_ID = 1
MAX_WRITE = 1 << 20
MAX_PAGES = 256


class Op(IntEnum):
    """Request codes; any other is answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    LSEEK = 46
    STATX = 52


# INIT flags, as one number of 64 bits: the high half is flags2, there when INIT_EXT is set.
ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
WRITEBACK_CACHE = 1 << 16
ASYNC_DIO = 1 << 15
MAX_PAGES_FLAG = 1 << 22
INIT_EXT = 1 << 30
HAS_RESEND = 1 << 39

OPENED_DIRECT_IO = 1 << 0
"""FOPEN_DIRECT_IO: nothing of the file is kept in the page cache."""
OPENED_KEEP_CACHE = 1 << 1
"""FOPEN_KEEP_CACHE: otherwise each open(2) drops what is cached, and writes down what is dirty, page by page."""
OPENED_PARALLEL_DIRECT_WRITES = 1 << 6
"""FOPEN_PARALLEL_DIRECT_WRITES: writers need not wait for each other."""

SETATTR_SIZE = 1 << 3

FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10

IN_HEADER = struct.Struct("=IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding"""
OUT_HEADER = struct.Struct("=IiQ")
"""len, error (0 or a negated errno), unique"""
NOTIFY_RESEND = 7
"""In place of the error, with unique 0: take what was read and not answered as if it had not been read."""
TRANSFER_IN = struct.Struct("=QQIIQII")
"""READ and WRITE: fh, offset, size, flags, lock_owner, file flags, padding"""
HOT = struct.Struct("=IIQ32xQI")
"""What the hot path needs of a header and a TRANSFER_IN behind it: len, opcode, unique, offset, size"""
WRITE_OUT = struct.Struct("=IiQII")
"""OUT_HEADER, then size, padding"""

INIT_IN = struct.Struct("=IIII")
"""major, minor, max_readahead, flags; since 7.36 flags2 and eleven unused words follow"""
INIT_FLAGS2 = struct.Struct("=16xI")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2"""

ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
"""ino, size, blocks, atime, mtime, ctime, their three nsec, mode, nlink, uid, gid, rdev, blksize, flags"""
ATTR_VALID = struct.Struct("=QII")
"""attr_valid seconds and nanoseconds, padding; then ATTR"""
SETATTR_IN = struct.Struct("=IIQQ")
"""valid, padding, fh, size; what follows is of no interest"""
SETATTR_SIZE_OF = 88
OPEN_IN = struct.Struct("=II")
"""flags, open_flags"""
OPEN_OUT = struct.Struct("=QII")
"""fh, open_flags, padding"""
RELEASE_IN = struct.Struct("=QIIQ")
"""fh, flags, release_flags, lock_owner"""
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding"""
FALLOCATE_IN = struct.Struct("=QQQII")
"""fh, offset, length, mode, padding"""
INTERRUPT_IN = struct.Struct("=Q")
"""the unique of the request that is to be given up"""

HEADER_ROOM = IN_HEADER.size + TRANSFER_IN.size
"""Bytes before the data of a WRITE request."""
