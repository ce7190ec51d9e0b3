"""Freezes file systems from a process that serves devices, by way of a helper that serves none."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Sequence

from userdm.export.helper import Helper, receive, send

Devno = tuple[int, int]


class Freezer:
    """Starts the helper when it is first needed, and another one when that has died.

    A freeze writes through the devices while it runs: the caller holds no lock that serving needs.
    """

    def __init__(self) -> None:
        self._helper = Helper("userdm.export.freeze_helper")

    @property
    def pid(self) -> int | None:
        """The helper's, if one runs."""
        return self._helper.pid

    def freeze(self, devices: Sequence[tuple[Devno, str]]) -> Callable[[], None]:
        """Freeze and sync every file system on the devices, given as (number, node), the topmost first.

        Returns the thaw, which may be called more than once. Raises OSError, with everything thawed, when one
        cannot be frozen; the text names its mount point.
        """
        session = self._helper.session()
        frozen: list[Devno] = []
        try:
            send(session, {"devices": devices})
            while answer := receive(session):
                if "frozen" in answer:
                    frozen.append(_devno(answer["frozen"]))
                elif "held" in answer:
                    frozen.remove(_devno(answer["held"]))
                else:
                    raise OSError(answer["errno"], answer["text"])
        except BaseException:
            self._helper.end(session)
            raise
        if answer is None:
            self._helper.end(session)
            self._thaw_again(frozen)
            raise OSError(errno.EIO, "the process that freezes file systems died")
        return _Thaw(self, session, frozen)

    def thaw(self, session: socket.socket, frozen: Sequence[Devno]) -> None:
        thawed = send(session, {}) and receive(session) is not None
        self._helper.end(session)
        if not thawed:
            self._thaw_again(frozen)

    def _thaw_again(self, frozen: Sequence[Devno]) -> None:
        """Thaw what a helper that died had frozen."""
        if not frozen:
            return
        session = self._helper.session()
        send(session, {"thaw": frozen})
        answer = receive(session)
        self._helper.end(session)
        if answer is None or "errno" in answer:
            raise OSError(errno.EIO, f"cannot thaw the file systems on {frozen}: {answer}")

    def close(self) -> None:
        """End the helper, which thaws what it still has."""
        self._helper.close()


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
