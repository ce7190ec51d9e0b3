"""The metadata space map: the reference counts of the very blocks that it is made of.

Between two commits its changes are kept in memory. `fold` writes them into bitmaps and overflow tree; as that makes
copies, it changes counts in turn, and goes on until nothing changes any more: each block is copied once at most.
"""

from __future__ import annotations

import errno

from userdm.pdata.allocator import Allocator
from userdm.pdata.bitmap import ENTRIES, Bitmap
from userdm.pdata.block import BLOCK_SIZE, INDEX_SALT, Block, corrupt
from userdm.pdata.counts import MAX_COUNT, Counts, IndexEntry, Root
from userdm.pdata.transaction import Transaction

MAX_BITMAPS = 255
"""Index entries in the one index block."""

MAX_BLOCKS = MAX_BITMAPS * ENTRIES
"""The most metadata blocks that can be used: a little less than 16 GiB."""

_ENTRIES_AT = 16


class IndexBlock(Block):
    """The index of the metadata's bitmaps."""

    __slots__ = ()

    salt = INDEX_SALT
    kind = "metadata index"

    def get(self, page: int) -> IndexEntry:
        at = _ENTRIES_AT + page * IndexEntry.LAYOUT.size
        return IndexEntry.unpack(self.buffer[at : at + IndexEntry.LAYOUT.size])

    def set(self, page: int, entry: IndexEntry) -> None:
        at = _ENTRIES_AT + page * IndexEntry.LAYOUT.size
        self.buffer[at : at + IndexEntry.LAYOUT.size] = entry.pack()


class BlockIndex:
    """Index entries in one block."""

    def __init__(self, tx: Transaction, root: int) -> None:
        self._tx = tx
        self.root = root

    def _block(self) -> IndexBlock:
        return self._tx.blocks.get(self.root, IndexBlock, IndexBlock)

    def load(self, page: int) -> IndexEntry:
        return self._block().get(page)

    def move(self) -> None:
        """Go to a new place, unless that was done in this transaction."""
        if self.root in self._tx.fresh:
            return
        old = self._block()
        copy = IndexBlock(self._tx.space.allocate(), bytearray(old.buffer))
        self._tx.add(copy)
        self._tx.space.dec(old.blocknr)
        self.root = copy.blocknr

    def save(self, entries: dict[int, IndexEntry]) -> None:
        block = self._block()
        for page, entry in entries.items():
            block.set(page, entry)


class MetadataSpaceMap:
    """Allocates metadata blocks, never one that the last durable or the sealed transaction needs."""

    def __init__(self, tx: Transaction, root: Root) -> None:
        self.tx = tx
        self._index = BlockIndex(tx, root.bitmap_root)
        self.counts = Counts(tx, self._index, root)
        self._allocator = Allocator(self.counts)
        self._changed: dict[int, int] = {}
        """Counts that the bitmaps do not know yet."""
        self.nr_used = root.nr_allocated
        """Blocks with a reference."""
        self._freed: list[int] = []
        self._held = 0
        """Blocks with count zero that are still needed by what is on disk."""

    @classmethod
    def create(cls, tx: Transaction, nr_blocks: int) -> MetadataSpaceMap:
        """A new map, in the blocks from 1 on: index, bitmaps, and the overflow tree. Block 0 is the superblock."""
        space = tx.space = cls(tx, Root(0, 0, 1, 0))
        tx.add(IndexBlock(1, bytearray(BLOCK_SIZE)))
        space._add_bitmaps(space.counts.extend(nr_blocks), 2)
        for blocknr in range(2):
            space._use(blocknr)
        space.counts.overflow_root = space.counts.overflow.empty()
        return space

    def _use(self, blocknr: int) -> None:
        self._allocator.withhold(blocknr, 1)
        self._changed[blocknr] = 1
        self.nr_used += 1

    def _add_bitmaps(self, pages: range, blocknr: int) -> None:
        """New bitmaps in blocks from ``blocknr`` on, which are known to be free."""
        for at, page in enumerate(pages):
            bitmap = Bitmap(blocknr + at, bytearray(BLOCK_SIZE))
            self.tx.add(bitmap)
            self.counts.add_bitmap(page, bitmap)
            self._use(bitmap.blocknr)

    @property
    def nr_blocks(self) -> int:
        return self.counts.nr_blocks

    @property
    def nr_free(self) -> int:
        """Blocks that can be allocated at this moment."""
        return self.counts.nr_blocks - self.nr_used - self._held

    @property
    def nr_changed(self) -> int:
        """Counts that `fold` will write."""
        return len(self._changed)

    @property
    def nr_copied_at_most(self) -> int:
        """Blocks that this transaction can still make copies of."""
        return self.nr_used - len(self.tx.fresh)

    @property
    def fold_need(self) -> int:
        """Blocks that `fold` may take, apart from the overflow tree's."""
        return -(-self.counts.nr_blocks // ENTRIES) + 1

    def extend(self, nr_blocks: int) -> None:
        """Grow. The new bitmaps lie in the new part, as there may be no room left in the old one."""
        free = self.counts.nr_blocks
        self.tx.blocks.nr_blocks = nr_blocks
        self._add_bitmaps(self.counts.extend(nr_blocks), free)
        self._allocator.forget()

    def count(self, blocknr: int) -> int:
        count = self._changed.get(blocknr)
        return self.counts.get(blocknr) if count is None else count

    def allocate(self) -> int:
        """A free block, with one reference; ENOSPC."""
        run = self._allocator.take(1)
        if run is None:
            raise OSError(
                errno.ENOSPC,
                f"no free metadata block: of {self.nr_blocks}, {self.nr_used} are in use, "
                f"{self._held} wait for the commit that frees them",
            )
        self._changed[run[0]] = 1
        self.nr_used += 1
        return run[0]

    def inc(self, blocknr: int) -> None:
        count = self._referenced(blocknr)
        if count == MAX_COUNT:
            raise corrupt(blocknr, f"has {count} references and cannot get another")
        self._changed[blocknr] = count + 1

    def dec(self, blocknr: int, *, reuse: bool = False) -> None:
        """One reference less. ``reuse``: nothing that is or will be on disk needs a block without any."""
        count = self._changed[blocknr] = self._referenced(blocknr) - 1
        if count:
            return
        self.nr_used -= 1
        if reuse:
            self._allocator.release(blocknr, 1)
            return
        self._allocator.withhold(blocknr, 1)
        self._freed.append(blocknr)
        self._held += 1

    def _referenced(self, blocknr: int) -> int:
        count = self.count(blocknr)
        if count == 0:
            raise corrupt(blocknr, "is in use, but its reference count is 0")
        return count

    def fold(self) -> None:
        """Write everything that is kept in memory into the map itself."""
        self._index.move()
        while self._changed:
            pages = {blocknr // ENTRIES for blocknr in self._changed}
            copied = {page for page in pages if self.counts.entry(page).blocknr in self.tx.fresh}
            if copied != pages:
                for page in sorted(pages - copied):
                    self.counts.writable(page)
                continue
            for blocknr, count in self._changed.items():
                self.counts.set(blocknr, count)
            self._changed.clear()
            self.counts.flush_many()
        self.counts.flush_index()

    def seal(self) -> list[int]:
        """The blocks that the transaction freed; they stay held back until `release`."""
        freed, self._freed = self._freed, []
        self._allocator.rewind()
        return freed

    def release(self, freed: list[int]) -> None:
        for blocknr in freed:
            self._allocator.release(blocknr, 1)
        self._held -= len(freed)
