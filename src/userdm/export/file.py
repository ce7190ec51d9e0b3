"""The one file that a FUSE connection shows: what its requests mean for a backend.

Requests come from the kernel, but are read as if an enemy had written them: every length is checked before the
bytes behind it are believed. Offsets and sizes are bytes; clients of the file may use any, not sectors alone.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable

from userdm.dataplane import Backend, Worker
from userdm.export import protocol
from userdm.export.buffer import START, Buffer
from userdm.export.protocol import Op

MAX_BACKGROUND = 128
"""Requests that the kernel may have under way: as many as a loop device keeps in its queue."""
CONGESTED = 96
KEPT_SECONDS = 1 << 30
"""How long the kernel may keep attributes, with its writeback cache: it would ask for them at every write."""
BLOCK_SIZE = 4096

WANTED = (
    protocol.ASYNC_READ
    | protocol.ATOMIC_O_TRUNC
    | protocol.BIG_WRITES
    | protocol.ASYNC_DIO
    | protocol.MAX_PAGES_FLAG
    | protocol.INIT_EXT
    | protocol.HAS_RESEND
)
"""What is asked for where it is offered. ATOMIC_O_TRUNC: open(O_TRUNC), as dd and the shell do it, then comes as a
flag, and is ignored as a block device ignores it; as a SETATTR it could not be told from ftruncate(2)."""

_OPENED = protocol.OPENED_DIRECT_IO | protocol.OPENED_PARALLEL_DIRECT_WRITES

Answer = bytes | memoryview | None
"""A body; a view that has the answer's header room before it; None when there is no answer at all."""


class File:
    """Answers requests about a device. Of no size until ``activate``.

    Nothing here outlives a request but the list of openers: another process that is given the descriptor can
    go on where this one ended. FLUSH is not among the requests: nothing is kept that a close could write, and once
    it was answered with ENOSYS the kernel's close(2) no longer waits for us.
    """

    def __init__(
        self, backend: Backend, devno: tuple[int, int], owner: tuple[int, int], *, cacheable: bool = False
    ) -> None:
        """``cacheable``: the kernel may keep pages, and what is written in them; who opens the file decides."""
        self._backend = backend
        self._owner = owner
        self._inode = os.makedev(*devno)
        self._born = int(time.time())
        self._active = False
        self._openers: Counter[int] = Counter()
        self._openers_lock = threading.Lock()
        self.closed: Callable[[], None] | None = None
        """Called, in a thread of its own, when the last open file is closed."""
        self.size = 0
        self.readonly = False
        self.resend = False
        """Whether the kernel sends requests again that another process took and did not answer (6.9)."""
        self.unreported = False
        """Something that was written is lost, and the next flush must say so."""
        self._wanted = WANTED | (protocol.WRITEBACK_CACHE if cacheable else 0)
        self._cacheable = cacheable
        self._kept = KEPT_SECONDS if cacheable else 0
        self._opened = protocol.OPENED_KEEP_CACHE if cacheable else _OPENED
        self._answers: dict[int, Callable[[int, memoryview, Buffer, Worker], Answer]] = {
            Op.INIT: self._init,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.STATFS: self._statfs,
            Op.RELEASE: self._release,
            Op.FSYNC: self._fsync,
            Op.ACCESS: self._nothing,
            Op.DESTROY: self._nothing,
            Op.FALLOCATE: self._fallocate,
            Op.FORGET: self._silence,
            Op.BATCH_FORGET: self._silence,
        }

    def activate(self) -> None:
        """The backend has a table: show its size, and whether it may be written."""
        self._active = True
        self.refresh()

    def refresh(self) -> None:
        if self._active:
            self.size = self._backend.size
            self.readonly = self._backend.readonly

    def answer(self, buffer: Buffer, count: int, worker: Worker) -> Answer:
        """What to answer to the request of ``count`` bytes in the buffer. Raises OSError, or Parked."""
        length, opcode, _, node, _, _, pid, _, _ = protocol.IN_HEADER.unpack_from(buffer.memory, START)
        if length != count:
            raise OSError(errno.EIO, f"request of {length} bytes came as {count}")
        answer = self._answers.get(opcode)
        if answer is None:
            raise OSError(errno.ENOSYS, f"request {opcode} is not served")
        if node != protocol.ROOT_ID and opcode not in _WITHOUT_NODE:
            raise OSError(errno.ESTALE, f"node {node} is not known")
        try:
            return answer(pid, buffer.request[protocol.IN_HEADER.size : count], buffer, worker)
        except struct.error:
            raise OSError(errno.EIO, f"request {opcode} of {length} bytes is too short") from None

    def openers(self) -> list[tuple[int, bool]]:
        """(thread id that opened, for writing) of each open file."""
        with self._openers_lock:
            return [(handle & 0xFFFFFFFF, bool(handle >> 32)) for handle in self._openers.elements()]

    # -- one method for each request -------------------------------------------------------------------

    def _init(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        major, minor, readahead, flags = protocol.INIT_IN.unpack_from(body)
        if major > protocol.VERSION:
            # The kernel asks again, in the version that it is told.
            return protocol.INIT_OUT.pack(protocol.VERSION, protocol.NEWEST_MINOR, *(9 * [0]))
        if (major, minor) < (protocol.VERSION, protocol.OLDEST_MINOR):
            raise OSError(errno.EPROTO, f"FUSE {major}.{minor} is older than 7.{protocol.OLDEST_MINOR}")
        if flags & protocol.INIT_EXT:
            flags |= protocol.INIT_FLAGS2.unpack_from(body)[0] << 32
        flags &= self._wanted
        self.resend = bool(flags & protocol.HAS_RESEND)
        return protocol.INIT_OUT.pack(
            protocol.VERSION,
            min(minor, protocol.NEWEST_MINOR),
            readahead,
            flags & 0xFFFFFFFF,
            MAX_BACKGROUND,
            CONGESTED,
            protocol.MAX_WRITE,
            1,
            protocol.MAX_PAGES,
            0,
            flags >> 32,
        )

    def _attributes(self) -> bytes:
        self.refresh()
        mode = stat.S_IFREG | (0o400 if self.readonly else 0o600)
        times = 3 * (self._born,) + 3 * (0,)
        return protocol.ATTR_VALID.pack(self._kept, 0, 0) + protocol.ATTR.pack(
            self._inode, self.size, self.size // 512, *times, mode, 1, *self._owner, 0, BLOCK_SIZE, 0
        )

    def _getattr(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        return self._attributes()

    def _setattr(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        valid, _, _, size = protocol.SETATTR_IN.unpack_from(body)
        answer = self._attributes()
        if valid & protocol.SETATTR_SIZE and size != self.size:
            raise OSError(errno.EINVAL, f"the size is the table's: {self.size} bytes, not {size}")
        return answer

    def _open(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        flags, _ = protocol.OPEN_IN.unpack_from(body)
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        self.refresh()
        if writing and self.readonly and not self._cacheable:
            raise OSError(errno.EACCES, "the device is read-only")
        handle = pid | writing << 32
        with self._openers_lock:
            self._openers[handle] += 1
        return protocol.OPEN_OUT.pack(handle, self._opened, 0)

    def _release(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        handle = protocol.RELEASE_IN.unpack_from(body)[0]
        with self._openers_lock:
            if self._openers[handle] > 1:
                self._openers[handle] -= 1
            else:
                del self._openers[handle]
            closed = self.closed if not self._openers else None
        if closed is not None:
            threading.Thread(target=closed, name="closed", daemon=True).start()
        return b""

    def _room(self, offset: int, size: int) -> int:
        """How many of ``size`` bytes at ``offset`` exist."""
        if offset + size > self.size:
            self.refresh()
        return max(0, min(size, self.size - offset))

    def _check_writable(self) -> None:
        if self.readonly:
            raise OSError(errno.EPERM, "the device is read-only")

    def _read(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        _, offset, size, *_ = protocol.TRANSFER_IN.unpack_from(body)
        if size > buffer.capacity:
            raise OSError(errno.EINVAL, f"read of {size} bytes, at most {buffer.capacity} were agreed on")
        size = self._room(offset, size)
        data, answer = buffer.data(size)
        if size:
            worker.read(offset, data)
        return answer

    def _write(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        _, offset, size, *_ = protocol.TRANSFER_IN.unpack_from(body)
        if size != len(body) - protocol.TRANSFER_IN.size:
            raise OSError(errno.EIO, f"write of {size} bytes came with {len(body) - protocol.TRANSFER_IN.size}")
        self._check_writable()
        room = self._room(offset, size)
        if room == 0 and size:
            raise OSError(errno.ENOSPC, f"byte {offset} is past the end of the device, {self.size} bytes")
        worker.write(offset, buffer.data(room)[0])
        return struct.pack("=II", room, 0)

    def _fsync(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        worker.flush()
        if self.unreported:
            self.unreported = False
            raise OSError(errno.EIO, "something that was cached could not be written down")
        return b""

    def _fallocate(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        _, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(body)
        self._check_writable()
        room = self._room(offset, length)
        if mode == protocol.FALLOC_PUNCH_HOLE | protocol.FALLOC_KEEP_SIZE:
            if not self._backend.discards:
                # also a write-zeroes that may unmap: its sender then writes zeros himself
                raise OSError(errno.EOPNOTSUPP, "the device takes no discards")
            if room:
                worker.discard(offset, room)
        elif mode & ~protocol.FALLOC_KEEP_SIZE == protocol.FALLOC_ZERO_RANGE:
            if room:
                worker.zero(offset, room)
        elif mode & ~protocol.FALLOC_KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, f"fallocate mode {mode} is not served")
        elif room < length:
            raise OSError(errno.ENOSPC, f"bytes {offset}+{length} pass the end of the device, {self.size} bytes")
        return b""

    def _statfs(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        self.refresh()
        unit = self._backend.granularity
        return protocol.STATFS_OUT.pack(self.size // unit, 0, 0, 1, 0, unit, 255, unit, 0)

    def _nothing(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        return b""

    def _silence(self, pid: int, body: memoryview, buffer: Buffer, worker: Worker) -> Answer:
        return None


_WITHOUT_NODE = frozenset({Op.INIT, Op.DESTROY, Op.FORGET, Op.BATCH_FORGET})
