"""Storage in a regular file or on a block device.

One writer: a block device is opened with O_EXCL, a regular file under flock(LOCK_EX), and for a loop device
the file behind it is locked as well, so that a file and its loop device exclude each other.
I/O goes through the page cache, as it does under a plain loop device; ``flush`` is fdatasync(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from userdm.storage.sysfs import loop_backing_file, queue_limit

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
BLKSSZGET = 0x1268
BLKGETSIZE64 = 0x80081272
SECTOR = 512
ZEROS = bytes(1 << 20)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _device_size(fd: int) -> int:
    raw = fcntl.ioctl(fd, BLKGETSIZE64, bytes(8))
    return int(struct.unpack("=Q", raw)[0])


def _int_ioctl(fd: int, number: int) -> int:
    return int(struct.unpack("=i", fcntl.ioctl(fd, number, bytes(4)))[0])


class FileStorage:
    """A regular file or block device, opened for one owner. ``size`` is in bytes, read when asked for."""

    resolve: None = None

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        """Open and claim ``path``. A block device that is read-only may be opened for writing, as on the kernel; it
        is the write that fails.

        Raises OSError: ENOENT, EACCES, EBUSY when another owner has it, ENOTBLK for anything that is neither
        a regular file nor a block device.
        """
        self._begin(path, readonly, [])
        mode = os.stat(path).st_mode  # noqa: PTH116 - also names like /proc/self/fd/N
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise OSError(errno.ENOTBLK, "neither a block device nor a regular file", path)
        try:
            flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
            # O_EXCL without O_CREAT has a meaning for block devices only: claim it.
            self._fds.append(os.open(path, flags | (os.O_EXCL if stat.S_ISBLK(mode) else 0)))
            self._look()
            if not self.is_block:
                self._lock(self.fd, path)
            else:
                self._lock_behind_loop()
        except BaseException:
            self.close()
            raise

    @classmethod
    def adopt(cls, path: str, fds: Sequence[int], *, readonly: bool) -> FileStorage:
        """The storage that another process had open with these descriptors (its ``fds``), claims and all.

        ``path`` is a name and nothing else: it is not looked at.
        """
        storage = cls.__new__(cls)
        storage._begin(path, readonly, fds)
        storage._look()
        return storage

    def _begin(self, path: str, readonly: bool, fds: Sequence[int]) -> None:
        self.path = path
        self.readonly = readonly
        self._fds = list(fds)
        self.failed_flushes = 0
        """How often a flush has failed. The kernel tells an error of write-back to one fsync only, whoever asks."""

    def _look(self) -> None:
        info = os.fstat(self.fd)
        self.is_block = stat.S_ISBLK(info.st_mode)
        self.device = info.st_rdev if self.is_block else 0
        self.block_size = _int_ioctl(self.fd, BLKSSZGET) if self.is_block else SECTOR
        """Bytes: the device's logical block, on whose bounds a table's ranges must lie."""
        self.discards = not self.is_block or queue_limit(self.device, "discard_max_bytes") > 0
        """Whether a discard gives space back."""
        self.granularity = (queue_limit(self.device, "discard_granularity") if self.is_block else 0) or 4096
        """Bytes: what a discard gives back is in whole pieces of it."""
        self.identity = (info.st_rdev, 0) if self.is_block else (info.st_dev, info.st_ino)
        # pwrite and pread of the hot path, bound once
        self.fileno = self._fds[0]

    @property
    def fds(self) -> Sequence[int]:
        """What the claim hangs on: the storage itself, and for a loop device the file behind it."""
        return tuple(self._fds)

    @property
    def fd(self) -> int:
        return self._fds[0]

    @staticmethod
    def _lock(fd: int, path: str) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "in use: another program holds its lock", path) from None

    def _lock_behind_loop(self) -> None:
        backing = loop_backing_file(self.fd, self.device)
        if backing is None:
            return
        self._fds.append(os.open(backing, os.O_RDONLY | os.O_CLOEXEC))
        self._lock(self._fds[-1], backing)

    @property
    def size(self) -> int:
        size = _device_size(self.fd) if self.is_block else os.fstat(self.fd).st_size
        return size - size % SECTOR

    @property
    def max_discard(self) -> int | None:
        """Bytes that one discard can cover: 0 for a device that knows none, None where there is no limit."""
        return queue_limit(self.device, "discard_max_bytes") if self.is_block else None

    def read(self, offset: int, view: memoryview) -> None:
        done = os.preadv(self.fileno, [view], offset)
        while done < len(view):
            more = os.preadv(self.fileno, [view[done:]], offset + done)
            if more == 0:
                raise OSError(errno.EIO, f"storage ends before byte {offset + len(view)}", self.path)
            done += more

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        if self.readonly:
            raise OSError(errno.EROFS, "storage is read-only", self.path)
        done = os.pwrite(self.fileno, view, offset)
        if done == len(view):
            return
        rest = memoryview(view)
        while done < len(rest):
            more = os.pwrite(self.fileno, rest[done:], offset + done)
            if more == 0:
                raise OSError(errno.EIO, f"storage takes nothing at byte {offset + done}", self.path)
            done += more

    def flush(self) -> None:
        try:
            os.fdatasync(self.fileno)
        except OSError:
            self.failed_flushes += 1
            raise

    def discard(self, offset: int, length: int) -> None:
        self._deallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def zero(self, offset: int, length: int) -> None:
        self._deallocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)

    def _deallocate(self, mode: int, offset: int, length: int) -> None:
        if self.readonly:
            raise OSError(errno.EROFS, "storage is read-only", self.path)
        if length <= 0:
            return
        try:
            _fallocate(self.fileno, mode, offset, length)
            return
        except OSError as error:
            # EINVAL: a range on a block device that is not whole logical blocks
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS):
                raise
        while length > 0:
            piece = min(length, len(ZEROS))
            self.write(offset, memoryview(ZEROS)[:piece])
            offset, length = offset + piece, length - piece

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        self.fileno = -1


def open_storage(path: str | Path, *, readonly: bool = False) -> FileStorage:
    """Open and claim a regular file or a block device; see FileStorage for the errors."""
    return FileStorage(os.fspath(path), readonly=readonly)
