"""The socket's frames: round trips over a real socket, caps, and what is no frame."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from userdm.abi import frames

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(10)
    yield ends
    for end in ends:
        end.close()


def test_request_and_reply(pair: Pair) -> None:
    client, server = pair
    frames.send_request(client, frames.IOCTL, 9, b"buffer", flags=frames.FORCE)
    assert frames.receive_request(server) == (frames.IOCTL, frames.FORCE, 9, b"buffer")
    frames.send_reply(server, errno.EBUSY, b"answer", "why: é\udcff")
    assert frames.receive_reply(client) == (errno.EBUSY, b"answer", "why: é\\udcff")


def test_a_buffer_larger_than_a_socket_takes_at_once(pair: Pair) -> None:
    client, server = pair
    buffer = os.urandom(8 << 20)
    sender = threading.Thread(target=frames.send_request, args=(client, frames.IOCTL, 9, buffer))
    sender.start()
    assert frames.receive_request(server) == (frames.IOCTL, 0, 9, buffer)
    sender.join()


@pytest.mark.parametrize("refusal", [0, errno.EACCES])
def test_greeting(pair: Pair, refusal: int) -> None:
    client, server = pair
    frames.send_greeting(server, refusal)
    assert frames.receive_greeting(client) == refusal


def test_peer_is_this_process(pair: Pair) -> None:
    assert frames.peer(pair[0]) == (os.getpid(), os.geteuid(), os.getegid())


def test_another_programs_greeting(pair: Pair) -> None:
    client, server = pair
    server.sendall(b"SSH-2.0-")
    with pytest.raises(OSError, match="SSH-") as caught:
        frames.receive_greeting(client)
    assert caught.value.errno == errno.EPROTO


def request(magic: bytes = b"UDM1", kind: int = 0, flags: int = 0, nr: int = 0, length: int = 0) -> bytes:
    return struct.pack("<4sHHII", magic, kind, flags, nr, length)


@pytest.mark.parametrize(
    "data", [request(magic=b"GET "), request(kind=2), request(length=frames.MAX_BUFFER + 1), request(length=2**32 - 1)]
)
def test_what_is_no_request(pair: Pair, data: bytes) -> None:
    client, server = pair
    client.sendall(data)
    with pytest.raises(OSError) as caught:
        frames.receive_request(server)
    assert caught.value.errno == errno.EPROTO


def test_a_reply_over_the_cap(pair: Pair) -> None:
    client, server = pair
    server.sendall(struct.pack("<iII", 0, frames.MAX_BUFFER + 1, 0))
    with pytest.raises(OSError) as caught:
        frames.receive_reply(client)
    assert caught.value.errno == errno.EPROTO


def test_a_client_that_dies_in_its_request(pair: Pair) -> None:
    client, server = pair
    client.sendall(request(length=100) + b"half")
    client.close()
    with pytest.raises(OSError) as caught:
        frames.receive_request(server)
    assert caught.value.errno == errno.ECONNRESET


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100))
def test_garbage_raises_nothing_but_oserror(data: bytes) -> None:
    for receive in (frames.receive_request, frames.receive_reply, frames.receive_greeting):
        client, server = socket.socketpair()
        with client, server:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            try:
                receive(server)
            except OSError as error:
                assert error.errno in (errno.EPROTO, errno.ECONNRESET)
