"""A transaction that is over in memory and on its way to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from userdm.pdata.bitmap import Mask
from userdm.pdata.block import Block
from userdm.pdata.manager import write_blocks
from userdm.storage import Storage


@dataclass
class SealedCommit:
    """Nothing in it changes any more, so `write` needs no lock."""

    blocks: Sequence[Block]
    superblock: bytes
    freed_metadata: list[int]
    freed_data: list[tuple[int, int]]
    dropped: bool
    """A shared tree node lost an owner in it."""
    dropped_data: Mask
    """The data blocks that lost a reference in it."""

    def write(self, storage: Storage, flush_data: Callable[[], None]) -> None:
        """Make it durable: data flush, metadata blocks, metadata flush, superblock, flush. OSError."""
        flush_data()
        write_blocks(storage, self.blocks)
        storage.flush()
        storage.write(0, self.superblock)
        storage.flush()
