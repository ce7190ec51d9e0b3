"""Reference counts on disk: bitmaps, an index of them, and the overflow tree for counts above two."""

from __future__ import annotations

import errno
import re
import struct
from dataclasses import dataclass
from typing import Protocol

from userdm.pdata.bitmap import ENTRIES, MANY, Bitmap, split
from userdm.pdata.block import corrupt
from userdm.pdata.btree import BTree, ValueType
from userdm.pdata.prune import remove
from userdm.pdata.transaction import Transaction

MAX_COUNT = (1 << 32) - 1

_ROOT = struct.Struct("<4Q")
_COUNT = struct.Struct("<I")

_INC = bytes(min(count + 1, MANY) for count in range(256))
_DEC = bytes(MANY if count == MANY else max(count - 1, 0) for count in range(256))
_ONES = re.compile(rb"\x01+")
_MANY = re.compile(rb"\x03")
_TWO_OR_MORE = re.compile(rb"[\x02\x03]")


@dataclass
class Root:
    """What the superblock keeps of a space map."""

    nr_blocks: int
    nr_allocated: int
    bitmap_root: int
    ref_count_root: int

    SIZE = _ROOT.size

    @classmethod
    def unpack(cls, raw: bytes) -> Root:
        return cls(*_ROOT.unpack_from(raw))

    def pack(self) -> bytes:
        return _ROOT.pack(self.nr_blocks, self.nr_allocated, self.bitmap_root, self.ref_count_root)


@dataclass
class IndexEntry:
    """One bitmap: where it is, how many zeros it has, and an entry before which there is none."""

    blocknr: int
    nr_free: int
    none_free_before: int

    LAYOUT = struct.Struct("<QII")

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> IndexEntry:
        return cls(*cls.LAYOUT.unpack(raw))

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.blocknr, self.nr_free, self.none_free_before)


class Index(Protocol):
    """Where the index entries are kept."""

    root: int

    def load(self, page: int) -> IndexEntry: ...

    def save(self, entries: dict[int, IndexEntry]) -> None: ...


class Counts:
    """The reference counts of ``nr_blocks`` blocks.

    Bitmaps are changed at once (as copies). Changes of the index and of the overflow tree are kept in memory until
    `flush_many` and `flush_index`, so that they are made in order and in one go.
    """

    def __init__(self, tx: Transaction, index: Index, root: Root) -> None:
        self.tx = tx
        self.index = index
        self.nr_blocks = root.nr_blocks
        self.nr_allocated = root.nr_allocated
        self.overflow = BTree(tx, ValueType(4))
        self.overflow_root = root.ref_count_root
        self.many: dict[int, int] = {}
        """Counts that the overflow tree does not know yet; those below three are to be taken out of it."""
        self._entries: dict[int, IndexEntry] = {}
        self._changed: set[int] = set()

    def root(self) -> Root:
        return Root(self.nr_blocks, self.nr_allocated, self.index.root, self.overflow_root)

    def _check_range(self, block: int, count: int) -> None:
        if block < 0 or count < 0 or block + count > self.nr_blocks:
            raise OSError(
                errno.EILSEQ, f"blocks {block}+{count} do not exist: the space map has {self.nr_blocks} blocks"
            )

    @property
    def nr_changed(self) -> int:
        """Index entries that `flush_index` will write."""
        return len(self._changed)

    # looking

    def entry(self, page: int) -> IndexEntry:
        entry = self._entries.get(page)
        if entry is None:
            entry = self._entries[page] = self.index.load(page)
            if entry.none_free_before > ENTRIES:
                entry.none_free_before = 0
            self._recount(entry)
        return entry

    def _recount(self, entry: IndexEntry) -> None:
        """An impossible number of zeros is counted again: some tools leave it wrong for a part bitmap that grew."""
        if not 0 <= entry.nr_free <= ENTRIES:
            entry.nr_free = self.tx.bitmap(entry.blocknr).counts(0, ENTRIES).count(0)

    def some_free(self, page: int) -> bool:
        return self.entry(page).nr_free > 0

    def bitmap(self, page: int) -> Bitmap:
        return self.tx.bitmap(self.entry(page).blocknr)

    def get(self, block: int) -> int:
        self._check_range(block, 1)
        page, at = divmod(block, ENTRIES)
        count = self.bitmap(page).get(at)
        return self._many(block) if count == MANY else count

    def _many(self, block: int) -> int:
        count = self.many.get(block)
        if count is not None:
            return count
        raw = self.overflow.get(self.overflow_root, block)
        if raw is None:
            raise corrupt(self.overflow_root, f"the overflow tree lacks block {block}, whose count in the bitmap is 3")
        found: int = _COUNT.unpack(raw)[0]
        if found < MANY:
            raise corrupt(
                self.overflow_root, f"the overflow tree has count {found} for block {block}, expected 3 or more"
            )
        return found

    def _one_more(self, block: int, count: int) -> int:
        """The count after the next reference, for a block whose bitmap says ``count``."""
        if count == MANY:
            count = self._many(block)
            if count == MAX_COUNT:
                raise corrupt(self.overflow_root, f"the count of block {block} is {count} and cannot grow")
        return count + 1

    # changing

    def writable(self, page: int) -> tuple[IndexEntry, Bitmap]:
        """The bitmap, to be changed, and its index entry."""
        entry = self.entry(page)
        bitmap = self.tx.shadow_bitmap(entry.blocknr)
        entry.blocknr = bitmap.blocknr
        self._changed.add(page)
        return entry, bitmap

    def _account(self, entry: IndexEntry, start: int, end: int, allocated: int, freed_from: int | None) -> None:
        """Entries start to end changed: so many are not zero any more; the first that now is."""
        entry.nr_free -= allocated
        self.nr_allocated += allocated
        if freed_from is not None:
            entry.none_free_before = min(entry.none_free_before, freed_from)
        elif start <= entry.none_free_before < end:
            entry.none_free_before = end
        self._recount(entry)
        if not 0 <= self.nr_allocated <= self.nr_blocks:
            raise corrupt(
                entry.blocknr,
                f"with this bitmap {self.nr_allocated} blocks are in use, expected 0 to {self.nr_blocks}",
            )

    def set(self, block: int, count: int) -> None:
        """Set one count."""
        self._check_range(block, 1)
        page, at = divmod(block, ENTRIES)
        entry, bitmap = self.writable(page)
        self._set(entry, bitmap, block, bitmap.get(at), count)

    def _set(self, entry: IndexEntry, bitmap: Bitmap, block: int, old: int, count: int) -> None:
        """Set one count; ``old`` is what the bitmap has."""
        at = block % ENTRIES
        bitmap.set(at, min(count, MANY))
        if count >= MANY or old == MANY:
            self.many[block] = count
        if (old == 0) != (count == 0):
            self._account(entry, at, at + 1, 1 if count else -1, None if count else at)

    def inc(self, block: int, count: int) -> None:
        """One reference more to each block of a run."""
        self._check_range(block, count)
        for page, start, end in split(block, count):
            entry, bitmap = self.writable(page)
            base = page * ENTRIES + start
            if end - start == 1:
                first = bitmap.get(start)
                self._set(entry, bitmap, base, first, self._one_more(base, first))
                continue
            old = bitmap.counts(start, end)
            for match in _TWO_OR_MORE.finditer(old):
                at = match.start()
                self.many[base + at] = self._one_more(base + at, old[at])
            bitmap.store(start, old.translate(_INC))
            zeros = old.count(0)
            if zeros:
                self._account(entry, start, end, zeros, None)

    def dec(self, block: int, count: int) -> list[tuple[int, int]]:
        """One reference less to each block of a run; the runs of those that have none left."""
        self._check_range(block, count)
        freed: list[tuple[int, int]] = []
        for page, start, end in split(block, count):
            entry, bitmap = self.writable(page)
            base = page * ENTRIES + start
            if end - start == 1 and (first := bitmap.get(start)):
                count = (self._many(base) if first == MANY else first) - 1
                self._set(entry, bitmap, base, first, count)
                if count == 0:
                    freed.append((base, 1))
                continue
            old = bitmap.counts(start, end)
            if 0 in old:
                raise corrupt(bitmap.blocknr, f"the count of block {base + old.index(0)} is 0, so it cannot be in use")
            new = old.translate(_DEC)
            for match in _MANY.finditer(old):
                at = match.start()
                value = self.many[base + at] = self._many(base + at) - 1
                new[at] = min(value, MANY)
            bitmap.store(start, new)
            ones = [match.span() for match in _ONES.finditer(old)]
            if ones:
                freed += [(base + first, after - first) for first, after in ones]
                self._account(entry, start, end, -old.count(1), start + ones[0][0])
        return freed

    def extend(self, nr_blocks: int) -> range:
        """Grow; the result says which bitmaps are wanted, each through `add_bitmap`."""
        old = self.nr_blocks
        if old % ENTRIES:
            page = old // ENTRIES
            entry = self.entry(page)
            entry.nr_free = self.bitmap(page).counts(0, ENTRIES).count(0)
            self._changed.add(page)
        self.nr_blocks = nr_blocks
        return range(-(-old // ENTRIES), -(-nr_blocks // ENTRIES))

    def add_bitmap(self, page: int, bitmap: Bitmap) -> None:
        """The bitmap for blocks that were added at the end."""
        self._entries[page] = IndexEntry(bitmap.blocknr, ENTRIES, 0)
        self._changed.add(page)

    # writing back

    def flush_many(self) -> None:
        """Tell the overflow tree. Blocks in a row go in together."""
        changes = sorted(self.many.items())
        at = 0
        while at < len(changes):
            first, count = changes[at]
            stop = at + 1
            while (
                stop < len(changes)
                and changes[stop][0] == first + stop - at
                and (changes[stop][1] < MANY) == (count < MANY)
            ):
                stop += 1
            if count < MANY:
                self.overflow_root = remove(self.overflow, self.overflow_root, first, first + stop - at)
            else:
                values = b"".join([_COUNT.pack(changes[i][1]) for i in range(at, stop)])
                self.overflow_root = self.overflow.insert(self.overflow_root, first, values)
            at = stop
        self.many.clear()

    def flush_index(self) -> None:
        """Tell the index."""
        self.index.save({page: self._entries[page] for page in sorted(self._changed)})
        self._changed.clear()
