"""The control socket's frames: one connection for each ioctl, over a stream socket of the Unix domain.

The server speaks first: a *greeting* (magic, errno) says that it is alive and takes this peer's requests, so
connecting and reading it is the cheap ping. Then comes one request

    magic, kind, flags, nr, length; the buffer          kind IOCTL: nr is the command, the buffer a dm_ioctl
                                                        kind QUERY: nr is 0, the buffer a JSON object

and one reply

    errno, length, length of the detail; the buffer; the detail, UTF-8

and the server closes. The detail is what the kernel would have put into its log. The frame of an ioctl may be
shorter than the ``data_size`` in its header: the rest of the client's buffer is zeros.
"""

from __future__ import annotations

import os
from _socket import SO_PEERCRED, SOL_SOCKET
from errno import ECONNRESET, EPROTO
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

MAX_BUFFER = 16 << 20
"""Bytes. Below 0x01010101, so that every ``next`` of a record in a buffer has a zero byte in it and the string
before it ends there: hostile buffers are read in linear time."""
MAX_DETAIL = 64 << 10
"""Bytes."""
PIECE = 64 << 10
"""Bytes of a request for which room is made at a time."""

IOCTL = 0
QUERY = 1

FORCE = 1 << 0
"""The flag of a message that goes on where it would otherwise refuse (a snapshot of an origin that a
program holds open for writing, whose file system we cannot freeze)."""

_MAGIC = b"UDM1"
_GREETING = Struct("<4si")
_REQUEST = Struct("<4sHHII")
_REPLY = Struct("<iII")
_CREDENTIALS = Struct("=iII")


MAX_ADDRESS = 107
"""Bytes that a path may have as a socket's address."""


def connect(sock: socket, path: str) -> None:
    """connect(2), also to a path that is too long for an address."""
    with ShortPath(path) as address:
        sock.connect(address)


class ShortPath:
    """``with ShortPath(path) as address``: a name of the path that fits a socket's address."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= MAX_ADDRESS:
            return self._path
        folder, _, name = self._path.rpartition("/")
        self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{name}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _receive(sock: socket, length: int) -> bytes:
    """Exactly ``length`` bytes. ECONNRESET when the other end has gone; its timeouts pass through."""
    data = sock.recv(length)
    if len(data) < length:
        parts = bytearray(data)
        while len(parts) < length:
            data = sock.recv(min(length - len(parts), 1 << 20))
            if not data:
                raise OSError(ECONNRESET, f"the connection ended after {len(parts)} of {length} bytes")
            parts += data
        data = bytes(parts)
    return data


def _wrong(text: str) -> OSError:
    return OSError(EPROTO, text)


def send_greeting(sock: socket, errno: int) -> None:
    sock.sendall(_GREETING.pack(_MAGIC, errno))


def receive_greeting(sock: socket) -> int:
    """The errno with which the server refuses this peer, or 0."""
    magic, errno = _GREETING.unpack(_receive(sock, _GREETING.size))
    if magic != _MAGIC:
        raise _wrong(f"greeting {magic!r}: this is not userdm's control socket, or another version's")
    return int(errno)


def send_request(sock: socket, kind: int, nr: int, buffer: bytes, *, flags: int = 0) -> None:
    sock.sendall(_REQUEST.pack(_MAGIC, kind, flags, nr, len(buffer)) + buffer)


def receive_request(sock: socket) -> tuple[int, int, int, bytearray]:
    """(kind, flags, nr, buffer). EPROTO for what is no request; nothing is allocated for a length over the cap, and
    for one below it little more than has come.

    The only copy of the buffer: who is done with secrets in it wipes it.
    """
    magic, kind, flags, nr, length = _REQUEST.unpack(_receive(sock, _REQUEST.size))
    if magic != _MAGIC:
        raise _wrong(f"request begins with {magic!r}, must be {_MAGIC!r}")
    if kind not in (IOCTL, QUERY):
        raise _wrong(f"request of kind {kind}, must be {IOCTL} or {QUERY}")
    if length > MAX_BUFFER:
        raise _wrong(f"request of {length} bytes, allowed are {MAX_BUFFER}")
    pieces: list[bytearray] = []
    try:
        for start in range(0, length, PIECE):
            pieces.append(bytearray(min(PIECE, length - start)))
            _fill(sock, pieces[-1])
        return kind, flags, nr, bytearray().join(pieces)
    finally:
        for piece in pieces:
            piece[:] = bytes(len(piece))


def _fill(sock: socket, piece: bytearray) -> None:
    view = memoryview(piece)
    while view:
        more = sock.recv_into(view)
        if not more:
            raise OSError(ECONNRESET, f"the connection ended {len(view)} bytes before the request")
        view = view[more:]


def send_reply(sock: socket, errno: int, buffer: bytes = b"", detail: str = "") -> None:
    raw = detail.encode("utf-8", "backslashreplace")[:MAX_DETAIL]
    sock.sendall(_REPLY.pack(errno, len(buffer), len(raw)) + buffer + raw)


def receive_reply(sock: socket) -> tuple[int, bytes, str]:
    """(errno, buffer, detail)."""
    errno, length, detail = _REPLY.unpack(_receive(sock, _REPLY.size))
    if length > MAX_BUFFER or detail > MAX_DETAIL:
        raise _wrong(f"reply of {length} and {detail} bytes, allowed are {MAX_BUFFER} and {MAX_DETAIL}")
    buffer = _receive(sock, length)
    return errno, buffer, _receive(sock, detail).decode("utf-8", "replace")


def peer(sock: socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process at the other end; of the server, the one that listens."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid
