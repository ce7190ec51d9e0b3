"""Requests as bytes: what they are answered, and that no length is believed. No kernel takes part."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userdm.dataplane import Parked
from userdm.export import protocol
from userdm.export.buffer import Buffer
from userdm.export.file import File
from userdm.export.protocol import Op

from .backends import Awkward, raises

SIZE = 1 << 20


def file(size: int = SIZE) -> tuple[File, Awkward]:
    backend = Awkward(size)
    made = File(backend, (7, 16384), (0, 0))
    made.activate()
    return made, backend


def ask(file: File, worker: Awkward, opcode: int, body: bytes = b"", *, node: int = 1, length: int | None = None):  # type: ignore[no-untyped-def]
    buffer = Buffer(protocol.MAX_WRITE)
    count = protocol.IN_HEADER.size + len(body)
    header = protocol.IN_HEADER.pack(count if length is None else length, opcode, 77, node, 0, 0, 4321, 0, 0)
    buffer.request[:count] = header + body
    return file.answer(buffer, count, worker)


def transfer(offset: int, size: int) -> bytes:
    return protocol.TRANSFER_IN.pack(0, offset, size, 0, 0, 0, 0)


def init(major: int, minor: int, flags: int) -> bytes:
    return struct.pack("=IIIII44x", major, minor, 1 << 17, flags & 0xFFFFFFFF, flags >> 32)


def test_init_takes_what_is_offered_and_wanted_and_no_more() -> None:
    made, backend = file()
    answer = protocol.INIT_OUT.unpack(ask(made, backend, Op.INIT, init(7, 45, (1 << 64) - 1), node=0))
    assert answer[:2] == (7, protocol.NEWEST_MINOR)
    flags = answer[3] | answer[10] << 32
    assert flags & protocol.HAS_RESEND
    assert not flags & (1 << 16)  # the writeback cache, which hides errors
    assert answer[4] == 128
    assert answer[6] == 1 << 20
    assert answer[8] == 256


def test_init_of_a_kernel_without_second_flags() -> None:
    made, backend = file()
    answer = protocol.INIT_OUT.unpack(
        ask(made, backend, Op.INIT, init(7, 31, protocol.ASYNC_DIO | 1 << 39)[:16], node=0)
    )
    assert answer[1] == 31
    assert (answer[3], answer[10]) == (protocol.ASYNC_DIO, 0)


def test_init_of_another_time() -> None:
    made, backend = file()
    with raises(errno.EPROTO):
        ask(made, backend, Op.INIT, init(7, 30, 0), node=0)
    assert protocol.INIT_OUT.unpack(ask(made, backend, Op.INIT, init(8, 0, 0), node=0))[0] == 7


def test_of_no_size_before_it_is_activated() -> None:
    made = File(Awkward(), (7, 16384), (0, 0))
    size_at = protocol.ATTR_VALID.size + 8
    assert ask(made, Awkward(), Op.GETATTR, bytes(16))[size_at : size_at + 8] == bytes(8)
    made.activate()
    assert ask(made, Awkward(), Op.GETATTR, bytes(16))[size_at : size_at + 8] == struct.pack("=Q", 32 << 20)


@pytest.mark.parametrize("opcode", [Op.LOOKUP, Op.GETXATTR, Op.SETXATTR, Op.LSEEK, Op.FLUSH, Op.STATX, 4096, 9999])
def test_what_is_not_served_is_not_implemented(opcode: int) -> None:
    made, backend = file()
    with raises(errno.ENOSYS):
        ask(made, backend, opcode, bytes(64))


def test_another_node_is_stale() -> None:
    made, backend = file()
    with raises(errno.ESTALE):
        ask(made, backend, Op.GETATTR, bytes(16), node=2)


@pytest.mark.parametrize("opcode", [Op.FORGET, Op.BATCH_FORGET])
def test_forget_has_no_answer(opcode: int) -> None:
    made, backend = file()
    assert ask(made, backend, opcode, bytes(16)) is None


def test_setattr_changes_no_size() -> None:
    made, backend = file()
    with raises(errno.EINVAL):
        ask(made, backend, Op.SETATTR, protocol.SETATTR_IN.pack(protocol.SETATTR_SIZE, 0, 0, 0) + bytes(64))
    assert ask(made, backend, Op.SETATTR, protocol.SETATTR_IN.pack(1 << 4, 0, 0, 0) + bytes(64))


def test_read_at_any_byte_and_at_the_end() -> None:
    made, backend = file()
    backend.storage.write(7, b"seven")
    assert bytes(ask(made, backend, Op.READ, transfer(7, 5)))[protocol.OUT_HEADER.size :] == b"seven"
    assert len(ask(made, backend, Op.READ, transfer(SIZE - 3, 4096))) == protocol.OUT_HEADER.size + 3
    assert len(ask(made, backend, Op.READ, transfer(SIZE, 4096))) == protocol.OUT_HEADER.size
    assert len(ask(made, backend, Op.READ, transfer(1 << 63, 4096))) == protocol.OUT_HEADER.size
    with raises(errno.EINVAL):
        ask(made, backend, Op.READ, transfer(0, protocol.MAX_WRITE + 1))


def test_write_at_any_byte_and_at_the_end() -> None:
    made, backend = file()
    assert struct.unpack("=II", ask(made, backend, Op.WRITE, transfer(5, 4) + b"four"))[0] == 4
    assert bytes(backend.storage._bytes[4:10]) == b"\0four\0"
    assert struct.unpack("=II", ask(made, backend, Op.WRITE, transfer(SIZE - 2, 4) + b"edge"))[0] == 2
    with raises(errno.ENOSPC):
        ask(made, backend, Op.WRITE, transfer(SIZE, 4) + b"past")


@pytest.mark.parametrize("claimed", [3, 5, 1 << 20, (1 << 32) - 1])
def test_a_write_is_as_long_as_its_bytes(claimed: int) -> None:
    made, backend = file()
    with raises(errno.EIO):
        ask(made, backend, Op.WRITE, transfer(0, claimed) + b"four")
    assert not backend.calls


def test_size_is_asked_for_again_when_a_request_passes_the_end() -> None:
    made, backend = file()
    backend.storage = Awkward(2 * SIZE).storage
    backend.size = 2 * SIZE
    assert len(ask(made, backend, Op.READ, transfer(SIZE, 4096))) == protocol.OUT_HEADER.size + 4096


def test_readonly() -> None:
    made, backend = file()
    backend.readonly = True
    made.refresh()
    with raises(errno.EPERM):
        ask(made, backend, Op.WRITE, transfer(0, 4) + b"four")
    with raises(errno.EPERM):
        ask(made, backend, Op.FALLOCATE, protocol.FALLOCATE_IN.pack(0, 0, 4096, 3, 0))
    with raises(errno.EACCES):
        ask(made, backend, Op.OPEN, protocol.OPEN_IN.pack(os.O_RDWR, 0))
    assert ask(made, backend, Op.OPEN, protocol.OPEN_IN.pack(os.O_RDONLY, 0))


@pytest.mark.parametrize(
    ("mode", "call"),
    [(3, ("discard", 4096, 8192)), (17, ("zero", 4096, 8192)), (16, ("zero", 4096, 8192)), (0, None), (1, None)],
)
def test_fallocate(mode: int, call: tuple[str, int, int] | None) -> None:
    made, backend = file()
    assert ask(made, backend, Op.FALLOCATE, protocol.FALLOCATE_IN.pack(0, 4096, 8192, mode, 0)) == b""
    assert backend.calls == ([] if call is None else [call])


def test_fallocate_at_the_end() -> None:
    made, backend = file()
    ask(made, backend, Op.FALLOCATE, protocol.FALLOCATE_IN.pack(0, SIZE - 512, 1 << 63, 3, 0))
    ask(made, backend, Op.FALLOCATE, protocol.FALLOCATE_IN.pack(0, SIZE, 512, 3, 0))
    assert backend.calls == [("discard", SIZE - 512, 512)]
    with raises(errno.ENOSPC):
        ask(made, backend, Op.FALLOCATE, protocol.FALLOCATE_IN.pack(0, 0, SIZE + 1, 0, 0))


@pytest.mark.parametrize("mode", [2, 8, 9, 32, 64, 1 << 31])
def test_fallocate_of_another_kind(mode: int) -> None:
    made, backend = file()
    with raises(errno.EOPNOTSUPP):
        ask(made, backend, Op.FALLOCATE, protocol.FALLOCATE_IN.pack(0, 0, 512, mode, 0))


def test_statfs_tells_the_discard_granularity() -> None:
    made, backend = file()
    assert protocol.STATFS_OUT.unpack(ask(made, backend, Op.STATFS))[5] == 65536


def test_openers_are_counted() -> None:
    made, backend = file()
    writer = ask(made, backend, Op.OPEN, protocol.OPEN_IN.pack(os.O_RDWR, 0))
    reader = ask(made, backend, Op.OPEN, protocol.OPEN_IN.pack(os.O_RDONLY, 0))
    assert sorted(made.openers()) == [(4321, False), (4321, True)]
    for answer in (writer, reader, reader):
        handle = protocol.OPEN_OUT.unpack(answer)[0]
        ask(made, backend, Op.RELEASE, protocol.RELEASE_IN.pack(handle, 0, 0, 0))
    assert made.openers() == []


@settings(max_examples=500, deadline=None)
@given(opcode=st.one_of(st.sampled_from(list(Op)), st.integers(0, 1 << 32 - 1)), body=st.binary(max_size=160))
def test_any_bytes_at_all(opcode: int, body: bytes) -> None:
    """Every request ends in an answer or in OSError; nothing past the device's end is touched."""
    made, backend = file(4096)
    try:
        answer = ask(made, backend, opcode, body)
    except (OSError, Parked):
        return
    assert answer is None or isinstance(answer, bytes | memoryview)
    assert len(backend.storage._bytes) == 4096
    assert all(offset + length <= 4096 for _, offset, length in backend.calls)


def test_a_length_that_lies() -> None:
    made, backend = file()
    for length in (0, 39, 41, 1 << 31):
        with raises(errno.EIO):
            ask(made, backend, Op.GETATTR, b"", length=length)
