"""One thin device's mapping: virtual blocks to data blocks, each with the time at which it was mapped."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from userdm.pdata.block import corrupt
from userdm.pdata.btree import MAX_KEY, BTree, ValueType
from userdm.pdata.data_map import DataSpaceMap
from userdm.pdata.node import Node
from userdm.pdata.prune import delete, remove
from userdm.pdata.transaction import Transaction
from userdm.thin.details import Details
from userdm.thin.redo import Kind

if TYPE_CHECKING:
    from userdm.thin.metadata import PoolMetadata

TIME_BITS = 24
MAX_TIME = (1 << TIME_BITS) - 1
MAX_DATA_BLOCKS = 1 << 64 - TIME_BITS
"""A mapping is block << 24 | time, in 64 bits."""


class Run(NamedTuple):
    """Neighbours in the volume that are neighbours on the data device, all of them shared or none. In blocks."""

    vblock: int
    pblock: int
    length: int
    shared: bool


def data_runs(leaf: Node, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The data blocks of a leaf's entries as runs (first, length), in the order of the leaf."""
    first = after = -1
    for value in leaf.values[start:end]:
        block = value >> TIME_BITS
        if block != after:
            if first >= 0:
                yield first, after - first
            first = block
        after = block + 1
    if first >= 0:
        yield first, after - first


class MappingTrees:
    """The two levels: device id to the root of its tree, and there virtual block to data block and time."""

    def __init__(self, tx: Transaction, data: DataSpaceMap) -> None:
        self._tx = tx
        self._data = data
        self.bottom = BTree(tx, ValueType(8, self._inc_data, self.dec_data))
        self.top = BTree(tx, ValueType(8, self._inc_roots, self._dec_roots))

    def _inc_data(self, leaf: Node, start: int, end: int) -> None:
        for run in data_runs(leaf, start, end):
            self._data.inc(*run)

    def dec_data(self, leaf: Node, start: int, end: int) -> None:
        for run in data_runs(leaf, start, end):
            self._data.dec(*run)

    def _inc_roots(self, leaf: Node, start: int, end: int) -> None:
        for root in leaf.values[start:end]:
            self._tx.inc(root)

    def _dec_roots(self, leaf: Node, start: int, end: int) -> None:
        for root in leaf.values[start:end]:
            delete(self.bottom, root)


class ThinMetadata:
    """One thin device of an open pool. Blocks are data blocks."""

    def __init__(self, pool: PoolMetadata, dev_id: int, details: Details, root: int) -> None:
        self.pool = pool
        self.dev_id = dev_id
        self.details = details
        self.root = root
        """Of the device's own tree. The top level learns of a new one when the pool settles."""
        self.owned = -1
        """The pool's `era` in which the way to this device in the top level was made ours alone."""
        self.deleted = False

    @property
    def mapped_blocks(self) -> int:
        return self.details.mapped_blocks

    @property
    def transaction_id(self) -> int:
        return self.details.transaction_id

    @property
    def creation_time(self) -> int:
        return self.details.creation_time

    @property
    def snapshotted_time(self) -> int:
        return self.details.snapshotted_time

    def _check(self) -> None:
        if self.deleted:
            raise OSError(errno.ENODATA, f"thin device {self.dev_id} was deleted")

    # looking

    def lookup(self, vblock: int) -> tuple[int, bool] | None:
        """(data block, shared) or None for a hole. Shared by the kernel's rule: mapped before the last snapshot."""
        self._check()
        found = self.pool.trees.bottom.find(self.root, vblock)
        if found is None:
            return None
        leaf, at = found
        value = leaf.values[at]
        pblock = value >> TIME_BITS
        if pblock >= self.pool.nr_data_blocks:
            raise self._outside(leaf, pblock, 1)
        return pblock, self.details.snapshotted_time > value & MAX_TIME

    def lookup_runs(self, begin: int, end: int) -> list[Run]:
        """What is mapped of the blocks begin to end, in maximal runs; holes are left out."""
        self._check()
        runs: list[Run] = []
        snapshotted = self.details.snapshotted_time
        first = vnext = pfirst = pnext = -1
        shared = False
        for leaf, start, stop in self.pool.trees.bottom.pieces(self.root, begin, end):
            for vblock, value in zip(leaf.keys[start:stop], leaf.values[start:stop]):  # noqa: B905 - both have stop - start
                pblock = value >> TIME_BITS
                old = snapshotted > value & MAX_TIME
                if pblock != pnext or vblock != vnext or old is not shared:
                    if first >= 0:
                        runs.append(self._run(leaf, first, pfirst, vnext - first, shared))
                    first, pfirst, shared = vblock, pblock, old
                vnext, pnext = vblock + 1, pblock + 1
        if first >= 0:
            runs.append(self._run(leaf, first, pfirst, vnext - first, shared))
        return runs

    def _run(self, leaf: Node, vblock: int, pblock: int, length: int, shared: bool) -> Run:
        if pblock + length > self.pool.nr_data_blocks:
            raise self._outside(leaf, pblock, length)
        return Run(vblock, pblock, length, shared)

    def _outside(self, leaf: Node, pblock: int, length: int) -> OSError:
        return corrupt(
            leaf.blocknr,
            f"thin device {self.dev_id} is mapped to data blocks {pblock}+{length}, "
            f"expected blocks below {self.pool.nr_data_blocks}",
        )

    def highest_mapped(self) -> int | None:
        """The highest block that is mapped; None when nothing is."""
        self._check()
        return self.pool.trees.bottom.highest(self.root)

    def end_of(self, count: int) -> int | None:
        """The block before which the first ``count`` mapped blocks lie; None when there are hardly more of them, or
        when another device has the very same ones."""
        self._check()
        if self.mapped_blocks <= count or self.pool.shared_node(self.root):
            return None
        seen = 0
        for leaf, start, stop in self.pool.trees.bottom.pieces(self.root):
            seen += stop - start
            if seen >= count:
                return leaf.keys[stop - 1] + 1
        return None

    def exclusive(self, vblock: int) -> bool:
        """Whether this device alone reaches the block's data, now and in the last durable state.

        False may mean that it is not worth finding out.
        """
        self._check()
        pool = self.pool
        if pool.drops_pending:
            return False
        leaf = None
        for tree, root, key in ((pool.trees.top, pool.root, self.dev_id), (pool.trees.bottom, self.root, vblock)):
            for leaf in tree.path(root, key):
                if pool.shared_node(leaf.blocknr):
                    return False
        at = leaf.below(vblock) if leaf is not None else -1
        if leaf is None or at < 0 or leaf.keys[at] != vblock:
            return False
        return pool.sole_reference(leaf.values[at] >> TIME_BITS)

    # changing

    def insert(self, vblock: int, pblock: int, length: int = 1) -> None:
        """Map a run of blocks to reserved data blocks, in place of what they were mapped to.

        ENOSPC when there is no room for the metadata, EINVAL for blocks that are not reserved: nothing is changed.
        """
        pool = self.pool
        self._check()
        pool.check_writable()
        pool.data.check_reserved(pblock, length)
        if not 0 <= vblock <= MAX_KEY + 1 - length:
            raise OSError(errno.EINVAL, f"blocks {vblock}+{length} do not exist: the highest is {MAX_KEY}")
        pool.room.insert(self, vblock, length)
        with pool.all_or_broken():
            pool.own(self)
            self._replaced = 0
            low = (pblock << TIME_BITS) | pool.time
            step = 1 << TIME_BITS
            values = array("Q", range(low, low + length * step, step)).tobytes()
            self.root = pool.trees.bottom.insert(self.root, vblock, values, self._replace)
            pool.data.map_reserved(pblock, length)
            self._count(length - self._replaced)
        pool.log(Kind.MAP, self.dev_id, vblock, pblock, length)

    def renew(self, vblock: int, pblock: int) -> None:
        """The block, which is `exclusive`, is mapped as if it were new: not shared, until the next snapshot.

        Nobody who comes after us needs to know: at worst the block is taken for shared again. ENOSPC: unchanged.
        """
        pool = self.pool
        self._check()
        pool.check_writable()
        pool.room.insert(self, vblock, 1)
        with pool.all_or_broken():
            pool.own(self)
            value = (pblock << TIME_BITS) | pool.time
            self.root = pool.trees.bottom.insert(self.root, vblock, value.to_bytes(8, "little"))
            pool.touch(self)

    def _count(self, change: int) -> None:
        """So many blocks more are mapped."""
        mapped = self.details.mapped_blocks + change
        if not 0 <= mapped <= MAX_KEY:
            raise corrupt(
                self.pool.details_root,
                f"thin device {self.dev_id} is said to have {self.details.mapped_blocks} mapped blocks, "
                f"which cannot change by {change}",
            )
        self.details.mapped_blocks = mapped
        self.pool.touch(self)

    def _replace(self, leaf: Node, start: int, end: int) -> None:
        self._replaced += end - start
        self.pool.trees.dec_data(leaf, start, end)

    def remove(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Unmap the blocks begin to end: the runs (first, length) of data blocks that nobody maps any more.

        They are held back until the commit that frees them is finished and they are released. ENOSPC: unchanged.
        """
        pool = self.pool
        self._check()
        pool.check_writable()
        bottom = pool.trees.bottom
        mapped = sum(stop - start for _, start, stop in bottom.pieces(self.root, begin, end))
        if mapped == 0:
            return []
        pool.room.remove(self, mapped)
        with pool.all_or_broken():
            pool.own(self)
            freed = len(pool.data.freed)
            self.root = remove(bottom, self.root, begin, end)
            self._count(-mapped)
        pool.log(Kind.UNMAP, self.dev_id, begin, min(end - 1, MAX_KEY))
        return pool.data.freed[freed:]
