"""Requests that wait for a gate: a suspended device, a full pool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from userdm.export.buffer import Buffer
from userdm.segment import Gate


class Request:
    """A request that was read and not answered, in memory of its own: ``length`` bytes from the buffer's start."""

    __slots__ = ("buffer", "length", "pid", "unique")

    def __init__(self, buffer: Buffer, length: int, unique: int, pid: int) -> None:
        self.buffer = buffer
        self.length = length
        self.unique = unique
        self.pid = pid


class Parking:
    """Keeps requests until their gates open, then has them tried again, one after the other, on a thread of its own.

    Whoever opens a gate only puts a request into a queue, so it may hold any lock.
    """

    def __init__(self, name: str, retry: Callable[[SimpleQueue[Request | None]], None]) -> None:
        """``retry`` is the thread's body: it takes requests from the queue until it takes None."""
        self._name = name
        self._retry = retry
        self._ready: SimpleQueue[Request | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: dict[int, Request] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def park(self, request: Request, gate: Gate) -> None:
        with self._lock:
            if self._closed:
                return
            self._waiting[request.unique] = request
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._retry, args=(self._ready,), name=f"{self._name} parked", daemon=True
                )
                self._thread.start()
        gate.then(partial(self._ready.put, request))

    def claim(self, unique: int) -> Request | None:
        """Take a request out, to try it again or to give it up; None when somebody else has taken it."""
        with self._lock:
            return self._waiting.pop(unique, None)

    def pids(self) -> list[tuple[int, int]]:
        """(unique, thread id of the asker) of each waiting request."""
        with self._lock:
            return [(request.unique, request.pid) for request in self._waiting.values()]

    def close(self, timeout: float) -> bool:
        """Drop what waits and end the thread; False when it did not end in time."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            thread = self._thread
        if thread is None:
            return True
        self._ready.put(None)
        thread.join(timeout)
        return not thread.is_alive()
