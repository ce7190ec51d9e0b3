"""How devices stand on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from userdm.mapper.device import MappedDevice

MAX_LEVELS = 64
"""Devices that may stand on each other: what is asked of the topmost is asked of each below it in turn, in one call
within the other, of which Python allows a thousand."""


def levels_above(device: MappedDevice) -> int:
    """How many devices there are from the topmost down to this one. Under the mapper's graph lock."""
    return _levels(device, lambda lower: [user.device for user in lower.users])


def levels_below(device: MappedDevice) -> int:
    """How many there are from this one down, by its live and its inactive table."""

    def lowers(upper: MappedDevice) -> list[MappedDevice]:
        tables = [table for table in (upper.live, upper.inactive) if table is not None]
        return [lower for table in tables for lower in table.opened.devices]

    return _levels(device, lowers)


def _levels(device: MappedDevice, step: Callable[[MappedDevice], Iterable[MappedDevice]]) -> int:
    """The longest way, itself included; without recursion, which is what this is about."""
    found: dict[int, int] = {}
    stack = [(device, False)]
    while stack:
        at, done = stack.pop()
        if done:
            found[id(at)] = 1 + max((found[id(other)] for other in step(at) if id(other) in found), default=0)
        elif id(at) not in found:
            found[id(at)] = 0
            stack.append((at, True))
            stack.extend((other, False) for other in step(at))
    return found[id(device)]
