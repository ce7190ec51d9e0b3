"""What outlives this process: descriptors that a keeper holds for whoever comes after us (contract 5).

A process that serves devices may be killed at any moment; the next one goes on with the same descriptors. Each is
kept under a key that both of them can know: a device's number, a storage's identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Kept:
    """What was put under a key. The descriptors belong to whoever took them: the keeper has its own duplicates."""

    fds: tuple[int, ...]
    note: str


class Keep(Protocol):
    """Every method may be called from any thread; none waits for a device but `take`, when it must."""

    @property
    def lasting(self) -> bool:
        """Whether there is a keeper at all: without one, nothing needs to be written down for a successor."""
        ...

    def take(self, key: str) -> Kept | None:
        """Duplicates of what a process before us left under the key, which stays kept; None when there is nothing, or
        it was taken already. A process that can still write to a storage among it has ended when this returns."""
        ...

    def put(self, key: str, fds: Sequence[int], note: str = "") -> None:
        """Keep duplicates of the descriptors, in place of what the key had, in one step. Returns when they are kept."""
        ...

    def drop(self, key: str) -> None:
        """Let go of what the key has, if it has anything."""
        ...


class NoKeep:
    """Nothing outlives a program that has its devices to itself."""

    lasting = False

    def take(self, key: str) -> Kept | None:
        return None

    def put(self, key: str, fds: Sequence[int], note: str = "") -> None:
        pass

    def drop(self, key: str) -> None:
        pass
