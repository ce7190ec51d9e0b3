"""What a pool still does, from everything to nothing, and what each change of mode brings.

Follows set_pool_mode, do_no_space_timeout and bind_control_target of drivers/md/dm-thin.c.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import IntEnum

from userdm.segment import Gate
from userdm.thin.features import Features

NO_SPACE_TIMEOUT = 60
"""Seconds that writes wait for space, as NO_SPACE_TIMEOUT_SECS of dm-thin.c."""
TIMEOUT_VARIABLE = "USERDM_NO_SPACE_TIMEOUT"
"""Other seconds, 0 for ever: the module parameter no_space_timeout of dm_thin_pool."""


class Mode(IntEnum):
    """The kernel's enum pool_mode: the worse, the higher."""

    WRITE = 0
    OUT_OF_DATA_SPACE = 1
    """What needs no new data block goes on, discards and messages too; the rest waits or gets ENOSPC."""
    OUT_OF_METADATA_SPACE = 2
    """Like READ_ONLY, until the metadata device grows or the table is loaded again."""
    READ_ONLY = 3
    FAIL = 4
    """Nobody knows what is on disk: every request fails."""


def no_space_timeout() -> int:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else NO_SPACE_TIMEOUT


class Modes:
    """The mode of one pool. The pool's lock is held around every call."""

    def __init__(self, needs_check: Callable[[], bool]) -> None:
        self._needs_check = needs_check
        self.mode = Mode.WRITE
        self.features = Features()
        """As the table asks for them."""
        self.error_if_no_space = False
        """What holds: the table's wish, or true when a wait for space has taken too long."""
        self.deadline: float | None = None
        """When that is."""
        self.space_gate = Gate()
        """Opens when whoever waits for space shall ask again."""
        self.on_event: Callable[[], None] = lambda: None
        self._table: object = None

    @property
    def readonly(self) -> bool:
        """Whether the metadata may not be changed."""
        return self.mode >= Mode.OUT_OF_METADATA_SPACE

    def set(self, new: Mode) -> None:
        old = self.mode
        if new is Mode.WRITE and self._needs_check():
            new = old if old is not Mode.WRITE else Mode.READ_ONLY
        if old is Mode.FAIL:
            new = old
        if new is Mode.OUT_OF_DATA_SPACE:
            seconds = no_space_timeout()
            if not self.error_if_no_space and seconds and self.deadline is None:
                self.deadline = time.monotonic() + seconds
        else:
            self.deadline = None
            if new is Mode.WRITE:
                self.error_if_no_space = self.features.error_if_no_space
        self.mode = new
        if new is not old:
            self.ask_again()
            self.on_event()

    def bind(self, table: object, features: Features) -> None:
        """A table takes over, at a resume. A new one brings the mode that it asks for; the same one as before
        changes nothing, but writes that run out of space wait again."""
        wanted = self.mode
        if table is not self._table:
            wanted = Mode.READ_ONLY if features.read_only else Mode.WRITE
        self._table = table
        self.features = features
        self.error_if_no_space = features.error_if_no_space
        self.set(wanted)

    def tick(self, now: float) -> None:
        """The wait for space ends in time: from then on it is an error."""
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.error_if_no_space = True
            self.on_event()
            self.ask_again()

    def ask_again(self) -> None:
        gate, self.space_gate = self.space_gate, Gate()
        gate.open()
