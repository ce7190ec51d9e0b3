"""Freed data blocks on their way back to the free ones.

A block that a transaction freed is handed out again only after its commit is durable, the requests that were in flight
then have ended, and the discard that made it free was passed down.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from userdm.segment import Gate
from userdm.storage import Storage

Runs = list[tuple[int, int]]


@dataclass(slots=True)
class _Freed:
    """What one commit freed. Runs are (first block, count)."""

    runs: Runs
    passdown: Runs
    graces: list[Callable[[], bool]]
    gate: Gate


class Reclaim:
    """`add` and the looks under the pool's lock; `give_back` without it, by one thread at a time.

    ``release`` takes the lock, makes the blocks free and calls `forget_first`.
    """

    def __init__(self, data: Storage, block_bytes: int, release: Callable[[Runs], None]) -> None:
        self._data = data
        self._block_bytes = block_bytes
        self._release = release
        self._freed: list[_Freed] = []

    def add(self, runs: Runs, passdown: Runs, graces: list[Callable[[], bool]], gate: Gate) -> None:
        """``graces`` say whether the requests in flight have ended; the gate opens when the blocks are free."""
        self._freed.append(_Freed(runs, passdown, graces, gate))

    def __bool__(self) -> bool:
        return bool(self._freed)

    @property
    def last_gate(self) -> Gate:
        return self._freed[-1].gate

    def give_back(self) -> None:
        """Give back what has waited long enough."""
        while self._freed:
            first = self._freed[0]
            if not all(look() for look in first.graces):
                return
            size = self._block_bytes
            for block, count in first.passdown:
                with suppress(OSError):  # a discard is a hint; the block is free all the same
                    self._data.discard(block * size, count * size)
            self._release(first.runs)
            first.gate.open()

    def forget_first(self) -> None:
        del self._freed[0]
