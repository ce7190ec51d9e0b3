"""A btree node: header, an array of keys, an array of values, in one block.

    0 checksum u32   4 flags u32   8 block number u64
    16 nr_entries u32   20 max_entries u32   24 value_size u32   28 padding u32
    32 keys, u64 each, room for max_entries; after them the values, value_size bytes each

The values of an internal node are the block numbers of its children; the key of a child is not above any key in it.
"""

from __future__ import annotations

import operator
import struct
from bisect import bisect_left, bisect_right

from userdm.pdata.block import BLOCK_SIZE, NODE_SALT, Block, corrupt

INTERNAL = 1
LEAF = 2
HEADER = 32
POINTER_SIZE = 8
"""Bytes of a value in an internal node."""

_FLAGS = struct.Struct("<I")
_COUNTS = struct.Struct("<III")
_FORMATS = {4: "I", 8: "Q"}


def max_entries(value_size: int) -> int:
    """How many entries a node has room for: a multiple of three, as the kernel has it."""
    return (BLOCK_SIZE - HEADER) // (8 + value_size) // 3 * 3


class Node(Block):
    """``keys`` and ``values`` look straight into the block; entries from ``n`` on mean nothing.

    ``values`` has one item an entry where a value is 4 or 8 bytes, otherwise one an byte.
    """

    __slots__ = ("keys", "leaf", "max", "n", "value_size", "values", "view")

    salt = NODE_SALT
    kind = "btree node"

    def __init__(self, blocknr: int, buffer: bytearray, value_size: int, leaf: bool, n: int = 0) -> None:
        super().__init__(blocknr, buffer)
        self.leaf = leaf
        self.value_size = value_size if leaf else POINTER_SIZE
        self.max = max_entries(self.value_size)
        self.n = n
        self.view = memoryview(buffer)
        values_at = HEADER + 8 * self.max
        self.keys = self.view[HEADER:values_at].cast("Q")
        raw = self.view[values_at : values_at + self.max * self.value_size]
        self.values = raw.cast(_FORMATS[self.value_size]) if self.value_size in _FORMATS else raw

    @classmethod
    def read(cls, blocknr: int, buffer: bytearray, value_size: int) -> Node:
        """A node from disk, not checked yet; a leaf has values of ``value_size`` bytes."""
        leaf = bool(_FLAGS.unpack_from(buffer, 4)[0] & LEAF)
        return cls(blocknr, buffer, value_size, leaf, _COUNTS.unpack_from(buffer, 16)[0])

    def check(self) -> None:
        super().check()
        flags = _FLAGS.unpack_from(self.buffer, 4)[0]
        if flags not in (INTERNAL, LEAF):
            raise corrupt(self.blocknr, f"btree node has flags {flags:#x}, expected 1 (internal) or 2 (leaf)")
        n, room, value_size = _COUNTS.unpack_from(self.buffer, 16)
        if value_size != self.value_size:
            raise corrupt(self.blocknr, f"btree node has values of {value_size} bytes, expected {self.value_size}")
        if room != self.max:
            raise corrupt(self.blocknr, f"btree node has room for {room} entries, expected {self.max}")
        if n > room or (n == 0 and flags == INTERNAL):
            least = 0 if self.leaf else 1
            raise corrupt(self.blocknr, f"btree node has {n} entries, expected {least} to {room}")
        if not all(map(operator.lt, self.keys[: n - 1], self.keys[1:n])):
            raise corrupt(self.blocknr, "keys of the btree node are not in ascending order")

    def finish(self) -> None:
        _FLAGS.pack_into(self.buffer, 4, LEAF if self.leaf else INTERNAL)
        _COUNTS.pack_into(self.buffer, 16, self.n, self.max, self.value_size)
        super().finish()

    def copy(self, blocknr: int) -> Node:
        return Node(blocknr, bytearray(self.buffer), self.value_size, self.leaf, self.n)

    @property
    def least(self) -> int:
        """The fewest entries that a node other than the root may have."""
        return self.max // 3

    def below(self, key: int) -> int:
        """Index of the last entry whose key is not above ``key``; -1 when all are."""
        return bisect_right(self.keys, key, 0, self.n) - 1

    def above(self, key: int) -> int:
        """Index of the first entry whose key is not below ``key``; ``n`` when all are."""
        return bisect_left(self.keys, key, 0, self.n)

    def key_bytes(self, start: int, end: int) -> memoryview:
        return self.view[HEADER + 8 * start : HEADER + 8 * end]

    def value_bytes(self, start: int, end: int) -> memoryview:
        at = HEADER + 8 * self.max
        return self.view[at + self.value_size * start : at + self.value_size * end]

    def fits(self, start: int, end: int, count: int) -> bool:
        """Whether there is room for ``count`` entries in the place of those from start to end."""
        return self.n - (end - start) + count <= self.max

    def splice(self, start: int, end: int, keys: memoryview | bytes, values: memoryview | bytes) -> None:
        """Put entries in the place of those from ``start`` to ``end``. They must fit, and must be in order."""
        size = self.value_size
        count = len(keys) // 8
        n = self.n - (end - start) + count
        if end != self.n and count != end - start:
            tail = start + count
            self.key_bytes(tail, n)[:] = self.key_bytes(end, self.n)
            self.value_bytes(tail, n)[:] = self.value_bytes(end, self.n)
        at = HEADER + 8 * start
        self.buffer[at : at + 8 * count] = keys
        at = HEADER + 8 * self.max + size * start
        self.buffer[at : at + size * count] = values
        self.n = n
