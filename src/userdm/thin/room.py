"""Is there room for a change of the metadata? Asked before it begins, so that no change ends half way.

A change copies blocks, each at most once in a transaction, and adds some; so does the commit, for what is kept in
memory until then. Where there is plenty, that is the end of it; otherwise both are bounded by what the change can
touch. A part of the device is the kernel's metadata reserve: a change that finds nothing else free does not begin,
unless it frees something; one that begins before may go into it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from userdm.pdata.bitmap import ENTRIES
from userdm.pdata.btree import BTree
from userdm.pdata.node import max_entries
from userdm.thin.mapping import ThinMetadata

if TYPE_CHECKING:
    from userdm.thin.metadata import PoolMetadata

MAX_RESERVE = 4096
"""Metadata blocks; the reserve is a tenth of a smaller device."""

PATH = 6
"""More nodes than there are from the top level's root to a leaf of a device's tree, in all but absurd cases."""

LEAF = max_entries(8)
OVERFLOW_LEAST = max_entries(4) // 3
INDEX_LEAST = max_entries(16) // 3


def _copied(tree: BTree, root: int, keys: int) -> int:
    """At most so many nodes are copied to change so many keys."""
    return min(keys * tree.depth(root), tree.nr_nodes(root)) if keys else 0


def _split(tree: BTree, root: int, keys: int) -> int:
    """At most so many nodes are added for so many keys: each may split for one key more, and then has room."""
    return min(keys, tree.nr_nodes(root) + keys // OVERFLOW_LEAST) + 1 if keys else 0


class Room:
    def __init__(self, pool: PoolMetadata) -> None:
        self._pool = pool
        self.trusting = False
        """There was room for every change, and there is again: they are being replayed."""

    @property
    def reserve(self) -> int:
        """Metadata blocks that the status line does not show as free."""
        return min(MAX_RESERVE, self._pool.nr_metadata_blocks // 10)

    def ample(self, blocks: int) -> bool:
        """Whether everything could be copied, by the change and by the commit again, and more."""
        space = self._pool.space
        spare = space.nr_free - 2 * space.nr_used - self.reserve
        return spare > 1024 + blocks + len(self._pool.data.counts.many)

    @property
    def _shared(self) -> int:
        """Entries of a leaf that may be shared; none before the first snapshot."""
        return LEAF if self._pool.time or self._pool.held_root else 0

    def _commit(self, inc: int, dec: int, bitmaps: int, devices: int) -> int:
        """Blocks that the commit may take after a change that does so much more."""
        pool = self._pool
        space, counts = pool.space, pool.data.counts
        pending = len(counts.many)
        if counts.overflow.node(counts.overflow_root).n == 0:
            dec = 0
        copies = _copied(counts.overflow, counts.overflow_root, pending + inc + dec)
        copies += _copied(pool.data.index.tree, pool.data.index.root, counts.nr_changed + bitmaps)
        copies += _copied(pool.details_tree, pool.details_root, pool.nr_touched + devices)
        growth = _split(counts.overflow, counts.overflow_root, pending + inc)
        # the counts of the metadata itself: those of the children of a shared node change
        shared = space.nr_changed + self._shared * PATH if self._shared else 0
        copies += _copied(space.counts.overflow, space.counts.overflow_root, space.nr_changed + shared)
        growth += _split(space.counts.overflow, space.counts.overflow_root, shared)
        return space.fold_need + min(copies, space.nr_copied_at_most) + growth

    def want(
        self, copies: int, growth: int, *, inc: int = 0, dec: int = 0, devices: int = 1, freeing: bool = False
    ) -> None:
        """ENOSPC unless ``copies`` nodes of the mapping can be copied and ``growth`` blocks added.

        ``inc`` and ``dec`` are how many data blocks get an owner more and less, ``devices`` how many details change.
        """
        if self.trusting:
            return
        pool = self._pool
        bitmaps = min(inc + dec, -(-pool.nr_data_blocks // ENTRIES))
        kept = self._commit(inc, dec, bitmaps, devices)
        need = min(copies + bitmaps, pool.space.nr_copied_at_most) + growth
        if pool.space.nr_free < need + kept or (pool.free_metadata_blocks == 0 and not freeing):
            raise OSError(
                errno.ENOSPC,
                f"no room for the metadata: {pool.space.nr_free} of {pool.space.nr_blocks} blocks are free, "
                f"{need} may be wanted and {kept} are kept for the commit",
            )

    def create(self) -> None:
        """ENOSPC unless a device can be added."""
        pool = self._pool
        top = pool.trees.top.depth(pool.root)
        self.want(top, top + pool.details_tree.depth(pool.details_root) + 3, devices=2)

    def insert(self, thin: ThinMetadata, vblock: int, length: int) -> None:
        """ENOSPC unless a run of blocks can be mapped."""
        if self.ample(length):
            return
        trees = self._pool.trees
        top, bottom = trees.top.depth(self._pool.root), trees.bottom.depth(thin.root)
        leaves = mapped = 0
        for _, start, stop in trees.bottom.pieces(thin.root, vblock, vblock + length):
            leaves += 1
            mapped += stop - start
        edges = min(2 * self._shared, thin.mapped_blocks)
        growth = length // LEAF + leaves + bottom + 2
        # the new blocks lie in a bitmap or two that nothing else may touch
        self.want(top + 2 * bottom + leaves, growth, inc=edges + length // ENTRIES + 1, dec=mapped)

    def remove(self, thin: ThinMetadata, mapped: int) -> None:
        """ENOSPC unless a range of the device, with so many blocks mapped, can be unmapped."""
        if self.ample(0):
            return
        trees = self._pool.trees
        # on both sides of the gap, on each level, a neighbour may be drawn in to fill up
        copies = trees.top.depth(self._pool.root) + 4 * trees.bottom.depth(thin.root) - 3
        self.want(copies, 0, inc=min(4 * self._shared, thin.mapped_blocks), dec=mapped, freeing=True)

    def delete(self, thin: ThinMetadata) -> None:
        """ENOSPC unless the device can be deleted."""
        if self.ample(0):
            return
        pool = self._pool
        copies = 2 * pool.trees.top.depth(pool.root) - 1
        self.want(copies, 0, dec=thin.mapped_blocks, devices=2, freeing=True)

    def release(self) -> None:
        """ENOSPC unless the metadata snapshot can be given up."""
        self.want(0, 0, dec=self._pool.data.counts.nr_allocated, freeing=True)

    def grow(self, nr_blocks: int) -> None:
        """ENOSPC unless the data device can grow to so many blocks."""
        bitmaps = -(-nr_blocks // ENTRIES) - -(-self._pool.nr_data_blocks // ENTRIES)
        self.want(0, bitmaps + bitmaps // INDEX_LEAST + 2)
