"""The number of all events, of any device: what poll(2) on the kernel's control node looks at.

It counts a device made, removed or renamed, and every event of a device's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Events:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.number = 0
        self.heard: Callable[[], None] = lambda: None
        """Called for each event by whoever caused it, under whatever lock he holds."""

    def count(self) -> None:
        with self._changed:
            self.number += 1
            self._changed.notify_all()
        self.heard()

    def wait(self, seen: int, cancelled: Callable[[], bool]) -> None:
        """Return when there was an event after number ``seen``, or ``cancelled`` says so."""
        with self._changed:
            while self.number == seen and not cancelled():
                self._changed.wait(0.2)
