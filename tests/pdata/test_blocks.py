"""Blocks from disk are checked; blocks to disk are batched."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from userdm.pdata.bitmap import Bitmap
from userdm.pdata.block import BLOCK_SIZE, NODE_SALT, seal
from userdm.pdata.manager import CACHE_BLOCKS, WRITE_BLOCKS, BlockManager, write_blocks
from userdm.pdata.node import Node
from userdm.pdata.transaction import Transaction
from userdm.storage import MemoryStorage


def leaf(blocknr: int = 5, n: int = 3) -> bytearray:
    """A good leaf of 8-byte values, as it is on disk."""
    node = Node(blocknr, bytearray(BLOCK_SIZE), 8, leaf=True)
    node.splice(0, 0, struct.pack(f"<{n}Q", *range(10, 10 + n)), bytes(8 * n))
    node.finish()
    return node.buffer


def reading(buffer: bytearray, blocknr: int = 5) -> Node:
    storage = MemoryStorage(16 * BLOCK_SIZE)
    storage.write(blocknr * BLOCK_SIZE, buffer)
    return Transaction(BlockManager(storage, 16)).node(blocknr, 8)


def test_a_good_node_is_read() -> None:
    node = reading(leaf())
    assert (node.n, list(node.keys[:3]), node.leaf) == (3, [10, 11, 12], True)


def resealed(change: Callable[[bytearray], None]) -> bytearray:
    buffer = leaf()
    change(buffer)
    seal(buffer, 5, NODE_SALT)
    return buffer


def put(at: int, layout: str, *values: int) -> Callable[[bytearray], None]:
    return lambda buffer: struct.pack_into(layout, buffer, at, *values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put(4, "<I", 0), "flags 0x0, expected 1"),
        (put(4, "<I", 3), "flags 0x3, expected 1"),
        (put(16, "<I", 253), "253 entries, expected 0 to 252"),
        (put(20, "<I", 255), "room for 255 entries, expected 252"),
        (put(20, "<I", 0), "room for 0 entries, expected 252"),
        (put(24, "<I", 24), "values of 24 bytes, expected 8"),
        (put(24, "<I", 0xFFFFFFFF), "values of 4294967295 bytes, expected 8"),
        (put(32, "<QQ", 12, 12), "not in ascending order"),
        (put(32, "<QQQ", 10, 13, 12), "not in ascending order"),
    ],
)
def test_bad_structure(change: Callable[[bytearray], None], says: str) -> None:
    with pytest.raises(OSError, match=says) as error:
        reading(resealed(change))
    assert error.value.errno == errno.EILSEQ
    assert "block 5" in str(error.value)


def test_an_internal_node_has_children() -> None:
    node = Node(5, bytearray(BLOCK_SIZE), 8, leaf=False)
    node.finish()
    with pytest.raises(OSError, match="0 entries, expected 1 to 252"):
        reading(node.buffer)


def test_every_byte_is_under_the_checksum() -> None:
    for at in (0, 3, 4, 17, 40, 2060, 4095):
        buffer = leaf()
        buffer[at] ^= 1
        with pytest.raises(OSError, match="checksum of the btree node is") as error:
            reading(buffer)
        assert error.value.errno == errno.EILSEQ


def test_a_block_in_the_wrong_place() -> None:
    with pytest.raises(OSError, match="block 6: btree node says that it is block 5") as error:
        reading(leaf(5), 6)
    assert error.value.errno == errno.ENOTBLK


def test_one_kind_does_not_pass_for_another() -> None:
    bitmap = Bitmap(5, bytearray(BLOCK_SIZE))
    bitmap.finish()
    with pytest.raises(OSError, match="checksum"):
        reading(bitmap.buffer)
    tx = Transaction(BlockManager(MemoryStorage(16 * BLOCK_SIZE), 16))
    tx.blocks.storage.write(5 * BLOCK_SIZE, bitmap.buffer)
    tx.bitmap(5)
    with pytest.raises(OSError, match="expected a btree node, found a bitmap") as error:
        tx.node(5, 8)
    assert error.value.errno == errno.EILSEQ
    tx.blocks.storage.write(6 * BLOCK_SIZE, leaf(6))
    tx.node(6, 8)
    with pytest.raises(OSError, match="values of 8 bytes, expected 24"):
        tx.node(6, 24)


@pytest.mark.parametrize("blocknr", [0, 16, 1 << 63])
def test_out_of_range(blocknr: int) -> None:
    with pytest.raises(OSError, match="blocks are 1 to 15") as error:
        Transaction(BlockManager(MemoryStorage(16 * BLOCK_SIZE), 16)).node(blocknr, 8)
    assert error.value.errno == errno.EILSEQ


class Counting(MemoryStorage):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.writes: list[tuple[int, int]] = []
        self.reads = 0

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self.writes.append((offset // BLOCK_SIZE, len(view) // BLOCK_SIZE))
        super().write(offset, view)

    def read(self, offset: int, view: memoryview) -> None:
        self.reads += 1
        super().read(offset, view)


def test_neighbours_are_written_together() -> None:
    storage = Counting(1000 * BLOCK_SIZE)
    write_blocks(storage, [])
    assert storage.writes == []
    numbers = [3, 4, 5, 9, 11, *range(100, 100 + WRITE_BLOCKS + 2)]
    write_blocks(storage, [Bitmap(number, bytearray(BLOCK_SIZE)) for number in numbers])
    assert storage.writes == [(3, 3), (9, 1), (11, 1), (100, WRITE_BLOCKS), (100 + WRITE_BLOCKS, 2)]
    blocks = BlockManager(storage, 1000)
    for number in numbers:
        blocks.get(number, Bitmap, Bitmap)


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    total = 3 * CACHE_BLOCKS
    storage = Counting(total * BLOCK_SIZE)
    write_blocks(storage, [Bitmap(number, bytearray(BLOCK_SIZE)) for number in range(1, total)])
    blocks = BlockManager(storage, total)
    for number in range(1, total):
        blocks.get(number, Bitmap, Bitmap)
        blocks.get(1, Bitmap, Bitmap)
    assert storage.reads == total - 1
    assert len(blocks.recent) + len(blocks._old) <= 2 * CACHE_BLOCKS


def test_dirty_blocks_are_never_forgotten() -> None:
    total = 3 * CACHE_BLOCKS
    storage = Counting(total * BLOCK_SIZE)
    write_blocks(storage, [Bitmap(number, bytearray(BLOCK_SIZE)) for number in range(2, total)])
    blocks = BlockManager(storage, total)
    mine = Bitmap(1, bytearray(BLOCK_SIZE))
    blocks.add(mine)
    for number in range(2, total):
        blocks.get(number, Bitmap, Bitmap)
    assert blocks.get(1, Bitmap, Bitmap) is mine
    assert blocks.seal() == [mine]
    for number in range(2, total):
        blocks.get(number, Bitmap, Bitmap)
    assert blocks.get(1, Bitmap, Bitmap) is mine
