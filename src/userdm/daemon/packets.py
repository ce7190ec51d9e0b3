"""What keeper and worker say to each other: JSON in packets, with descriptors."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

PACKET = 1 << 16
MAX_FDS = 16

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    socket.send_fds(sock, [json.dumps(message).encode()], fds)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next packet; None when the other end is gone. The descriptors are the caller's."""
    try:
        packet, fds, _, _ = socket.recv_fds(sock, PACKET, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    if not packet:
        return None
    message = json.loads(packet)
    assert isinstance(message, dict)
    return message, fds
