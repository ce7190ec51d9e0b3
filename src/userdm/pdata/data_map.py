"""The disk space map: reference counts of the data blocks, and which of them may be used."""

from __future__ import annotations

import errno

from userdm.pdata.allocator import Allocator
from userdm.pdata.bitmap import Mask
from userdm.pdata.block import corrupt
from userdm.pdata.btree import BTree, ValueType
from userdm.pdata.counts import Counts, IndexEntry, Root
from userdm.pdata.transaction import Transaction


class TreeIndex:
    """Index entries in a btree."""

    def __init__(self, tx: Transaction, root: int) -> None:
        self.tree = BTree(tx, ValueType(IndexEntry.LAYOUT.size))
        self.root = root

    def load(self, page: int) -> IndexEntry:
        raw = self.tree.get(self.root, page)
        if raw is None:
            raise corrupt(self.root, f"the space map's index lacks bitmap {page}")
        return IndexEntry.unpack(raw)

    def save(self, entries: dict[int, IndexEntry]) -> None:
        """``entries`` are in order; neighbours go in together."""
        first, values = 0, b""
        for page, entry in entries.items():
            if values and page != first + len(values) // entry.LAYOUT.size:
                self.root = self.tree.insert(self.root, first, values)
                values = b""
            if not values:
                first = page
            values += entry.pack()
        if values:
            self.root = self.tree.insert(self.root, first, values)


class DataSpaceMap:
    """Counts, and an allocator that hands out *reserved* blocks: they have no count until they are mapped.

    A block that falls to zero is held back until `release`, at the earliest after the commit.
    """

    def __init__(self, tx: Transaction, root: Root) -> None:
        self._tx = tx
        self.index = TreeIndex(tx, root.bitmap_root)
        self.counts = Counts(tx, self.index, root)
        self._allocator = Allocator(self.counts)
        self._reserved = Mask()
        self.nr_reserved = 0
        self.nr_held = 0
        """Blocks with count zero that wait for `release`."""
        self.freed: list[tuple[int, int]] = []
        """Runs that fell to zero in this transaction."""
        self.dropped = Mask()
        """Blocks that lost a reference in this transaction and have others left."""

    @classmethod
    def create(cls, tx: Transaction) -> DataSpaceMap:
        """A new map, of no blocks."""
        index = BTree(tx, ValueType(IndexEntry.LAYOUT.size)).empty()
        return cls(tx, Root(0, 0, index, BTree(tx, ValueType(4)).empty()))

    @property
    def nr_blocks(self) -> int:
        return self.counts.nr_blocks

    @property
    def nr_free(self) -> int:
        """Blocks that are neither mapped nor reserved."""
        return self.counts.nr_blocks - self.counts.nr_allocated - self.nr_reserved

    def extend(self, nr_blocks: int) -> None:
        for page in self.counts.extend(nr_blocks):
            self.counts.add_bitmap(page, self._tx.new_bitmap())
        self._allocator.forget()

    # reservations, in memory only

    def reserve(self, count: int) -> tuple[int, int]:
        """(first block, how many up to ``count``); ENOSPC."""
        run = self._allocator.take(count) if self.nr_free > self.nr_held else None
        if run is None:
            raise OSError(
                errno.ENOSPC,
                f"no free data block: of {self.nr_blocks}, {self.counts.nr_allocated} are mapped, "
                f"{self.nr_reserved} reserved, {self.nr_held} wait for the commit that frees them",
            )
        self._reserved.add(*run)
        self.nr_reserved += run[1]
        return run

    def claim(self, block: int, count: int) -> None:
        """Reserve these very blocks; EBUSY when one of them is not free."""
        self._check(block, count)
        if self._allocator.withheld(block, count) or any(self.counts.get(b) for b in range(block, block + count)):
            raise OSError(errno.EBUSY, f"data blocks {block}+{count} are not all free")
        self._allocator.withhold(block, count)
        self._allocator.forget()
        self._reserved.add(block, count)
        self.nr_reserved += count

    def unreserve(self, block: int, count: int) -> None:
        self.check_reserved(block, count)
        self._reserved.remove(block, count)
        self.nr_reserved -= count
        self._allocator.release(block, count)

    def _check(self, block: int, count: int) -> None:
        if block < 0 or count < 1 or block + count > self.nr_blocks:
            raise OSError(errno.EINVAL, f"data blocks {block}+{count} do not exist: there are {self.nr_blocks}")

    def check_reserved(self, block: int, count: int) -> None:
        self._check(block, count)
        if not self._reserved.all(block, count):
            raise OSError(errno.EINVAL, f"data blocks {block}+{count} are not all reserved")

    # references

    def map_reserved(self, block: int, count: int) -> None:
        """Reserved blocks get their first reference."""
        self.counts.inc(block, count)
        self._reserved.remove(block, count)
        self.nr_reserved -= count

    def inc(self, block: int, count: int) -> None:
        self.counts.inc(block, count)

    def dec(self, block: int, count: int) -> None:
        freed = self.counts.dec(block, count)
        left = count
        for run in freed:
            self._allocator.withhold(*run)
            self.nr_held += run[1]
            left -= run[1]
        self.freed += freed
        if left:
            self.dropped.add(block, count)

    def release(self, block: int, count: int) -> None:
        """Blocks that were freed may be used again."""
        self._allocator.release(block, count)
        self.nr_held -= count

    def flush(self) -> None:
        """Everything that is kept in memory goes into the trees."""
        self.counts.flush_many()
        self.counts.flush_index()
