"""The btree against a dict, and its shape against what the kernel and thin_check want."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdata.conftest import new_transaction
from userdm.pdata.btree import MAX_KEY, BTree, ValueType
from userdm.pdata.node import Node, max_entries
from userdm.pdata.prune import delete, remove
from userdm.pdata.transaction import Transaction


class Model:
    """A tree of u32 values with a reference count for each, and a dict that ought to be the same."""

    def __init__(self, tx: Transaction, size: int = 4) -> None:
        self.references: dict[int, int] = {}
        self.tx = tx
        self.size = size
        self.tree = BTree(tx, ValueType(size, self._inc, self._dec))
        self.root = self.tree.empty()
        self.dict: dict[int, int] = {}

    def _values(self, leaf: Node, start: int, end: int) -> Iterator[int]:
        raw = bytes(leaf.value_bytes(start, end))
        for at in range(0, len(raw), self.size):
            yield int.from_bytes(raw[at : at + 4], "little")

    def _inc(self, leaf: Node, start: int, end: int) -> None:
        for value in self._values(leaf, start, end):
            self.references[value] = self.references.get(value, 0) + 1

    def _dec(self, leaf: Node, start: int, end: int) -> None:
        for value in self._values(leaf, start, end):
            self.references[value] -= 1

    def insert(self, key: int, values: list[int]) -> None:
        for value in values:
            self.references[value] = self.references.get(value, 0) + 1
        raw = b"".join(struct.pack("<I", value).ljust(self.size, b"\0") for value in values)
        self.root = self.tree.insert(self.root, key, raw, self._dec)
        self.dict.update(zip(range(key, key + len(values)), values, strict=True))

    def remove(self, begin: int, end: int) -> None:
        self.root = remove(self.tree, self.root, begin, end)
        for key in [begin] if end == begin + 1 else [key for key in self.dict if begin <= key < end]:
            self.dict.pop(key, None)

    def items(self, root: int, begin: int = 0, end: int = MAX_KEY + 1) -> dict[int, int]:
        found: dict[int, int] = {}
        for leaf, start, stop in self.tree.pieces(root, begin, end):
            assert start < stop
            found.update(zip(leaf.keys[start:stop], self._values(leaf, start, stop), strict=True))
        assert list(found) == sorted(found)
        return found

    def check(self) -> None:
        assert self.items(self.root) == self.dict
        assert self.tree.highest(self.root) == max(self.dict, default=None)
        check_shape(self.tree, self.root)


def check_shape(tree: BTree, root: int) -> int:
    """The depth; every level is full enough, and keys lie where their parents say."""

    def walk(blocknr: int, low: int, high: int) -> int:
        node = tree.node(blocknr)
        keys = list(node.keys[: node.n])
        assert keys == sorted(set(keys))
        assert not keys or (low <= keys[0] and keys[-1] < high)
        if blocknr != root:
            assert node.n >= node.max // 3
        if node.leaf:
            return 1
        assert node.n >= 2 or blocknr != root
        bounds = [*keys[1:], high]
        depths = {walk(node.values[at], keys[at], bounds[at]) for at in range(node.n)}
        assert len(depths) == 1
        return depths.pop() + 1

    return walk(root, 0, MAX_KEY + 1)


def test_max_entries_is_the_kernels() -> None:
    assert [max_entries(size) for size in (4, 8, 16, 24)] == [336, 252, 168, 126]


KEYS = st.one_of(st.integers(0, 2000), st.integers(MAX_KEY - 800, MAX_KEY))
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), KEYS, st.integers(1, 800)),
        st.tuples(st.just("remove"), KEYS, st.integers(1, 1500)),
        st.tuples(st.just("share"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=100)
@given(CHANGES, st.sampled_from([4, 8, 16, 24]))
def test_against_a_dict(changes: list[tuple[str, int, int]], size: int) -> None:
    model = Model(new_transaction(4000), size)
    shared: list[tuple[int, dict[int, int]]] = []
    value = 0
    for what, key, length in changes:
        if what == "insert":
            length = min(length, MAX_KEY + 1 - key)
            model.insert(key, list(range(value, value + length)))
            value += length
        elif what == "remove":
            model.remove(key, key + length)
        else:
            model.tx.inc(model.root)
            shared.append((model.root, dict(model.dict)))
        model.check()
        for root, items in shared:
            assert model.items(root) == items
    # one tree after the other goes: what nobody holds any more has no reference left
    for root, _ in shared:
        delete(model.tree, root)
    model.check()
    assert {value for value, count in model.references.items() if count} == set(model.dict.values())
    assert all(count == 1 for count in model.references.values() if count)
    used = model.tx.space.nr_used
    delete(model.tree, model.root)
    assert not any(model.references.values())
    # superblock, index, bitmap, and the overflow tree of the map itself are left
    assert used > model.tx.space.nr_used == 4


def test_depth_three_and_back(tx: Transaction) -> None:
    """More than 252 full leaves, in random order, with single keys taken out again."""
    model = Model(tx, 8)
    rng = random.Random(1)
    keys = [key * 3 for key in range(60_000)]
    rng.shuffle(keys)
    for key in keys:
        model.insert(key, [key])
    model.check()
    assert check_shape(model.tree, model.root) == 3
    for key in keys[:40_000]:
        model.remove(key, key + 1)
        if key % 1500 == 0:
            check_shape(model.tree, model.root)
    model.check()
    model.remove(30, 179_000)
    model.check()
    assert check_shape(model.tree, model.root) <= 2


def test_runs_fill_their_leaves(tx: Transaction) -> None:
    """Appended runs leave full nodes behind: 252 mappings a block, not half of it."""
    model = Model(tx, 8)
    for at in range(0, 100_000, 100):
        model.insert(at, list(range(at, at + 100)))
    model.check()
    assert model.tree.nr_nodes(model.root) <= 100_000 / 252 * 1.6
    whole = Model(tx, 8)
    whole.insert(0, list(range(100_000)))
    whole.check()
    assert whole.tree.nr_nodes(whole.root) <= 100_000 / 252 + 5


def test_lookup_and_ranges(tx: Transaction) -> None:
    model = Model(tx)
    assert model.tree.highest(model.root) is None
    assert model.tree.get(model.root, 0) is None
    model.insert(10, [1, 2, 3])
    model.insert(MAX_KEY, [4])
    assert model.tree.get(model.root, 11) == struct.pack("<I", 2)
    assert [model.tree.get(model.root, key) for key in (9, 13, MAX_KEY - 1)] == [None, None, None]
    assert model.items(model.root, 11, 13) == {11: 2, 12: 3}
    assert model.items(model.root, 13, MAX_KEY) == {}
    assert model.tree.any(model.root, 0, 11)
    assert not model.tree.any(model.root, 13, 1 << 63)


def test_nothing_is_copied_for_a_range_without_entries(tx: Transaction) -> None:
    model = Model(tx)
    model.insert(0, list(range(2000)))
    tx.inc(model.root)
    used = tx.space.nr_used
    model.remove(2000, 1 << 60)
    assert tx.space.nr_used == used


def test_a_cycle_is_an_error(tx: Transaction) -> None:
    tree = BTree(tx, ValueType(8))
    node = tx.new_node(8, leaf=False)
    node.splice(0, 0, bytes(8), node.blocknr.to_bytes(8, "little"))
    for look in (
        lambda: tree.get(node.blocknr, 5),
        lambda: tree.highest(node.blocknr),
        lambda: list(tree.pieces(node.blocknr)),
        lambda: tree.nr_nodes(node.blocknr),
        lambda: tree.insert(node.blocknr, 5, bytes(8)),
        lambda: delete(tree, node.blocknr),
    ):
        with pytest.raises(OSError, match="cycle") as error:
            look()
        assert error.value.errno == errno.EILSEQ
