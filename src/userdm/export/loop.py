"""Loop devices over files that we serve: reserved by number, bound at once, sized later. Sizes are bytes.

Every call here may make the kernel ask our own FUSE threads: it must come from a thread that serves nothing and
holds no lock that serving needs. All waiting is done in ioctl(2), open(2) and close(2), which release the interpreter.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOP_CONTROL = "/dev/loop-control"
FIRST_INDEX = 16384
"""Far above what people and moby's search for a free device pick; less where partitions take minors."""
LAST_MINOR = (1 << 20) - 1

LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_SET_CAPACITY = 0x4C07
LOOP_SET_DIRECT_IO = 0x4C08
LOOP_SET_BLOCK_SIZE = 0x4C09
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81
BLKROSET = 0x125D
BLKFLSBUF = 0x1261
BLKDISCARD = 0x1277

LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

INFO = struct.Struct("=QQQQQIIII64s64s32s2Q")
"""struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt_type, encrypt_key_size, flags,
file_name, crypt_name, encrypt_key, init"""
INFO_FLAGS = 8
INFO_NAME = 9
CONFIG = struct.Struct(f"=II{INFO.size}s64x")
"""struct loop_config: fd, block_size, info, reserved"""
BLOCK_SIZE = 512
UNSIZED_BLOCK_SIZE = 4096
"""Until a device gets its first size: the change to 512 is what makes the driver look at the file's limits again."""
LOCK_SECONDS = 3.0
PATIENCE = 3.0
"""Seconds for a closer who is just under way."""


def _sys(index: int) -> Path:
    return Path(f"/sys/block/loop{index}")


def _part_shift() -> int:
    """By how many bits a loop device's minor is its index shifted (module parameter max_part)."""
    try:
        return int(Path("/sys/module/loop/parameters/max_part").read_text()).bit_length()
    except (OSError, ValueError):
        return 0


@contextmanager
def _opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _control() -> Iterator[int]:
    """The control node, locked: a number and its node in /dev come and go together, for every daemon's threads."""
    with _opened(LOOP_CONTROL, os.O_RDWR) as control:
        fcntl.flock(control, fcntl.LOCK_EX)
        yield control


class Taken(OSError):
    """Whoever looked for a free loop device has found one that we had added and not bound yet: it is his."""


class LoopDevice:
    """A loop device that is ours, from its reservation to its removal."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.node = f"/dev/loop{index}"
        self._made_readonly = False
        major, _, minor = (_sys(index) / "dev").read_text().strip().partition(":")
        self.devno = int(major), int(minor)
        self._make_node()

    @classmethod
    def reserve(cls, minor: int | None = None) -> LoopDevice:
        """Add a device: of this minor number, or the first free one of ours. EBUSY when ``minor`` is taken."""
        shift = _part_shift()
        if minor is not None:
            if not 0 <= minor <= LAST_MINOR or minor & ((1 << shift) - 1):
                raise OSError(
                    errno.EINVAL, f"minor {minor}: a loop device's is 0 to {LAST_MINOR} in steps of {1 << shift}"
                )
            try:
                return cls._add(minor >> shift)
            except FileExistsError:
                raise OSError(errno.EBUSY, f"minor {minor} is taken by /dev/loop{minor >> shift}") from None
        limit = (LAST_MINOR + 1) >> shift
        for index in range(min(FIRST_INDEX, limit // 2), limit):
            if _sys(index).exists():
                continue
            try:
                return cls._add(index)
            except FileExistsError:
                continue  # somebody was quicker
        raise OSError(errno.ENOSPC, "no loop device number is free")

    @classmethod
    def _add(cls, index: int) -> LoopDevice:
        with _control() as control:
            fcntl.ioctl(control, LOOP_CTL_ADD, index)
            return cls(index)

    @classmethod
    def adopt(cls, index: int) -> LoopDevice:
        """One that a process before this one has reserved; it is there again if that was about to take it away.

        EBUSY when somebody else has the number by now.
        """
        with suppress(FileExistsError):
            return cls._add(index)
        with suppress(FileNotFoundError):
            # of ours the file is all that there is in its mount
            if (_sys(index) / "loop/backing_file").read_text().strip() != "/":
                raise OSError(errno.EBUSY, f"/dev/loop{index} belongs to somebody else by now")
        return cls(index)

    def _make_node(self) -> None:
        """devtmpfs makes the node, and udev gives it away as every disk; where neither runs it is up to us."""
        rdev = os.makedev(*self.devno)
        node = Path(self.node)
        try:
            info = node.stat()
            if not stat.S_ISBLK(info.st_mode) or info.st_rdev != rdev:
                node.unlink()
                raise FileNotFoundError
        except FileNotFoundError:
            os.mknod(node, stat.S_IFBLK | 0o600, rdev)
        try:
            group = grp.getgrnam("disk").gr_gid
        except KeyError:
            group = 0
        os.chown(node, 0, group)
        node.chmod(0o660)

    def bind(self, file: int, tag: str) -> None:
        """Bind it to an open file, for direct I/O. The tag is there for whoever clears up after us."""
        info = INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, LO_FLAGS_DIRECT_IO, tag.encode()[:63], b"", b"", 0, 0)
        try:
            with _opened(self.node, os.O_RDWR) as fd:
                fcntl.ioctl(fd, LOOP_CONFIGURE, CONFIG.pack(file, UNSIZED_BLOCK_SIZE, info))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Taken(errno.EBUSY, f"{self.node} was bound by somebody else first") from None
            if error.errno in (errno.ENXIO, errno.ENOENT):
                # by who clears up after a daemon that died with a device of this number
                raise Taken(errno.EBUSY, f"{self.node} was removed by somebody else first") from None
            raise
        if not self.direct:
            raise OSError(errno.EOPNOTSUPP, f"{self.node}: the kernel does no direct I/O to a FUSE file")

    def take_limits(self, block_size: int) -> None:
        """Set the logical block, and have the driver ask for the file's discard granularity, which it does only for
        a change. EBUSY or EAGAIN when somebody uses the device."""
        with _opened(self.node, os.O_RDWR) as fd:
            now = self.block_size
            if now == block_size:
                fcntl.ioctl(fd, LOOP_SET_BLOCK_SIZE, BLOCK_SIZE if now != BLOCK_SIZE else UNSIZED_BLOCK_SIZE)
            fcntl.ioctl(fd, LOOP_SET_BLOCK_SIZE, block_size)

    def forget_discards(self) -> None:
        """Have the driver find out that the file takes no discards. It drops what is cached of the first block: for a
        new device only. Newer drivers then say so in sysfs, older ones go on asking."""
        with suppress(OSError), _opened(self.node, os.O_RDWR) as fd:
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", 0, UNSIZED_BLOCK_SIZE))

    @property
    def readonly(self) -> bool:
        try:
            return (_sys(self.index) / "ro").read_text() == "1\n"
        except OSError:
            return False  # it is just being taken away

    @property
    def bound(self) -> bool:
        return (_sys(self.index) / "loop/backing_file").exists()

    @property
    def goes_with_last_close(self) -> bool:
        with suppress(OSError):
            return (_sys(self.index) / "loop/autoclear").read_text().strip() == "1"
        return False

    def has_size(self) -> bool:
        return (_sys(self.index) / "size").read_text().strip() != "0"

    @property
    def block_size(self) -> int:
        return int((_sys(self.index) / "queue/logical_block_size").read_text())

    def take_size(self, readonly: bool | None) -> None:
        """Have the driver ask for the file's size, and set or clear the read-only flag, or leave it alone.

        What somebody else has made read-only stays so.
        """
        with _opened(self.node) as fd:
            if readonly is not None and (readonly or self._made_readonly or not self.readonly):
                self._made_readonly = readonly
                fcntl.ioctl(fd, BLKROSET, struct.pack("=i", readonly))
            fcntl.ioctl(fd, LOOP_SET_CAPACITY)

    @property
    def direct(self) -> bool:
        return is_direct(self.index)

    def is_claimed(self) -> bool:
        """Whether a mount, or another exclusive holder, has it: plain openers are not seen."""
        try:
            with _opened(self.node, os.O_RDONLY | os.O_EXCL):
                return False
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENXIO, errno.ENOENT):
                return error.errno == errno.EBUSY  # or it is just being taken away
            raise

    def unbind(self, *, when_closed: bool = False) -> None:
        """Take the file away. In use: EBUSY, and nothing has changed; ``when_closed``: then by its last close."""
        with _opened(self.node) as fd:
            _lock(fd)
            unbind(fd, self.node, when_closed=when_closed)

    def stay(self) -> None:
        """Take the mark back that has the last close unbind it. EBUSY when that has happened."""
        fd = os.open(self.node, os.O_RDONLY | os.O_CLOEXEC)  # with this, it cannot happen any more
        if not self.bound:
            os.close(fd)
            raise OSError(errno.EBUSY, f"{self.node} is being removed")
        # The driver holds the queue for it: requests that wait for a resume, too. Nobody waits for those here.
        thread = threading.Thread(target=_clear_mark, args=(fd,), name="stay", daemon=True)
        thread.start()
        thread.join(PATIENCE)

    def delete(self, patience: float) -> None:
        """Remove the unbound device. OSError EBUSY when somebody has it open for longer than ``patience`` seconds."""
        delete(self.index, patience)


def _lock(fd: int) -> None:
    """Keep udev, which honours this lock, from opening the device under our hands."""
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.02)
    # somebody holds it for good: the kernel's own count of openers decides


def is_direct(index: int) -> bool:
    """Whether it does direct I/O."""
    return (_sys(index) / "loop/dio").read_text().strip() == "1"


def set_direct(index: int, *, direct: bool) -> None:
    """Switch direct I/O, while requests flow: those under way end first."""
    with _opened(f"/dev/loop{index}") as fd:
        fcntl.ioctl(fd, LOOP_SET_DIRECT_IO, int(direct))
    if is_direct(index) is not direct:
        raise OSError(errno.EIO, f"/dev/loop{index}: direct I/O is not as it was set")


def status(fd: int) -> list[int | bytes] | None:
    """The fields of struct loop_info64; None when nothing is bound."""
    try:
        return list(INFO.unpack(fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(INFO.size))))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def unbind(fd: int, name: str, *, when_closed: bool = False) -> None:
    """Unbind the open loop device ``fd`` when it is open nowhere else; otherwise EBUSY, and it stays as it was.

    In use, the driver only marks the device to be unbound by its last close; that mark is taken back, or
    left there for ``when_closed``.
    """
    try:
        fcntl.ioctl(fd, LOOP_CLR_FD)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return
        raise
    if when_closed:
        return
    if take_mark_back(fd):
        raise OSError(errno.EBUSY, f"{name} is in use")


def take_mark_back(fd: int) -> bool:
    """The open loop device is not to be unbound by its last close. False when nothing is bound."""
    info = status(fd)
    if info is None:
        return False
    flags = info[INFO_FLAGS]
    assert isinstance(flags, int)
    info[INFO_FLAGS] = flags & ~LO_FLAGS_AUTOCLEAR
    fcntl.ioctl(fd, LOOP_SET_STATUS64, INFO.pack(*info))
    return True


def _clear_mark(fd: int) -> None:
    try:
        take_mark_back(fd)
    finally:
        os.close(fd)


def delete(index: int, patience: float = PATIENCE) -> None:
    """Remove an unbound loop device and its node. EBUSY when it is still open after ``patience`` seconds."""
    node = Path(f"/dev/loop{index}")
    deadline = time.monotonic() + patience
    while True:
        try:
            with _control() as control:
                with suppress(FileNotFoundError):
                    fcntl.ioctl(control, LOOP_CTL_REMOVE, index)
                if not _sys(index).exists():
                    node.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENODEV) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
