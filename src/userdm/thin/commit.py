"""Commits shared: who asks while one runs waits for the next, and one next commit serves all who wait."""

from __future__ import annotations

import threading
from collections.abc import Callable


class GroupCommit:
    """Runs ``commit`` one at a time; a call returns when a run that *started after it* has ended."""

    def __init__(self, commit: Callable[[], None]) -> None:
        self._commit = commit
        self._condition = threading.Condition()
        self._started = 0
        self._finished = 0
        self._failures: dict[int, BaseException] = {}

    @property
    def running(self) -> bool:
        return self._started != self._finished

    def run(self) -> None:
        """Raises what the run raised."""
        with self._condition:
            wanted = self._started + 1
            # A run that ended before we woke may be a later one than wanted; it served us just as well.
            self._condition.wait_for(lambda: self._finished >= wanted or not self.running)
            if self._finished >= wanted:
                self._raise(wanted)
                return
            self._started += 1
            mine = self._started
        failure: BaseException | None = None
        try:
            self._commit()
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._condition:
                self._finished = mine
                if failure is not None:
                    self._failures[mine] = failure
                    self._failures.pop(mine - 16, None)
                self._condition.notify_all()

    def _raise(self, run: int) -> None:
        failure = self._failures.get(run)
        if isinstance(failure, OSError):
            raise OSError(failure.errno, failure.strerror) from failure
        if failure is not None:
            raise failure
