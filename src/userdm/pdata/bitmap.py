"""A bitmap block: the reference counts of 16320 neighbours, two bits each, after a 16 byte header.

A count of 3 in the bitmap means "three or more": the overflow tree has it. The two bits of a count lie on disk
with the high one first: 1 is stored as 0b10, 2 as 0b01.

Ranges are handled as strings with one byte a count, so that the work is done by bytes.translate, slices with a step
and whole-block integers, never by a loop over entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from userdm.pdata.block import BITMAP_SALT, BLOCK_SIZE, Block

HEADER = 16
BYTES = BLOCK_SIZE - HEADER
ENTRIES = BYTES * 4
"""Counts in one bitmap block."""

MANY = 3
"""What the bitmap holds for a count that it has no room for."""

_SWAP = (0, 2, 1, 3)
# _UNPACK[k][byte] is the count at place k of a byte; _PACK[k][count] are the bits that it has there.
_UNPACK = [bytes(_SWAP[byte >> 2 * k & 3] for byte in range(256)) for k in range(4)]
_PACK = [bytes(_SWAP[count] << 2 * k if count < 4 else 0 for count in range(256)) for k in range(4)]
_ZEROS = re.compile(rb"\0+")


def unpack(raw: bytes) -> bytearray:
    """One byte a count."""
    counts = bytearray(4 * len(raw))
    for k in range(4):
        counts[k::4] = raw.translate(_UNPACK[k])
    return counts


def pack(counts: bytes | bytearray) -> bytes:
    """The reverse; the number of counts is a multiple of four."""
    bits = 0
    for k in range(4):
        bits |= int.from_bytes(counts[k::4].translate(_PACK[k]), "little")
    return bits.to_bytes(len(counts) // 4, "little")


class Bitmap(Block):
    __slots__ = ()

    salt = BITMAP_SALT
    kind = "bitmap"

    def copy(self, blocknr: int) -> Bitmap:
        return Bitmap(blocknr, bytearray(self.buffer))

    def get(self, entry: int) -> int:
        return _SWAP[self.buffer[HEADER + (entry >> 2)] >> 2 * (entry & 3) & 3]

    def set(self, entry: int, count: int) -> None:
        shift = 2 * (entry & 3)
        at = HEADER + (entry >> 2)
        self.buffer[at] = self.buffer[at] & ~(3 << shift) | _SWAP[count] << shift

    def counts(self, start: int, end: int) -> bytearray:
        """The counts of entries start to end, one byte each."""
        low = start & ~3
        counts = unpack(self.buffer[HEADER + low // 4 : HEADER + (end + 3) // 4])
        return counts[start - low : end - low]

    def store(self, start: int, counts: bytes | bytearray) -> None:
        """Set the counts from entry ``start`` on."""
        end = start + len(counts)
        low, high = start & ~3, (end + 3) & ~3
        if low != start or high != end:
            whole = unpack(self.buffer[HEADER + low // 4 : HEADER + high // 4])
            whole[start - low : end - low] = counts
            counts = whole
        self.buffer[HEADER + low // 4 : HEADER + high // 4] = pack(counts)

    def free_runs(self, start: int, end: int, withheld: int) -> Iterator[tuple[int, int]]:
        """Runs (first, length) of entries that are zero here and in ``withheld``, a `Mask` page."""
        low = start & ~3
        raw = self.buffer[HEADER + low // 4 : HEADER + (end + 3) // 4]
        if withheld:
            size = len(raw)
            withheld = withheld >> 2 * low & (1 << 8 * size) - 1
            raw = bytearray((int.from_bytes(raw, "little") | withheld).to_bytes(size, "little"))
        counts = unpack(raw)
        for match in _ZEROS.finditer(counts, start - low, end - low):
            yield low + match.start(), match.end() - match.start()


class Mask:
    """A set of blocks, kept as whole-page integers with the bitmap's layout: both bits of a member are set."""

    def __init__(self) -> None:
        self.pages: dict[int, int] = {}

    def add(self, block: int, count: int) -> None:
        for page, start, end in split(block, count):
            bits = (1 << 2 * (end - start)) - 1
            self.pages[page] = self.pages.get(page, 0) | bits << 2 * start

    def remove(self, block: int, count: int) -> None:
        for page, start, end in split(block, count):
            bits = self.pages.get(page, 0)
            bits &= ~((1 << 2 * (end - start)) - 1 << 2 * start)
            if bits:
                self.pages[page] = bits
            else:
                self.pages.pop(page, None)

    def any(self, block: int, count: int) -> bool:
        """Whether one of these blocks is a member."""
        return any(
            self.pages.get(page, 0) >> 2 * start & (1 << 2 * (end - start)) - 1
            for page, start, end in split(block, count)
        )

    def all(self, block: int, count: int) -> bool:
        """Whether all of them are."""
        for page, start, end in split(block, count):
            bits = (1 << 2 * (end - start)) - 1
            if self.pages.get(page, 0) >> 2 * start & bits != bits:
                return False
        return True


def split(block: int, count: int) -> Sequence[tuple[int, int, int]]:
    """A run of blocks as (bitmap, first entry, end entry) pieces."""
    page, start = divmod(block, ENTRIES)
    if start + count <= ENTRIES:
        return ((page, start, start + count),)
    pieces = []
    while count > 0:
        piece = min(count, ENTRIES - start)
        pieces.append((page, start, start + piece))
        page, start, count = page + 1, 0, count - piece
    return pieces
