"""The copy-on-write btree: lookup, iteration, insertion.

A tree is a block number, its root; every change returns the new root. Nodes other than the root keep at least
a third of their entries, as the kernel and thin_check want it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from userdm.pdata.block import corrupt
from userdm.pdata.node import POINTER_SIZE, Node
from userdm.pdata.transaction import Transaction

MAX_DEPTH = 24
"""More levels than any tree can have; past it there is a cycle."""

MAX_KEY = (1 << 64) - 1


@dataclass(frozen=True)
class ValueType:
    """What the values of a tree refer to. Both callbacks get (leaf, first entry, end entry)."""

    size: int
    inc: Callable[[Node, int, int], None] | None = None
    """One more leaf holds these values."""
    dec: Callable[[Node, int, int], None] | None = None
    """One leaf less holds these values."""


class BTree:
    """The operations on trees of one value type."""

    def __init__(self, tx: Transaction, values: ValueType) -> None:
        self.tx = tx
        self.type = values
        self._size = values.size

    def _share(self, leaf: Node) -> None:
        if self.type.inc is not None:
            self.type.inc(leaf, 0, leaf.n)

    def node(self, blocknr: int) -> Node:
        return self.tx.node(blocknr, self._size)

    def shadow(self, blocknr: int) -> Node:
        return self.tx.shadow_node(blocknr, self._size, self._share)

    def empty(self) -> int:
        """A new tree without entries."""
        return self.tx.new_node(self._size, leaf=True).blocknr

    # looking

    def find(self, root: int, key: int) -> tuple[Node, int] | None:
        """The leaf that holds the key, and where in it."""
        blocknr = root
        for _ in range(MAX_DEPTH):
            node = self.node(blocknr)
            at = node.below(key)
            if at < 0:
                return None
            if node.leaf:
                return (node, at) if node.keys[at] == key else None
            blocknr = node.values[at]
        raise too_deep(root)

    def get(self, root: int, key: int) -> bytes | None:
        """The value as bytes."""
        found = self.find(root, key)
        return None if found is None else bytes(found[0].value_bytes(found[1], found[1] + 1))

    def path(self, root: int, key: int) -> Iterator[Node]:
        """The nodes from the root to the leaf in which the key is or would be."""
        blocknr = root
        for _ in range(MAX_DEPTH):
            node = self.node(blocknr)
            yield node
            if node.leaf:
                return
            blocknr = node.values[max(node.below(key), 0)]
        raise too_deep(root)

    def highest(self, root: int) -> int | None:
        """The highest key; None in an empty tree."""
        for node in self.path(root, MAX_KEY):
            if node.leaf and node.n:
                return int(node.keys[node.n - 1])
        return None

    def pieces(self, root: int, begin: int = 0, end: int = MAX_KEY + 1) -> Iterator[tuple[Node, int, int]]:
        """The entries with keys begin to end, in order, as (leaf, first entry, end entry), none of them empty.

        The tree must not change meanwhile.
        """
        stack: list[tuple[Node, int, int]] = []
        node, high, seen = self.node(root), MAX_KEY + 1, -1
        while True:
            while not node.leaf:
                if len(stack) >= MAX_DEPTH:
                    raise too_deep(root)
                at = max(node.below(begin), 0)
                stack.append((node, at, high))
                node, high = self._child(node, at, high)
            start = node.above(begin)
            stop = node.n if end > MAX_KEY else node.above(end)
            if start < stop:
                if node.keys[start] <= seen:
                    raise corrupt(
                        node.blocknr, f"first key is {node.keys[start]}, expected one above {seen}, the leaf before"
                    )
                seen = node.keys[stop - 1]
                yield node, start, stop
            while stack:
                node, at, high = stack.pop()
                if at + 1 < node.n:
                    break
            else:
                return
            if node.keys[at + 1] >= end:
                return
            begin = max(begin, node.keys[at + 1])
            stack.append((node, at + 1, high))
            node, high = self._child(node, at + 1, high)

    def _child(self, parent: Node, at: int, high: int) -> tuple[Node, int]:
        """A child and the key that all of its keys are below; ``high`` is the parent's.

        A child whose keys lie elsewhere would be passed over in silence. Where they do not, no node can be met twice
        on the way through a tree, however its pointers are bent: the way ends.
        """
        node, low = self.node(parent.values[at]), parent.keys[at]
        if at + 1 < parent.n:
            high = parent.keys[at + 1]
        if node.n and not low <= node.keys[0] <= node.keys[node.n - 1] < high:
            raise corrupt(
                node.blocknr,
                f"keys are {node.keys[0]} to {node.keys[node.n - 1]}, expected from {low} and below {high}, "
                f"as block {parent.blocknr} has it",
            )
        return node, high

    def any(self, root: int, begin: int, end: int) -> bool:
        """Whether there is an entry with a key from begin to end."""
        return next(self.pieces(root, begin, end), None) is not None

    def depth(self, root: int) -> int:
        """Nodes from the root to any leaf."""
        return sum(1 for _ in self.path(root, 0))

    def nr_nodes(self, root: int) -> int:
        """How many nodes there are; the leaves are not read, if there are many of them."""
        total, level = 1, [root]
        for _ in range(MAX_DEPTH):
            node = self.node(level[0])
            if node.leaf:
                return total
            children: list[int] = []
            for node in map(self.node, level):
                children += node.values[: node.n]
                if total + len(children) > self.tx.blocks.nr_blocks:
                    raise corrupt(root, "the btree below it has more nodes than there are blocks, so it meets itself")
            level = children
            total += len(level)
        raise too_deep(root)

    # inserting

    def insert(
        self,
        root: int,
        key: int,
        values: bytes | memoryview,
        replaced: Callable[[Node, int, int], None] | None = None,
    ) -> int:
        """Set the values of neighbouring keys, from ``key`` on; ``values`` are as many as there are bytes for.

        ``replaced`` is told of the entries whose values go; without it they are no reference to anything.
        """
        values = memoryview(values)
        count = len(values) // self._size
        done = 0
        while done < count:
            root, more = self._insert_piece(root, key + done, values[done * self._size :], replaced)
            done += more
        return root

    def own(self, root: int, key: int) -> int:
        """Copy the way to an existing key, so that nobody else sees what happens there; the new root."""
        path, leaf, _ = self._descend(root, key)
        return path[0][0].blocknr if path else leaf.blocknr

    def _descend(self, root: int, key: int) -> tuple[list[tuple[Node, int]], Node, int | None]:
        """Shadow the way to the leaf for ``key``: (the nodes above with the entry taken, leaf, its upper bound)."""
        path: list[tuple[Node, int]] = []
        bound: int | None = None
        node = self.shadow(root)
        while not node.leaf:
            if len(path) >= MAX_DEPTH:
                raise too_deep(root)
            at = node.below(key)
            if at < 0:
                at = 0
                node.keys[0] = key
            if at + 1 < node.n:
                bound = node.keys[at + 1]
            child = self.shadow(node.values[at])
            node.values[at] = child.blocknr
            path.append((node, at))
            node = child
        return path, node, bound

    def _insert_piece(
        self,
        root: int,
        key: int,
        values: memoryview,
        replaced: Callable[[Node, int, int], None] | None,
    ) -> tuple[int, int]:
        """Insert what belongs in one leaf: (new root, how many)."""
        path, leaf, bound = self._descend(root, key)
        root = path[0][0].blocknr if path else leaf.blocknr
        count = len(values) // self._size
        if bound is not None and bound - key < count:
            count = bound - key
        start, stop = leaf.above(key), leaf.below(key + count - 1) + 1
        if replaced is not None and start < stop:
            replaced(leaf, start, stop)
        keys = array("Q", range(key, key + count)).tobytes()
        pieces = self._splice(leaf, start, stop, keys, values[: count * self._size])
        return self._grow(root, path, leaf, pieces), count

    def _grow(self, root: int, path: list[tuple[Node, int]], node: Node, pieces: list[Node]) -> int:
        """Hang the siblings that a node got into its parent, and so on upwards; the new root."""
        while pieces:
            if path:
                parent, at = path.pop()
                at += 1
            else:
                parent, at = self.tx.new_node(POINTER_SIZE, leaf=False), 0
                pieces.insert(0, node)
                root = parent.blocknr
            keys = array("Q", [piece.keys[0] for piece in pieces]).tobytes()
            pointers = array("Q", [piece.blocknr for piece in pieces]).tobytes()
            pieces = self._splice(parent, at, at, keys, pointers)
            node = parent
        return root

    def _splice(self, node: Node, start: int, end: int, keys: bytes, values: bytes | memoryview) -> list[Node]:
        """Put entries in the place of others, in as many nodes as it takes; the new siblings, in order."""
        if node.fits(start, end, len(keys) // 8):
            node.splice(start, end, keys, values)
            return []
        appended = end == node.n
        keys = b"".join((node.key_bytes(0, start), keys, node.key_bytes(end, node.n)))
        values = b"".join((node.value_bytes(0, start), values, node.value_bytes(end, node.n)))
        size, at, siblings = node.value_size, 0, [node]
        for count in _shares(len(keys) // 8, node.max, appended):
            if at:
                siblings.append(self.tx.new_node(self._size, leaf=node.leaf))
            piece = siblings[-1]
            piece.splice(0, piece.n, keys[8 * at : 8 * (at + count)], values[size * at : size * (at + count)])
            at += count
        return siblings[1:]


def _shares(total: int, room: int, appended: bool) -> list[int]:
    """How many entries each of several nodes gets. Who appends goes on appending: then the first ones are full."""
    if not appended:
        nodes = -(-total // room)
        return [total // nodes + (index < total % nodes) for index in range(nodes)]
    full, rest = divmod(total, room)
    shares = [room] * full
    if rest:
        shares.append(max(rest, room // 3))
        shares[-2] -= shares[-1] - rest
    return shares


def too_deep(root: int) -> OSError:
    return corrupt(root, f"the btree below it has more than {MAX_DEPTH} levels, so there is a cycle")
