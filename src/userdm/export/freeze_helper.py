"""The process that freezes file systems: `python -m userdm.export.freeze_helper FD`.

It serves no device, so it can wait for one that is served; and it thaws everything when the process that
asked is gone. ``FD`` is a socket on which sockets arrive, one for each freeze: a `Session`. A session ends, and its
file systems are thawed, when the asker says so or when its socket closes.

Messages are JSON, one in each packet. From the asker: ``{"devices": [[[major, minor], node], ...]}``, then ``{}`` to
thaw; or ``{"thaw": [[major, minor], ...]}``, super blocks that a helper before this one had frozen. To the asker:
``{"frozen": [major, minor]}`` *before* each super block is frozen, ``{"held": [major, minor]}`` if there is nothing to
thaw afterwards (somebody else had frozen it), and at the end ``{}`` or ``{"errno": number, "text": why}``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import sys
import threading

from userdm.export import holders, mountinfo
from userdm.export.freeze_plan import Devno, FreezeStep, SyncStep, plan
from userdm.export.helper import arrivals, receive, send
from userdm.export.mountinfo import Mount

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
SYNC_FILE_RANGE_WRITE_AND_WAIT = 7

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class _Superblocks:
    """What is frozen by us, counted: two freezes may have a file system in common."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._each: dict[Devno, _Superblock] = {}

    def __getitem__(self, number: Devno) -> _Superblock:
        with self._lock:
            return self._each.setdefault(number, _Superblock())


class _Superblock:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.fd = -1

    def freeze(self, fd: int, point: str) -> bool:
        """Take over ``fd``, and freeze the file system that it is on; False when somebody else had done it."""
        with self.lock:
            if self.count == 0:
                try:
                    if not _freeze(fd, point):
                        os.close(fd)
                        return False
                except BaseException:
                    os.close(fd)
                    raise
                self.fd = fd
            else:
                os.close(fd)
            self.count += 1
            return True

    def thaw(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                _thaw(self.fd)
                os.close(self.fd)


def _freeze(fd: int, point: str) -> bool:
    """False when there is nothing for us to thaw."""
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno != errno.EOPNOTSUPP:
            raise OSError(error.errno, f"cannot freeze {point}: {error.strerror}") from None
    # a file system that cannot be frozen is at least written down
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot sync {point}: {os.strerror(number)}")
    return False


def _thaw(fd: int) -> None:
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # somebody else has thawed it
            print(f"freeze_helper: cannot thaw: {error}", file=sys.stderr, flush=True)


def _reopened(path: str, mount_id: int | None) -> int | None:
    """A descriptor of the file or folder that ``path`` leads to; None when it is on another mount than expected.

    Found without opening it first: a path in somebody else's namespace may lead to anything.
    """
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            return None
        if mount_id is not None and _mount_id(found) != mount_id:
            return None
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    finally:
        os.close(found)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return -1


def reach(superblock: Devno, mounts: tuple[Mount, ...]) -> int | None:
    """A descriptor on the file system, through one of its mounts, or through what a process has open in it."""
    for mount in mounts:
        fd = _reopened(mount.path, mount.id)
        if fd is not None:
            return fd
    for path in holders.paths_in(superblock):
        fd = _reopened(path, None)
        if fd is not None:
            if os.fstat(fd).st_dev == os.makedev(*superblock):
                return fd
            os.close(fd)
    return None


class Session(threading.Thread):
    """One freeze, until it is thawed."""

    def __init__(self, asker: socket.socket, superblocks: _Superblocks) -> None:
        super().__init__(daemon=False)
        self._asker = asker
        self._superblocks = superblocks
        self._frozen: list[_Superblock] = []

    def run(self) -> None:
        with self._asker:
            try:
                request = receive(self._asker)
                if request is None:
                    return
                if "thaw" in request:
                    self._thaw_others([_devno(number) for number in request["thaw"]])
                else:
                    self._freeze([(_devno(number), node) for number, node in request["devices"]])
                    send(self._asker, {})
                    receive(self._asker)
            except OSError as error:
                self._thaw()
                send(self._asker, {"errno": error.errno or errno.EIO, "text": error.strerror or str(error)})
                return
            finally:
                self._thaw()
            send(self._asker, {})

    def _freeze(self, devices: list[tuple[Devno, str]]) -> None:
        for step in plan(devices):
            if isinstance(step, SyncStep):
                _sync(step.node)
            else:
                self._freeze_one(step)

    def _freeze_one(self, step: FreezeStep) -> None:
        fd = reach(step.superblock, step.mounts)
        if fd is None:
            if not step.mounts:
                return  # held by something else than a file system
            raise OSError(errno.EBUSY, f"cannot freeze {step.point}: it is hidden under another mount")
        send(self._asker, {"frozen": step.superblock})
        superblock = self._superblocks[step.superblock]
        if superblock.freeze(fd, step.point):
            self._frozen.append(superblock)
        else:
            send(self._asker, {"held": step.superblock})

    def _thaw(self) -> None:
        while self._frozen:
            self._frozen.pop().thaw()

    def _thaw_others(self, numbers: list[Devno]) -> None:
        mounts: dict[Devno, list[Mount]] = {}
        for mount in mountinfo.all_mounts():
            mounts.setdefault(mount.devno, []).append(mount)
        for number in reversed(numbers):
            fd = reach(number, tuple(mounts.get(number, ())))
            if fd is not None:
                _thaw(fd)
                os.close(fd)


def _devno(pair: list[int]) -> Devno:
    major, minor = pair
    return major, minor


def _sync(node: str) -> None:
    """Write what is cached of the block device, and no more: a flush is up to who suspends it, and would wait for ever
    where something below is suspended."""
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE_AND_WAIT) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot sync {node}: {os.strerror(number)}")
    finally:
        os.close(fd)


def main() -> None:
    superblocks = _Superblocks()
    for asker, _ in arrivals(int(sys.argv[1])):
        Session(asker, superblocks).start()
    # sessions see their own sockets close, thaw and end; the interpreter waits for them


if __name__ == "__main__":
    main()
