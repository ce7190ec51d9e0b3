"""What the device details tree says of a thin device."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_LAYOUT = struct.Struct("<QQII")


@dataclass
class Details:
    """The kernel's struct disk_device_details; ``mapped_blocks`` counts data blocks, the times count snapshots."""

    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int

    SIZE = _LAYOUT.size

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Details:
        return cls(*_LAYOUT.unpack(raw))

    def pack(self) -> bytes:
        return _LAYOUT.pack(self.mapped_blocks, self.transaction_id, self.creation_time, self.snapshotted_time)
