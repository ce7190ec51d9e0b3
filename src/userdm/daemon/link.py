"""The worker's end: what the keeper holds for it, and what is said between them. Implements storage.keep.Keep."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Sequence

from userdm.daemon.packets import Message, pair, receive, send
from userdm.daemon.predecessors import Predecessors
from userdm.storage.keep import Kept


class Link:
    """One question at a time, each answered at once, so that neither end ever waits for room in the socket."""

    lasting = True

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._inherited: dict[str, Kept] = {}
        self._taken: set[str] = set()
        self.predecessors = Predecessors([])

    def _tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        with self._lock:
            send(self._sock, message, fds)

    def _ask(self, message: Message, fds: Sequence[int] = ()) -> tuple[Message, list[int]]:
        with self._lock:
            send(self._sock, message, fds)
            return self._received()

    def _received(self) -> tuple[Message, list[int]]:
        received = receive(self._sock)
        if received is None:
            # nothing is kept any more, and nobody will come after us
            os._exit(1)
        return received

    # ---- from the start to being ready --------------------------------------------------------------------------

    def loaded(self, idle_thread: int | None) -> tuple[Message, list[int]]:
        """Say so, and wait for our turn: what the keeper says then, with the listening socket and its stderr."""
        return self._ask({"loaded": True}, [] if idle_thread is None else [idle_thread])

    def inherit(self, before: list[int]) -> None:
        """Take over everything that is kept. ``before``: processes that are dead and not quite gone."""
        self.predecessors = Predecessors(before)
        while True:
            message, fds = self._ask({"give": len(self._inherited)})
            if "end" in message:
                return
            self._inherited[message["key"]] = Kept(tuple(fds), message["note"])

    def failed(self, text: str) -> None:
        self._tell({"failed": text[:4000]})

    def ready(self) -> None:
        self._tell({"ready": True})

    # ---- Keep ---------------------------------------------------------------------------------------------------

    def take(self, key: str) -> Kept | None:
        """As often as somebody asks, until it is put anew or dropped, or `settled` says that nobody will: what fails to
        come back at first must not come back the second time without what was kept for it."""
        with self._lock:
            kept = self._inherited.get(key)
            if kept is None:
                return None
            self._taken.add(key)
            kept = Kept(tuple(os.dup(fd) for fd in kept.fds), kept.note)
        if key.startswith("storage:"):
            self.predecessors.let_go_of(kept.fds)
        return kept

    def put(self, key: str, fds: Sequence[int], note: str = "") -> None:
        self._ask({"put": key, "note": note}, fds)
        self._forget(key)

    def drop(self, key: str) -> None:
        self._ask({"drop": key})
        self._forget(key)

    def _forget(self, key: str) -> None:
        with self._lock:
            kept = self._inherited.pop(key, None)
        for fd in kept.fds if kept is not None else ():
            os.close(fd)

    def left(self, prefix: str = "") -> list[str]:
        """What nobody has taken."""
        with self._lock:
            return [key for key in self._inherited if key.startswith(prefix) and key not in self._taken]

    def note(self, key: str) -> str:
        with self._lock:
            return self._inherited[key].note

    def settled(self) -> None:
        """Everything that comes back is back. What nobody has taken was dropped."""
        for key in list(self._inherited):
            self._forget(key)

    # ---- the end ------------------------------------------------------------------------------------------------

    def bye(self) -> None:
        """Nobody shall come after us."""
        self._ask({"bye": True})

    def leave(self) -> None:
        """Somebody shall."""
        self._ask({"leave": True})

    def prepare_successor(self) -> None:
        """Have the next worker started and loaded. OSError with its last words when it does not get there."""
        ours, its = pair()
        with ours:
            with its:
                self._ask({"upgrade": True}, [its.fileno()])
            received = receive(ours)
        failure = "the keeper does not answer" if received is None else received[0]["failed"]
        if failure:
            raise OSError(errno.ENOEXEC, f"the new worker does not start: {failure}")
