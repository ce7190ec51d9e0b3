"""A process that works for one that serves devices, and serves none: so it can wait for them.

It is started when it is first needed, as `python -m MODULE FD`, and again when it has died. ``FD`` is a socket on
which sockets arrive, one for each session, with what else the session is given. A session ends when its socket
closes; the helper, when the first one does.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

PACKET = 1 << 16
MAX_FDS = 4
STOP_SECONDS = 10.0


class Helper:
    """The helper of one process, as its master sees it."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._sessions: set[socket.socket] = set()

    @property
    def pid(self) -> int | None:
        """The process's, if one runs."""
        return None if self._process is None else self._process.pid

    def session(self, fds: Sequence[int] = ()) -> socket.socket:
        """A socket whose other end the helper has, with copies of the descriptors."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its, self._lock:
            given = [its.fileno(), *fds]
            if self._control is not None:
                try:
                    socket.send_fds(self._control, [b"."], given)
                    self._sessions.add(ours)
                    return ours
                except OSError:
                    self._reap()
            socket.send_fds(self._start(), [b"."], given)
            self._sessions.add(ours)
            return ours

    def end(self, session: socket.socket) -> None:
        with self._lock:
            self._sessions.discard(session)
            session.close()

    def _start(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                cwd="/",
                start_new_session=True,
            )
        self._control = ours
        return ours

    def _reap(self) -> None:
        assert self._control is not None
        assert self._process is not None
        self._control.close()
        # one that is held up ends by itself, afterwards
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._control = self._process = None

    def close(self) -> None:
        """End every session, and the process."""
        with self._lock:
            for session in self._sessions:
                with contextlib.suppress(OSError):
                    session.shutdown(socket.SHUT_RDWR)
            if self._control is not None:
                self._reap()


def send(session: socket.socket, message: dict[str, Any]) -> bool:
    """False when the other end is gone."""
    try:
        session.sendall(json.dumps(message).encode())
        return True
    except OSError:
        return False


def receive(session: socket.socket) -> dict[str, Any] | None:
    """None when the other end is gone."""
    try:
        packet = session.recv(PACKET)
    except ConnectionError:
        return None
    answer = json.loads(packet) if packet else None
    return answer if isinstance(answer, dict) else None


def hung_up(session: socket.socket) -> bool:
    poll = select.poll()
    poll.register(session, select.POLLRDHUP)
    return bool(poll.poll(0))


def arrivals(fd: int) -> Iterator[tuple[socket.socket, list[int]]]:
    """In the helper: the sessions that come in, and what each is given, until the master's end closes.

    Only the end of the master is our end: a signal to its whole group must not leave anything half done.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=fd)
    while True:
        try:
            packet, fds, _, _ = socket.recv_fds(control, 1, MAX_FDS)
        except ConnectionError:
            return
        if not packet:
            return
        if fds:
            yield socket.socket(fileno=fds[0]), fds[1:]
