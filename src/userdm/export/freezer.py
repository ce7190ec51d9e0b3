"""Freezes file systems from a process that serves devices, by way of a helper that serves none."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from userdm.export.freeze_helper import PACKET

Devno = tuple[int, int]
STOP_SECONDS = 10.0


class Freezer:
    """Starts the helper when it is first needed, and another one when that has died.

    A freeze writes through the devices while it runs: the caller holds no lock that serving needs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._sessions: set[socket.socket] = set()

    @property
    def pid(self) -> int | None:
        """The helper's, if one runs."""
        return None if self._helper is None else self._helper.pid

    def freeze(self, devices: Sequence[tuple[Devno, str]]) -> Callable[[], None]:
        """Freeze and sync every file system on the devices, given as (number, node), the topmost first.

        Returns the thaw, which may be called more than once. Raises OSError, with everything thawed, when one
        cannot be frozen; the text names its mount point.
        """
        session = self._session()
        frozen: list[Devno] = []
        try:
            _send(session, {"devices": devices})
            while answer := _receive(session):
                if "frozen" in answer:
                    frozen.append(_devno(answer["frozen"]))
                elif "held" in answer:
                    frozen.remove(_devno(answer["held"]))
                else:
                    raise OSError(answer["errno"], answer["text"])
        except BaseException:
            self._end(session)
            raise
        if answer is None:
            self._end(session)
            self._thaw_again(frozen)
            raise OSError(errno.EIO, "the process that freezes file systems died")
        return _Thaw(self, session, frozen)

    def _session(self) -> socket.socket:
        """A socket whose other end the helper has."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its, self._lock:
            if self._control is not None:
                try:
                    socket.send_fds(self._control, [b"."], [its.fileno()])
                    self._sessions.add(ours)
                    return ours
                except OSError:
                    self._reap()
            socket.send_fds(self._start(), [b"."], [its.fileno()])
            self._sessions.add(ours)
            return ours

    def _end(self, session: socket.socket) -> None:
        with self._lock:
            self._sessions.discard(session)
            session.close()

    def _start(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._helper = subprocess.Popen(
                [sys.executable, "-m", "userdm.export.freeze_helper", str(its.fileno())],
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
        assert self._helper is not None
        self._control.close()
        # one that is held up in a freeze ends by itself, after it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._helper.wait(STOP_SECONDS)
        self._control = self._helper = None

    def thaw(self, session: socket.socket, frozen: Sequence[Devno]) -> None:
        thawed = _send(session, {}) and _receive(session) is not None
        self._end(session)
        if not thawed:
            self._thaw_again(frozen)

    def _thaw_again(self, frozen: Sequence[Devno]) -> None:
        """Thaw what a helper that died had frozen."""
        if not frozen:
            return
        session = self._session()
        _send(session, {"thaw": frozen})
        answer = _receive(session)
        self._end(session)
        if answer is None or "errno" in answer:
            raise OSError(errno.EIO, f"cannot thaw the file systems on {frozen}: {answer}")

    def close(self) -> None:
        """End the helper, which thaws what it still has."""
        with self._lock:
            for session in self._sessions:
                with contextlib.suppress(OSError):
                    session.shutdown(socket.SHUT_RDWR)
            if self._control is not None:
                self._reap()


class _Thaw:
    """Thaws once, however often it is called."""

    def __init__(self, freezer: Freezer, session: socket.socket, frozen: Sequence[Devno]) -> None:
        self._lock = threading.Lock()
        self._work: tuple[Freezer, socket.socket, Sequence[Devno]] | None = (freezer, session, frozen)

    def __call__(self) -> None:
        with self._lock:
            work, self._work = self._work, None
        if work is not None:
            freezer, session, frozen = work
            freezer.thaw(session, frozen)


def _devno(pair: list[int]) -> Devno:
    major, minor = pair
    return major, minor


def _send(session: socket.socket, message: dict[str, Any]) -> bool:
    try:
        session.sendall(json.dumps(message).encode())
        return True
    except OSError:
        return False


def _receive(session: socket.socket) -> dict[str, Any] | None:
    """None when the helper is gone."""
    try:
        packet = session.recv(PACKET)
    except ConnectionError:
        return None
    answer = json.loads(packet) if packet else None
    return answer if isinstance(answer, dict) else None
