"""The process that writes down and switches what the kernel caches: `python -m userdm.export.cache_helper FD`.

Each of these calls waits for requests that its master serves. In the master itself the calls would outlive its
death: a process that is killed is gone only when its system calls have ended and its files are closed, and closing a
file with dirty pages writes them down. So nothing of the kind is ever open there.

A session is given the mount of one device's FUSE file. A call holds the file's lock (flock), and does nothing when its
asker is gone: who comes after him makes sure, with a call of his own, that nothing of his goes on.

Messages are JSON, one in each packet: ``{"call": "down" | "up" | "sync" | "resize", "loop": index, "size": bytes}``;
answered with ``{"errno": 0, "lost": false}``, or the number and a ``text``. ``lost``: something that was cached could
not be written down.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import threading
from typing import Any

from userdm.export import mount
from userdm.export.helper import arrivals, hung_up, receive, send
from userdm.export.loop import set_direct

_SYS_CACHESTAT = 451
_CACHESTAT = struct.Struct("=QQQQQ")
"""struct cachestat: pages that are cached, dirty, being written, and two of those that were"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _cached_pages(fd: int) -> int:
    """How many pages of the file are cached. ENOSYS before Linux 6.5."""
    whole = ctypes.create_string_buffer(bytes(16))
    found = ctypes.create_string_buffer(_CACHESTAT.size)
    if _libc.syscall(ctypes.c_long(_SYS_CACHESTAT), ctypes.c_int(fd), whole, found, ctypes.c_uint(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel does not say what is cached: {os.strerror(number)}")
    return int(_CACHESTAT.unpack(found)[0])


def _forget(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync(fd: int) -> bool:
    """False when something is lost."""
    try:
        os.fsync(fd)
    except OSError:
        return False
    return True


def down(fd: int, loop: int) -> bool:
    """Go direct, with everything written down; False when something is lost.

    The driver writes down before it switches, and tells nobody of an error: the file was opened before that, so that
    we hear of it. What is written while it switches is cached still.
    """
    set_direct(loop, direct=True)
    done = _sync(fd)
    _forget(fd)
    return done


def up(fd: int, loop: int) -> None:
    """Go cached, with nothing in the cache that is from before: EBUSY when there is."""
    _forget(fd)
    pages = _cached_pages(fd)
    if pages:
        raise OSError(errno.EBUSY, f"{pages} pages from before are still cached")
    set_direct(loop, direct=False)


def _do(request: dict[str, Any], mounted: int, asker: socket.socket) -> bool:
    fd = mount.open_in(mounted, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if hung_up(asker):
            return True
        match request["call"]:
            case "down":
                return down(fd, request["loop"])
            case "up":
                up(fd, request["loop"])
            case "sync":
                return _sync(fd)
            case "resize":
                if os.fstat(fd).st_size != request["size"]:
                    os.ftruncate(fd, request["size"])
    finally:
        os.close(fd)
    return True


def serve(asker: socket.socket, mounted: int) -> None:
    """One session: until the asker is gone."""
    with asker:
        while (request := receive(asker)) is not None:
            try:
                send(asker, {"errno": 0, "lost": not _do(request, mounted, asker)})
            except OSError as error:
                send(asker, {"errno": error.errno or errno.EIO, "text": error.strerror or str(error)})
        os.close(mounted)


def main() -> None:
    for asker, fds in arrivals(int(sys.argv[1])):
        threading.Thread(target=serve, args=(asker, fds[0])).start()


if __name__ == "__main__":
    main()
