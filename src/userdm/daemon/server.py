"""The control socket: one thread for each connection, one request for each connection.

The main thread accepts and waits for signals; a request that takes its time holds up nobody else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from userdm.abi import dm_ioctl as dm
from userdm.abi import frames, runtime
from userdm.daemon.call import Caller
from userdm.daemon.ioctls import Ioctls, words

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
"""How long a client may take over his request, and over taking our answer."""

ACCEPT_PAUSE = 0.1
"""Seconds."""
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

Query = Callable[[dict[str, Any]], dict[str, Any]]


class Server:
    """Serves a listening socket; `accept` takes one connection."""

    def __init__(self, runtime_dir: Path, listener: socket.socket, ioctls: Ioctls, query: Query) -> None:
        self._path = runtime_dir / runtime.CONTROL
        self._socket = listener
        self._ioctls = ioctls
        self._query = query
        self._idle = threading.Condition()
        self._busy = 0
        self.ending = False
        """The daemon is about to end: whoever waits for an event is told so."""
        self.leaving = False
        """Another worker takes our place: whoever waits for an event asks that one."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError as error:
            # out of descriptors, or he has gone again: the next one may be luckier
            log.warning("accept: %s", error)
            if error.errno in _SCARCE:
                # he stays where he is: asked again at once, it would be the same
                time.sleep(ACCEPT_PAUSE)
            return
        thread = threading.Thread(target=self._serve, args=(client,), name="control", daemon=True)
        with self._idle:
            self._busy += 1
        try:
            thread.start()
        except RuntimeError as error:
            log.error("no thread for a connection: %s", error)
            client.close()
            self._done()

    def end(self) -> None:
        """Take the socket's name away, so that who comes now finds the next daemon, and wake who waits for an event."""
        self.ending = True
        self._path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Take no more requests: who connects from now on waits for the next worker."""
        self.leaving = True

    def close(self) -> None:
        """No more connections. For the thread that accepts."""
        self._socket.close()

    def wait_idle(self, seconds: float, *, except_for: int = 0) -> bool:
        """Wait until no more than ``except_for`` requests are under way."""
        with self._idle:
            return self._idle.wait_for(lambda: self._busy <= except_for, seconds)

    def _done(self) -> None:
        with self._idle:
            self._busy -= 1
            self._idle.notify_all()

    # ---- one connection ---------------------------------------------------------------------------------------

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                self._converse(client)
        except (TimeoutError, ConnectionError, BrokenPipeError):
            pass  # he is gone; what he asked for was done or was never heard
        except OSError as error:
            if error.errno != errno.EPROTO:
                raise
            log.warning("control socket: %s", error.strerror)
        finally:
            self._done()

    def _converse(self, client: socket.socket) -> None:
        client.settimeout(REQUEST_SECONDS)
        pid, uid, _ = frames.peer(client)
        if uid not in (0, os.geteuid()):
            log.warning("refused pid %d of uid %d", pid, uid)
            frames.send_greeting(client, errno.EACCES)
            return
        frames.send_greeting(client, 0)
        kind, flags, nr, buffer = frames.receive_request(client)
        if hung_up(client):
            return  # he gave up while we were stopped: nobody waits for it to be done
        if kind == frames.QUERY:
            frames.send_reply(client, *self._answer_query(buffer))
        else:
            caller = Caller(
                *whereabouts(pid),
                force=bool(flags & frames.FORCE),
                gone=lambda: self.ending or self.leaving or hung_up(client),
            )
            self._answer_ioctl(client, nr, buffer, caller)

    def _answer_ioctl(self, client: socket.socket, nr: int, buffer: bytearray, caller: Caller) -> None:
        """Each command has its connection, so the one that armed a poll is what is polled: it ends with the next
        event, and an ended connection is one that can be read. So it does when the daemon ends, whose successor
        counts anew."""
        events = self._ioctls.events
        seen = events.number
        number, answer, detail = self._ioctls.execute(nr, buffer, caller)
        if number == errno.EINTR and self.leaving:
            return  # an answer that does not come is asked for again
        frames.send_reply(client, number, answer, detail)
        if nr == dm.DM_DEV_ARM_POLL and not number:
            events.wait(seen, caller.gone)

    def _answer_query(self, buffer: bytearray) -> tuple[int, bytes, str]:
        try:
            try:
                request = json.loads(buffer)
            except (ValueError, RecursionError) as error:
                raise OSError(errno.EINVAL, f"query: no JSON: {error}") from None
            if not isinstance(request, dict):
                raise OSError(errno.EINVAL, f"query: {type(request).__name__}, must be an object")
            return 0, json.dumps(self._query(request)).encode(), ""
        except OSError as error:
            return error.errno or errno.EIO, b"", words(error)
        except Exception as error:
            log.exception("query")
            return errno.EIO, b"", f"internal error: {error!r}"


def hung_up(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


def whereabouts(pid: int) -> tuple[str, str | None]:
    """(root, working folder) of a process as paths of ours; our own root when it cannot be seen, or is the same."""
    folder: str | None = None
    with contextlib.suppress(OSError):
        folder = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115
        root = f"/proc/{pid}/root"
        ours, theirs = os.stat("/"), os.stat(f"{root}/")  # noqa: PTH116
        namespaces = {os.readlink(f"/proc/{each}/ns/mnt") for each in (pid, "self")}  # noqa: PTH115
        if not os.path.samestat(ours, theirs) or len(namespaces) > 1:
            return root, folder
    return "/", folder
