"""What keeper and worker say to each other: JSON in packets, with descriptors."""

from __future__ import annotations

import array
import json
import select
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


def readable(what: int | socket.socket) -> bool:
    """Whether there is something to be read, or an end, now. Not by select(2), which knows 1024 descriptors."""
    poll = select.poll()
    poll.register(what, select.POLLIN)
    return bool(poll.poll(0))


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next packet; None when the other end is gone. The descriptors are the caller's."""
    fds = array.array("i")
    try:
        # not recv_fds, which loses the flag: whoever is started next would have the descriptors, too
        packet, extra, _, _ = sock.recvmsg(PACKET, socket.CMSG_LEN(MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not packet:
        return None
    message = json.loads(packet)
    assert isinstance(message, dict)
    return message, list(fds)
