"""What can go wrong between a client and the daemon."""

from __future__ import annotations

import os


class ControlError(OSError):
    """The daemon's answer to a command that failed: the kernel's errno, and why in words (``detail``, may be empty)."""

    def __init__(self, number: int, detail: str = "") -> None:
        super().__init__(number, detail or os.strerror(number))
        self.detail = detail


class DaemonError(OSError):
    """The daemon could not be asked: it does not run, does not start, does not answer, or is somebody else's."""


class NoDaemon(DaemonError):
    """No daemon runs for this runtime folder (ENOENT)."""


class HungDaemon(DaemonError):
    """A daemon holds the runtime folder and does not answer (ETIMEDOUT). ``pid`` is its process."""

    def __init__(self, number: int, text: str, pid: int) -> None:
        super().__init__(number, text)
        self.pid = pid
