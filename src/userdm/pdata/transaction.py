"""One transaction on a metadata device: what it allocates, copies and frees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from userdm.pdata.bitmap import Bitmap
from userdm.pdata.block import BLOCK_SIZE, Block, corrupt
from userdm.pdata.manager import BlockManager
from userdm.pdata.node import Node

if TYPE_CHECKING:
    from userdm.pdata.metadata_map import MetadataSpaceMap


class Transaction:
    """Copy-on-write over a `BlockManager`, with the metadata space map as allocator.

    ``fresh`` are the blocks that this transaction made and that have one reference: nothing on disk and nobody else
    refers to them, so they are changed in place.
    """

    space: MetadataSpaceMap

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = blocks
        self.fresh: set[int] = set()
        self.dropped = False
        """A shared node lost an owner, and with it everything below, where no count tells."""

    # reading

    def node(self, blocknr: int, value_size: int) -> Node:
        """A btree node; if it is a leaf, then one with values of ``value_size`` bytes."""
        node = self.blocks.recent.get(blocknr)
        if not isinstance(node, Node):
            node = self.blocks.get(blocknr, Node, lambda at, buffer: Node.read(at, buffer, value_size))
        if node.value_size != value_size and node.leaf:
            raise corrupt(blocknr, f"btree leaf has values of {node.value_size} bytes, expected {value_size} bytes")
        return node

    def bitmap(self, blocknr: int) -> Bitmap:
        return self.blocks.get(blocknr, Bitmap, Bitmap)

    # changing

    def _adopt(self, block: Block) -> None:
        self.blocks.add(block)
        self.fresh.add(block.blocknr)

    def new_node(self, value_size: int, leaf: bool) -> Node:
        node = Node(self.space.allocate(), bytearray(BLOCK_SIZE), value_size, leaf)
        self._adopt(node)
        return node

    def new_bitmap(self) -> Bitmap:
        bitmap = Bitmap(self.space.allocate(), bytearray(BLOCK_SIZE))
        self._adopt(bitmap)
        return bitmap

    def add(self, block: Block) -> None:
        """A block made elsewhere, in a place that came from the space map."""
        self._adopt(block)

    def shadow_node(self, blocknr: int, value_size: int, share: Callable[[Node], None] | None) -> Node:
        """The node, to be changed: itself when it is fresh, otherwise a copy that takes over one reference.

        A node with more references stays where it is, for the others, and its children have one owner more:
        ``share`` counts that for the values of a leaf.
        """
        node = self.node(blocknr, value_size)
        if blocknr in self.fresh:
            return node
        shared = self.space.count(blocknr) > 1
        copy = node.copy(self.space.allocate())
        self._adopt(copy)
        self.space.dec(blocknr)
        if shared:
            if not node.leaf:
                for child in copy.values[: copy.n]:
                    self.inc(child)
            elif share is not None:
                share(copy)
        return copy

    def shadow_bitmap(self, blocknr: int) -> Bitmap:
        bitmap = self.bitmap(blocknr)
        if blocknr in self.fresh:
            return bitmap
        copy = bitmap.copy(self.space.allocate())
        self._adopt(copy)
        self.space.dec(blocknr)
        return copy

    def inc(self, blocknr: int) -> None:
        """One more reference: from now on the block is shared, and changed only by copying."""
        self.space.inc(blocknr)
        self.fresh.discard(blocknr)

    def dec(self, blocknr: int) -> None:
        """One reference less; the place of a fresh block can be used again at once."""
        fresh = blocknr in self.fresh
        self.space.dec(blocknr, reuse=fresh)
        if fresh:
            self.fresh.remove(blocknr)
            self.blocks.drop(blocknr)
