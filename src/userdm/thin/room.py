"""Is there room for a change of the metadata? Asked before it begins, so that no change ends half way.

A change copies blocks, each at most once in a transaction, and adds some; the commit does the same for what is kept
in memory until then. Both are bounded here by what there is to copy. A part of the device, the kernel's metadata
reserve, is left to the commit and to changes that free something.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from userdm.pdata.bitmap import ENTRIES
from userdm.pdata.node import max_entries

if TYPE_CHECKING:
    from userdm.thin.metadata import PoolMetadata

MAX_RESERVE = 4096
"""Metadata blocks; the reserve is a tenth of a smaller device."""

PATH = 6
"""At most so many nodes lie between a root and a leaf of a tree that fits into the metadata."""

LEAF_MOST = max_entries(8)
LEAF_LEAST = LEAF_MOST // 3


class Room:
    def __init__(self, pool: PoolMetadata) -> None:
        self._pool = pool
        self._overflow = (-1, 0)

    @property
    def reserve(self) -> int:
        """Metadata blocks that the status line does not show as free."""
        return min(MAX_RESERVE, self._pool.nr_metadata_blocks // 10)

    def _overflow_nodes(self) -> int:
        """Nodes of the data's overflow tree; counted once for each of its roots."""
        counts = self._pool.data.counts
        if self._overflow[0] != counts.overflow_root:
            self._overflow = (counts.overflow_root, counts.overflow.nr_nodes(counts.overflow_root))
        return self._overflow[1]

    def _commit(self, many: int, freeing: bool) -> int:
        """Blocks that the commit may take, when ``many`` counts change that are or come above two."""
        pool = self._pool
        pending = len(pool.data.counts.many)
        overflow = 0
        if pending + many:
            nodes = self._overflow_nodes()
            overflow = min(PATH * (pending + many), nodes)
            grown = pending + (0 if freeing else many)
            # each node may split for one entry more, and then has room for many
            overflow += min(grown, nodes + grown // LEAF_LEAST) + PATH
        entries = pool.data.counts.nr_changed + pool.nr_touched + 1
        copies = min(PATH * entries + overflow, pool.space.nr_copied_at_most + overflow)
        return pool.space.fold_need + copies + entries // 28 + PATH

    def _ample(self, blocks: int) -> bool:
        """Whether everything could be copied, by the change and by the commit again, and more."""
        space = self._pool.space
        spare = space.nr_free - 2 * space.nr_used - self.reserve
        return spare > 1024 + blocks + len(self._pool.data.counts.many)

    def want(self, copies: int, growth: int, *, many: int = 0, freeing: bool = False) -> None:
        """ENOSPC unless ``copies`` blocks can be copied and ``growth`` added."""
        space = self._pool.space
        kept = self._commit(many, freeing)
        if not freeing:
            kept = max(kept, self.reserve)
        need = min(copies, space.nr_copied_at_most) + growth
        if space.nr_free < need + kept:
            raise OSError(
                errno.ENOSPC,
                f"no room for the metadata: {space.nr_free} of {space.nr_blocks} blocks are free, "
                f"{need} may be wanted and {kept} are kept for the commit",
            )

    def change(self, blocks: int, *, freeing: bool = False) -> None:
        """ENOSPC unless a run of so many blocks can be mapped, or so many mapped ones in a range be unmapped."""
        if self._ample(blocks):
            return
        leaves = blocks // LEAF_LEAST + 2
        # each block of a shared leaf gets an owner, and any of them may have a bitmap of its own
        counted = leaves * LEAF_MOST
        bitmaps = min(counted, -(-self._pool.nr_data_blocks // ENTRIES))
        growth = 0 if freeing else 2 * leaves + PATH
        self.want(4 * PATH + leaves + bitmaps, growth, many=counted, freeing=freeing)

    def grow(self, nr_blocks: int) -> None:
        """ENOSPC unless the data device can grow to so many blocks."""
        bitmaps = -(-nr_blocks // ENTRIES) - -(-self._pool.nr_data_blocks // ENTRIES)
        # and the index: an entry of 16 bytes a bitmap
        self.want(PATH, bitmaps + bitmaps // (max_entries(16) // 3) + PATH)
