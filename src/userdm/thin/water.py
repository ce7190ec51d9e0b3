"""The two low water marks, each told by an event: that of the table for data blocks, the kernel's own for metadata.

Follows check_low_water_mark of dm-thin.c and the threshold of dm-space-map-metadata.c.
"""

from __future__ import annotations

from userdm.thin.metadata import PoolMetadata
from userdm.thin.modes import Modes

MOST = 1024
"""Metadata blocks: 4 MiB are enough for every operation but the deletion of a large device."""


def metadata_low_water(device_blocks: int) -> int:
    """Blocks of metadata below which there is an event: a quarter of the device, at most 4 MiB of it."""
    return min(MOST, device_blocks // 4)


class LowWater:
    """The pool's lock is held around every call."""

    def __init__(self, metadata: PoolMetadata, modes: Modes) -> None:
        self._metadata = metadata
        self._modes = modes
        self.data_blocks = 0
        """The mark of the table."""
        self.told = False
        """Once, until the pool is resumed."""
        self.metadata_blocks = 0
        self._below = False

    def check_data(self, wanted: int) -> None:
        """Blocks are about to be taken, one after the other: is one of them at the mark or below?"""
        if self.told:
            return
        data = self._metadata.data
        if data.nr_free - data.nr_held - wanted >= self.data_blocks:
            return
        free = data.nr_free - sum(count for _, count in data.freed)
        if max(free - wanted + 1, 0) <= self.data_blocks:
            self.told = True
            self._modes.on_event()

    def check_metadata(self) -> None:
        """Each time that the mark is passed."""
        below = self._metadata.space.nr_free <= self.metadata_blocks
        if below and not self._below:
            self._modes.on_event()
        self._below = below
