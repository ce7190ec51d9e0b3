"""One device's FUSE connection: the threads that take requests from /dev/fuse and answer them.

This is the byte path of an export, and the only file that knows about it: threads outside of Python can take
its place with the same descriptor, the same `File` for what is rare, and the same parking.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from queue import SimpleQueue

from userdm.dataplane import Backend, Parked, Worker
from userdm.export.buffer import ANSWER, START, Buffer
from userdm.export.file import File
from userdm.export.parking import Parking, Request
from userdm.export.protocol import (
    HEADER_ROOM,
    HOT,
    IN_HEADER,
    INTERRUPT_IN,
    MAX_WRITE,
    NOTIFY_RESEND,
    OUT_HEADER,
    TRANSFER_IN,
    WRITE_OUT,
    Op,
)
from userdm.segment import Gate

THREADS = 4
"""For each device. Measured with fio on a passthrough over a file, direct, 2 busy cores: a 4 KiB request costs 3 us in
Python and 4 (read) to 30 us (write) in the kernel, whether 1 or 8 threads serve. From the page cache 1 thread gives
33,000 random reads a second, 4 give 40,000 to 50,000; what must come from the disk first gains with each more: 2,300
to 5,700 with 1, 3,800 to 5,400 with 4, 11,000 with 8. Writes went from 6,000 with 1 to 11,000 with 4. Memory speaks
against 8: a hundred devices are not rare. Against qemu-storage-daemon's export of a qcow2 in the same minutes, medians
of 3: random reads 2.6 times as many, random writes 1.0, sequential reads 2.2, sequential writes 1.0.
"""
STOP_SECONDS = 10.0
_SIGKILL_BIT = 1 << 8
_UNANSWERED = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})

log = logging.getLogger(__name__)


class Connection:
    """Serves a /dev/fuse descriptor that it is given, and owns from then on.

    Nothing is kept about the connection itself but the descriptor and the longest write that was agreed on: one that
    was set up and used by another process is served just as well.
    """

    def __init__(
        self,
        fd: int,
        backend: Backend,
        devno: tuple[int, int],
        owner: tuple[int, int],
        threads: int = THREADS,
        max_write: int = MAX_WRITE,
        cacheable: bool = False,
    ) -> None:
        """``owner``: user and group that the file shows. ``cacheable``: see File."""
        self._fd = fd
        self.max_write = max_write
        self._backend = backend
        self._name = f"{devno[0]}:{devno[1]}"
        self.file = File(backend, devno, owner, cacheable=cacheable)
        self._parking = Parking(self._name, self._retry)
        self._stopping = False
        self.failures = 0
        """Requests that failed, those aside that we never serve."""
        self._threads = [
            threading.Thread(target=self.serve, name=f"{self._name} serve", daemon=True) for _ in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def resend(self) -> None:
        """Have every request come again that somebody before us has read and not answered. Before `start` only: what
        our own threads have read is under way."""
        os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0))

    def fileno(self) -> int:
        return self._fd

    @property
    def parked(self) -> int:
        """How many requests wait for a gate."""
        return len(self._parking)

    @property
    def serving(self) -> int:
        """How many threads take requests."""
        return sum(thread.is_alive() for thread in self._threads)

    def serve(self) -> None:
        """Take requests and answer them until the connection ends: the body of each serving thread."""
        max_write = self.max_write
        fd, file, worker, buffer = self._fd, self.file, self._backend.worker(), Buffer(max_write, populated=True)
        memory, incoming, views = buffer.memory, [buffer.request], buffer.data
        readv, write, unpack = os.readv, os.write, HOT.unpack_from
        read_op, write_op = int(Op.READ), int(Op.WRITE)
        pack_read, read_data = OUT_HEADER.pack_into, worker.read
        pack_written, write_data = WRITE_OUT.pack_into, worker.write
        written = bytearray(WRITE_OUT.size)

        while not self._stopping:
            try:
                count = readv(fd, incoming)
            except OSError as error:
                if self._goes_on(error):
                    continue
                return
            length, opcode, unique, offset, size = unpack(memory, START)
            try:
                if opcode == read_op and count == length == HEADER_ROOM and offset + size <= file.size:
                    if size <= max_write:
                        data, answer = views(size)
                        read_data(offset, data)
                        pack_read(memory, ANSWER, OUT_HEADER.size + size, 0, unique)
                        write(fd, answer)
                        continue
                elif (
                    opcode == write_op
                    and count == length == HEADER_ROOM + size
                    and offset + size <= file.size
                    and not file.readonly
                ):
                    write_data(offset, views(size)[0])
                    pack_written(written, 0, WRITE_OUT.size, 0, unique, size, 0)
                    write(fd, written)
                    continue
                self._handle(buffer, count, worker)
            except Parked as parked:
                self._park(buffer, count, parked.gate)
            except Exception as error:
                self._fail(unique, error)

    def _goes_on(self, error: OSError) -> bool:
        """Whether a thread takes the next request after a read that failed."""
        if error.errno in (errno.ENOENT, errno.EAGAIN, errno.EINTR):
            return True  # a request that was given up between the queue and us
        if error.errno != errno.ENODEV and not self._stopping:
            log.error("device %s: cannot take requests: %s", self._name, error)
        return False  # ENODEV: unmounted, or aborted

    def _handle(self, buffer: Buffer, count: int, worker: Worker) -> None:
        """Answer any request; what is raised, is for the asker."""
        if count < IN_HEADER.size:
            log.error("device %s: a request of %d bytes has no header", self._name, count)
            return
        _, opcode, unique, *_ = IN_HEADER.unpack_from(buffer.memory, START)
        if opcode == Op.INTERRUPT:
            self._interrupt(buffer, count)
            return
        try:
            answer = self.file.answer(buffer, count, worker)
        except (OSError, Parked):
            if opcode in _UNANSWERED:
                return
            raise
        if isinstance(answer, memoryview):
            OUT_HEADER.pack_into(buffer.memory, ANSWER, len(answer), 0, unique)
            os.write(self._fd, answer)
        elif answer is not None:
            os.writev(self._fd, [OUT_HEADER.pack(OUT_HEADER.size + len(answer), 0, unique), answer])

    def _fail(self, unique: int, error: Exception) -> None:
        """Give the asker, and nobody else, the error."""
        number = errno.EIO
        if isinstance(error, OSError):
            number = error.errno or errno.EIO
        else:
            log.error("device %s: a request failed", self._name, exc_info=error)
        self.failures += number != errno.ENOSYS
        try:
            os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size, -number, unique))
        except OSError as second:
            # ENOENT: nobody waits for it any more
            if second.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("device %s: cannot answer: %s after %s", self._name, second, error)

    # -- requests that wait ----------------------------------------------------------------------------

    def _park(self, buffer: Buffer, count: int, gate: Gate) -> None:
        """Put the request aside, in memory just large enough, and leave the thread free."""
        _, opcode, unique, _, _, _, pid, _, _ = IN_HEADER.unpack_from(buffer.memory, START)
        room = max(0, count - HEADER_ROOM)
        if opcode == Op.READ:
            room = TRANSFER_IN.unpack_from(buffer.memory, START + IN_HEADER.size)[2]
        own = Buffer(room)
        own.request[:count] = buffer.request[:count]
        self._parking.park(Request(own, count, unique, pid), gate)

    def _retry(self, ready: SimpleQueue[Request | None]) -> None:
        """The body of the thread that tries parked requests again."""
        worker = self._backend.worker()
        while (request := ready.get()) is not None:
            if self._parking.claim(request.unique) is None:
                continue
            try:
                self._handle(request.buffer, request.length, worker)
            except Parked as parked:
                self._parking.park(request, parked.gate)
            except Exception as error:
                self._fail(request.unique, error)

    def _interrupt(self, buffer: Buffer, count: int) -> None:
        """A parked request whose asker is being killed is given up; the rest are answered in their time.

        A signal that is only handled must not break off a read: programs do not expect it of a disk.
        """
        if count < IN_HEADER.size + INTERRUPT_IN.size:
            return
        (wanted,) = INTERRUPT_IN.unpack_from(buffer.memory, START + IN_HEADER.size)
        for unique, pid in self._parking.pids():
            if unique == wanted and _is_killed(pid) and self._parking.claim(unique):
                self._fail(unique, InterruptedError(errno.EINTR, "killed"))

    # -- the end -----------------------------------------------------------------------------------------

    def stopping(self) -> None:
        """From now on each thread ends after the request that it answers."""
        self._stopping = True

    def join(self, timeout: float = STOP_SECONDS) -> bool:
        """Wait for the threads after the connection has ended, and close the descriptor.

        False, with the descriptor left open, when a thread is held up in the backend.
        """
        self._stopping = True
        ended = self._parking.close(timeout)
        for thread in self._threads:
            if thread.ident is not None:  # started
                thread.join(timeout)
            ended = ended and not thread.is_alive()
        if ended and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return ended


def _is_killed(thread_id: int) -> bool:
    try:
        with open(f"/proc/{thread_id}/status", encoding="ascii", errors="replace") as status:
            pending = [line.split()[1] for line in status if line.startswith("SigPnd")]
    except OSError:
        return True  # gone already
    return any(int(mask, 16) & _SIGKILL_BIT for mask in pending)
