"""The FUSE request decoder on bent requests, over a socket in the place of /dev/fuse: answered right, or with an errno,
once; and the thread goes on."""

from __future__ import annotations

import errno
import logging
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support import budget
from userdm.export import protocol
from userdm.export.connection import Connection
from userdm.export.protocol import Op
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import MemoryStorage

SIZE = 1 << 16
"""Bytes; with it a packet fits any socket."""
UNANSWERED = {Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT}
ERRORS = {
    errno.EIO, errno.ENOSYS, errno.ESTALE, errno.EPROTO, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOSPC,
    errno.EOPNOTSUPP, errno.EROFS,
}  # fmt: skip
OFFSETS = (
    0,
    1,
    511,
    512,
    4096,
    SIZE - 4096,
    SIZE - 1,
    SIZE,
    SIZE + 1,
    1 << 31,
    1 << 32,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
)
SIZES = (0, 1, 511, 512, 4096, 32768, SIZE, SIZE + 1, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)


class Kernel:
    """The other end: sends requests, and keeps what the device must hold."""

    def __init__(self, sock: socket.socket, rng: random.Random) -> None:
        self.sock = sock
        self.rng = rng
        self.bytes = bytearray(SIZE)
        self.unique = 2

    def ask(
        self, opcode: int, body: bytes, *, node: int = 1, length: int | None = None, cut: int | None = None
    ) -> None:
        """Send one request, and check what comes back."""
        self.unique += 2
        count = protocol.IN_HEADER.size + len(body) if length is None else length
        raw = protocol.IN_HEADER.pack(count, opcode, self.unique, node, 0, 0, 1, 0, 0) + body
        raw = raw if cut is None else raw[:cut]
        self.sock.send(raw)
        # one that is always answered, and tells that nothing came for the one before
        probe = self.unique + (1 << 32)
        self.sock.send(protocol.IN_HEADER.pack(protocol.IN_HEADER.size, Op.STATFS, probe, 1, 0, 0, 1, 0, 0))
        answers = []
        while True:
            answer = self.sock.recv(2 * SIZE)
            size, number, unique = protocol.OUT_HEADER.unpack_from(answer)
            assert size == len(answer)
            if unique == probe:
                assert number == 0
                break
            answers.append((number, unique, answer[protocol.OUT_HEADER.size :]))
        what = f"opcode {opcode}, {len(raw)} bytes"
        if len(raw) < protocol.IN_HEADER.size or opcode in UNANSWERED:
            assert not answers, what
            return
        assert len(answers) == 1, what
        number, unique, data = answers[0]
        assert unique == self.unique, what
        if number:
            assert -number in ERRORS and not data, f"{what}: {number}"
        else:
            self.settle(opcode, body, data)

    def settle(self, opcode: int, body: bytes, data: bytes) -> None:
        """It was done: it must have been what can be done."""
        if opcode == Op.READ:
            _, offset, size, *_ = protocol.TRANSFER_IN.unpack_from(body)
            assert data == self.bytes[offset : offset + size]
        elif opcode == Op.WRITE:
            _, offset, size, *_ = protocol.TRANSFER_IN.unpack_from(body)
            done = struct.unpack("=II", data)[0]
            assert done == max(0, min(size, SIZE - offset))
            self.bytes[offset : offset + done] = body[protocol.TRANSFER_IN.size :][:done]
        elif opcode == Op.FALLOCATE:
            _, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(body)
            end = min(offset + length, SIZE)
            if mode & ~protocol.FALLOC_KEEP_SIZE and offset < end:
                self.bytes[offset:end] = bytes(end - offset)

    def transfer(self) -> bytes:
        rng = self.rng
        offset = rng.choice((*OFFSETS, rng.randrange(SIZE), rng.randrange(SIZE) & ~511))
        size = rng.choice((*SIZES, rng.randrange(20_000)))
        return protocol.TRANSFER_IN.pack(rng.getrandbits(64), offset, size, *(rng.getrandbits(32) for _ in range(4)))

    def request(self) -> None:
        """Mostly nearly right."""
        rng = self.rng
        opcode = rng.choice((*Op, Op.READ, Op.READ, Op.WRITE, Op.WRITE, Op.FALLOCATE, 0, 1 << 31))
        if opcode == Op.READ:
            body = self.transfer()
        elif opcode == Op.WRITE:
            body = self.transfer()
            size = protocol.TRANSFER_IN.unpack(body)[2]
            body += rng.randbytes(size if size <= SIZE and rng.random() < 0.9 else rng.randrange(100))
        elif opcode == Op.FALLOCATE:
            mode = rng.choice((0, 1, 2, 3, 3, 16, 17, 17, 64, (1 << 32) - 1))
            body = protocol.FALLOCATE_IN.pack(
                1, rng.choice(OFFSETS), rng.choice((*OFFSETS, rng.randrange(SIZE))), mode, 0
            )
        else:
            body = rng.randbytes(rng.choice((0, 4, 8, 16, 24, 40, 88, 100)))
        node = 1 if rng.random() < 0.95 else rng.choice((0, 2, (1 << 64) - 1))
        length = None if rng.random() < 0.95 else rng.choice(SIZES[:-1])
        cut = None if rng.random() < 0.95 else rng.randrange(protocol.IN_HEADER.size + len(body))
        self.ask(opcode, body, node=node, length=length, cut=cut or None)


@contextmanager
def connected(rng: random.Random) -> Iterator[Kernel]:
    mapper = Mapper()
    mapper.attached["disk"] = MemoryStorage(SIZE)
    device = mapper.create("a")
    mapper.load(device, [Line(0, SIZE // 512, "linear", "disk 0")])
    mapper.resume(device)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(60)
    connection = Connection(theirs.detach(), device, (240, 0), (0, 0), threads=1)
    connection.file.activate()
    connection.start()
    try:
        yield Kernel(ours, rng)
        assert connection.serving == 1
    finally:
        connection.stopping()
        ours.send(bytes(1))
        assert connection.join()
        ours.close()
        mapper.close()


def test_requests_that_are_bent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    def example(rng: random.Random) -> None:
        with connected(rng) as kernel:
            for _ in range(60):
                kernel.request()
        broken = [record for record in caplog.records if record.exc_info or "cannot answer" in record.getMessage()]
        assert not broken, caplog.text
        caplog.clear()

    budget.run(25, example)
