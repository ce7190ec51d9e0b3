"""The blocks of a metadata device: read once, checked, cached; written only by a commit."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from userdm.pdata.block import BLOCK_SIZE, Block
from userdm.storage import Storage

CACHE_BLOCKS = 8192
"""Clean blocks in each of the cache's two generations; 64 MiB in all."""

WRITE_BLOCKS = 256
"""The most blocks that go out in one write: 1 MiB."""

B = TypeVar("B", bound=Block)


class BlockManager:
    """Hands out blocks by number. Every block is checked once, when it is read.

    A clean block may be forgotten at any time. The cache has two generations: a block that is used moves to the
    young one; when that is full it becomes the old one, and what was still in the old one is forgotten.
    """

    def __init__(self, storage: Storage, nr_blocks: int) -> None:
        self.storage = storage
        self.nr_blocks = nr_blocks
        self.dirty: dict[int, Block] = {}
        """Changed in this transaction."""
        self._sealed: dict[int, Block] = {}
        """Of the transaction that is being written; they must not change, nor be read from disk."""
        self.recent: dict[int, Block] = {}
        """The young generation; who finds a block here may take it."""
        self._old: dict[int, Block] = {}

    def get(self, blocknr: int, kind: type[B], make: Callable[[int, bytearray], B]) -> B:
        """The block, as ``make`` understands it. OSError when it cannot be read or is something else."""
        block = self.recent.get(blocknr)
        if block is None:
            block = self._dig(blocknr) or self._read(blocknr, make)
            self._remember(block)
        if not isinstance(block, kind):
            raise OSError(errno.EILSEQ, f"metadata block {blocknr}: expected a {kind.kind}, found a {block.kind} there")
        return block

    def _dig(self, blocknr: int) -> Block | None:
        return self.dirty.get(blocknr) or self._sealed.get(blocknr) or self._old.get(blocknr)

    def _read(self, blocknr: int, make: Callable[[int, bytearray], B]) -> B:
        if not 0 < blocknr < self.nr_blocks:
            raise OSError(
                errno.EILSEQ, f"metadata block {blocknr} is referred to, but blocks are 1 to {self.nr_blocks - 1}"
            )
        buffer = bytearray(BLOCK_SIZE)
        self.storage.read(blocknr * BLOCK_SIZE, memoryview(buffer))
        block = make(blocknr, buffer)
        block.check()
        return block

    def _remember(self, block: Block) -> None:
        if len(self.recent) >= CACHE_BLOCKS:
            self._old, self.recent = self.recent, {}
        self.recent[block.blocknr] = block

    def add(self, block: Block) -> None:
        """A new block of this transaction, in a place that nothing refers to."""
        self.dirty[block.blocknr] = block
        self._old.pop(block.blocknr, None)
        self._remember(block)

    def drop(self, blocknr: int) -> None:
        """A block of this transaction is not wanted after all."""
        del self.dirty[blocknr]
        self.recent.pop(blocknr, None)
        self._old.pop(blocknr, None)

    def seal(self) -> list[Block]:
        """The transaction's blocks in order. From here on they do not change."""
        if self._sealed:
            raise RuntimeError("the last sealed transaction is not finished")
        self._sealed, self.dirty = self.dirty, {}
        return [self._sealed[blocknr] for blocknr in sorted(self._sealed)]

    def written(self) -> None:
        """The sealed blocks are on disk."""
        self._sealed = {}


def runs(blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
    """Neighbours on disk, together; ``blocks`` are in order."""
    start = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or blocks[at].blocknr != blocks[at - 1].blocknr + 1 or at - start == WRITE_BLOCKS:
            yield blocks[start:at]
            start = at


def write_blocks(storage: Storage, blocks: Sequence[Block]) -> None:
    """Write sealed blocks; no other thread needs to be kept out."""
    for run in runs(blocks) if blocks else ():
        for block in run:
            block.finish()
        storage.write(run[0].blocknr * BLOCK_SIZE, b"".join([block.buffer for block in run]))
