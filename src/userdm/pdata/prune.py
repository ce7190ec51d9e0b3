"""Removal from the copy-on-write btree: ranges of keys, and whole trees."""

from __future__ import annotations

from array import array

from userdm.pdata.block import corrupt
from userdm.pdata.btree import MAX_DEPTH, MAX_KEY, BTree, too_deep
from userdm.pdata.node import Node


def delete(tree: BTree, root: int, depth: int = 0) -> None:
    """Give up one reference to a tree. Only what nobody else refers to is taken apart."""
    if depth >= MAX_DEPTH:
        raise too_deep(root)
    count = tree.tx.space.count(root)
    if count == 0:
        raise corrupt(root, "is part of a btree, but its reference count is 0")
    if count == 1:
        node = tree.node(root)
        if not node.leaf:
            for child in node.values[: node.n]:
                delete(tree, child, depth + 1)
        elif tree.type.dec is not None and node.n:
            tree.type.dec(node, 0, node.n)
    else:
        tree.tx.dropped = True
    tree.tx.dec(root)


def remove(tree: BTree, root: int, begin: int, end: int) -> int:
    """Remove all entries with keys begin to end; the new root.

    Subtrees that lie wholly inside are given up without being copied first.
    """
    if begin >= end or not tree.any(root, begin, end):
        return root
    node = tree.shadow(root)
    _cut(tree, node, begin, end, None, 0)
    root = node.blocknr
    if begin > 0:
        root = _mend(tree, root, begin - 1)
    return _mend(tree, root, min(end, MAX_KEY))


def _cut(tree: BTree, node: Node, begin: int, end: int, bound: int | None, depth: int) -> None:
    """Take the keys begin to end out of a shadowed node, all of whose keys are below ``bound``.

    What is left may be too little, or nothing.
    """
    if depth >= MAX_DEPTH:
        raise too_deep(node.blocknr)
    if node.leaf:
        start = node.above(begin)
        stop = node.n if end > MAX_KEY else node.above(end)
        if start < stop:
            if tree.type.dec is not None:
                tree.type.dec(node, start, stop)
            node.splice(start, stop, b"", b"")
        return
    at = max(node.below(begin), 0)
    gone: list[int] = []
    while at < node.n and node.keys[at] < end:
        high = node.keys[at + 1] if at + 1 < node.n else bound
        if begin <= node.keys[at] and (end > MAX_KEY or (high is not None and high <= end)):
            delete(tree, node.values[at])
            gone.append(at)
        else:
            child = tree.shadow(node.values[at])
            node.values[at] = child.blocknr
            _cut(tree, child, begin, end, high, depth + 1)
            if child.n == 0:
                tree.tx.dec(child.blocknr)
                gone.append(at)
        at += 1
    if gone:
        # they are neighbours: only of the first and the last child in the range can anything be left
        node.splice(gone[0], gone[-1] + 1, b"", b"")


def _mend(tree: BTree, root: int, key: int) -> int:
    """Give the changed nodes on the way to ``key`` enough entries again, from the top down; the new root."""
    fresh = tree.tx.fresh
    node = tree.node(root)
    while not node.leaf and node.n < 2 and node.blocknr in fresh:
        tree.tx.dec(node.blocknr)
        node = tree.node(node.values[0] if node.n else tree.empty())
    root = node.blocknr
    while not node.leaf and node.blocknr in fresh:
        at = max(node.below(key), 0)
        child_node = tree.node(node.values[at])
        # an inner node on the way may lose one more when its own children are merged
        least = child_node.least + (not child_node.leaf)
        if child_node.n < least and node.n > 1:
            _even_out(tree, node, at - 1 if at else at)
            if node.n == 1 and node.blocknr == root:
                return _mend(tree, root, key)
            at = max(node.below(key), 0)
        node = tree.node(node.values[at])
    return root


def _even_out(tree: BTree, parent: Node, at: int) -> None:
    """Merge the children ``at`` and ``at + 1`` of a shadowed node, or share their entries out evenly."""
    left = tree.shadow(parent.values[at])
    right = tree.shadow(parent.values[at + 1])
    parent.values[at] = left.blocknr
    parent.values[at + 1] = right.blocknr
    if left.leaf != right.leaf:
        raise corrupt(right.blocknr, f"is not on the same level as its neighbour, block {left.blocknr}")
    keys = b"".join((left.key_bytes(0, left.n), right.key_bytes(0, right.n)))
    values = b"".join((left.value_bytes(0, left.n), right.value_bytes(0, right.n)))
    total = left.n + right.n
    if total <= 2 * left.least + 1:
        left.splice(0, left.n, keys, values)
        parent.splice(at + 1, at + 2, b"", b"")
        tree.tx.dec(right.blocknr)
        return
    half, size = total // 2, left.value_size
    left.splice(0, left.n, keys[: 8 * half], values[: size * half])
    right.splice(0, right.n, keys[8 * half :], values[size * half :])
    parent.splice(at + 1, at + 2, array("Q", right.keys[:1]).tobytes(), array("Q", [right.blocknr]).tobytes())
