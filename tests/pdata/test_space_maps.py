"""Counts, allocation, and the map that describes itself."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdata.conftest import new_transaction
from userdm.pdata.bitmap import ENTRIES
from userdm.pdata.counts import MAX_COUNT, Root
from userdm.pdata.data_map import DataSpaceMap
from userdm.pdata.metadata_map import MAX_BLOCKS, MetadataSpaceMap
from userdm.pdata.transaction import Transaction
from userdm.storage import MemoryStorage


def data_map(nr_blocks: int = 20_000, tx: Transaction | None = None) -> DataSpaceMap:
    data = DataSpaceMap.create(tx or new_transaction(2000))
    data.extend(nr_blocks)
    return data


def test_sixteen_gibibytes_less_the_headers() -> None:
    assert MAX_BLOCKS == 255 * 16320
    assert MAX_BLOCKS * 8 == 33292800  # sectors; the kernel's DM_SM_METADATA_MAX_SECTORS


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["inc", "dec", "set"]), st.integers(0, 30), st.integers(1, 20), st.integers(0, 5)),
        max_size=60,
    )
)
def test_counts_against_a_list(changes: list[tuple[str, int, int, int]]) -> None:
    """Around the border of two bitmaps, with counts above and below what a bitmap holds."""
    data = data_map()
    counts, base = data.counts, ENTRIES - 25
    model = [0] * 60
    for what, start, length, value in changes:
        old = model[start : start + length]
        if what == "inc":
            counts.inc(base + start, length)
            model[start : start + length] = [count + 1 for count in old]
        elif what == "set":
            counts.set(base + start, value)
            model[start] = value
        elif 0 in old:
            with pytest.raises(OSError, match="is 0"):
                counts.dec(base + start, length)
            return
        else:
            freed = counts.dec(base + start, length)
            model[start : start + length] = [count - 1 for count in old]
            assert [b - base for first, n in freed for b in range(first, first + n)] == [
                start + at for at, count in enumerate(old) if count == 1
            ]
        if value == 3:
            data.flush()
            assert not counts.many
        assert [counts.get(base + at) for at in range(60)] == model
        assert counts.nr_allocated == sum(count > 0 for count in model)
        for page, part in ((0, model[:25]), (1, model[25:])):
            entry = counts.entry(page)
            assert entry.nr_free == ENTRIES - sum(count > 0 for count in part)
            first_free = next((at for at, count in enumerate(part) if count == 0), len(part))
            assert entry.none_free_before <= (base + first_free if page == 0 else first_free)
    data.flush()
    again = DataSpaceMap(data._tx, Root.unpack(counts.root().pack()))
    assert [again.counts.get(base + at) for at in range(60)] == model


def test_a_count_that_cannot_grow() -> None:
    counts = data_map().counts
    counts.set(5, (1 << 32) - 2)
    counts.inc(5, 1)
    for run in ((5, 1), (4, 3)):
        with pytest.raises(OSError, match="count of block 5 is 4294967295 and cannot grow") as error:
            counts.inc(*run)
        assert error.value.errno == errno.EILSEQ
    counts.flush_many()
    counts.dec(5, 1)
    assert counts.get(5) == (1 << 32) - 2


def test_counts_beyond_what_there_is() -> None:
    with pytest.raises(OSError, match="20000") as error:
        data_map().inc(19_990, 20)
    assert error.value.errno == errno.EILSEQ


def test_reservations_are_contiguous_and_move_on() -> None:
    data = data_map(1000)
    assert data.reserve(10) == (0, 10)
    assert data.reserve(5) == (10, 5)
    data.unreserve(0, 10)
    assert data.reserve(1) == (15, 1), "the cursor moves on while there is something ahead"
    assert data.reserve(10_000) == (16, 984)
    assert data.reserve(20) == (0, 10), "then it starts again"
    assert data.nr_free == 0
    with pytest.raises(OSError, match="no free data block") as error:
        data.reserve(1)
    assert error.value.errno == errno.ENOSPC


def test_a_run_ends_where_a_bitmap_ends() -> None:
    data = data_map(ENTRIES + 100)
    assert data.reserve(ENTRIES + 100) == (0, ENTRIES)
    assert data.reserve(200) == (ENTRIES, 100)


def test_what_was_freed_waits_for_its_release() -> None:
    data = data_map(100)
    data.map_reserved(*data.reserve(100))
    data.dec(40, 10)
    assert data.freed == [(40, 10)]
    assert (data.nr_free, data.nr_held) == (10, 10)
    with pytest.raises(OSError, match="10 wait for the commit"):
        data.reserve(1)
    data.release(42, 3)
    assert data.reserve(10) == (42, 3)


def test_claim() -> None:
    data = data_map(100)
    data.map_reserved(*data.reserve(10))
    assert data.reserve(1) == (10, 1)
    data.claim(11, 20)
    assert data.reserve(5) == (31, 5)
    for block in (5, 10, 12, 30, 33):
        with pytest.raises(OSError) as error:
            data.claim(block, 1)
        assert error.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="there are 100") as error:
        data.claim(95, 6)
    assert error.value.errno == errno.EINVAL
    data.map_reserved(11, 20)
    data.unreserve(31, 5)
    with pytest.raises(OSError, match="not all reserved") as error:
        data.unreserve(31, 1)
    assert error.value.errno == errno.EINVAL


def test_fragmented_space_is_used_to_the_last_block() -> None:
    data = data_map(40_000)
    data.map_reserved(0, 0)
    while data.nr_free:
        data.map_reserved(*data.reserve(40_000))
    holes = random.Random(3).sample(range(40_000), 5000)
    for hole in holes:
        data.dec(hole, 1)
        data.release(hole, 1)
    found: list[int] = []
    for _ in holes:
        block, count = data.reserve(1)
        found += range(block, block + count)
    assert sorted(found) == sorted(holes)
    with pytest.raises(OSError):
        data.reserve(1)


def fold(tx: Transaction) -> list[int]:
    """What a commit does to the map; the blocks freed."""
    tx.space.fold()
    tx.blocks.seal()
    tx.fresh.clear()
    freed = tx.space.seal()
    tx.blocks.written()
    return freed


def check_self(tx: Transaction, extra: dict[int, int]) -> None:
    """The map says of each block what is known of it: its own blocks have one reference."""
    space = tx.space
    own = {0, space.counts.index.root, *(space.counts.entry(p).blocknr for p in range(-(-space.nr_blocks // ENTRIES)))}

    def walk(blocknr: int) -> None:
        own.add(blocknr)
        node = tx.node(blocknr, 4)
        if not node.leaf:
            for child in node.values[: node.n]:
                walk(child)

    walk(space.counts.overflow_root)
    expected = dict.fromkeys(own, 1) | extra
    again = MetadataSpaceMap(tx, space.counts.root())
    found = {b: n for b in range(space.nr_blocks) if (n := again.counts.get(b))}
    assert found == expected
    assert space.nr_used == len(expected) == again.nr_used
    assert space.nr_free == space.nr_blocks - len(expected) - space._held


def test_the_metadata_map_describes_itself() -> None:
    tx = new_transaction(ENTRIES + 500)
    extra: dict[int, int] = {}
    rng = random.Random(5)
    held: list[list[int]] = []
    for _ in range(12):
        for _ in range(300):
            block = tx.space.allocate()
            assert block not in extra
            assert not any(block in freed for freed in held)
            extra[block] = 1
        for block in rng.sample(sorted(extra), 200):
            for _ in range(rng.choice((1, 1, 5))):
                tx.space.inc(block)
                extra[block] += 1
        for block in rng.sample(sorted(extra), 150):
            tx.space.dec(block)
            extra[block] -= 1
            if not extra[block]:
                del extra[block]
        held.append(fold(tx))
        check_self(tx, extra)
        if len(held) > 2:
            tx.space.release(held.pop(0))


def test_what_is_on_disk_is_not_used_again_before_its_release() -> None:
    """Blocks that an earlier transaction allocated, in a map that was opened anew."""
    tx = new_transaction(300)
    blocks = [tx.space.allocate() for _ in range(150)]
    tx.space.release(fold(tx))
    tx.space = space = MetadataSpaceMap(tx, tx.space.counts.root())
    for block in blocks[:100]:
        tx.dec(block)
    in_this = {space.allocate() for _ in range(10)}
    freed = fold(tx)
    assert set(freed) >= set(blocks[:100])
    in_next = {space.allocate() for _ in range(space.nr_free)}
    assert not (in_this | in_next) & set(freed)
    with pytest.raises(OSError):
        space.allocate()
    space.release(freed)
    assert {space.allocate() for _ in range(space.nr_free)} == set(freed)


def test_what_this_transaction_made_is_used_again_at_once() -> None:
    tx = new_transaction(100)
    fold(tx)
    for _ in range(1000):
        tx.dec(tx.new_bitmap().blocknr)
    assert not tx.blocks.dirty


def test_the_metadata_map_grows_when_it_is_full() -> None:
    tx = new_transaction(ENTRIES - 3)
    fold(tx)
    tx.blocks.storage = MemoryStorage(3 * ENTRIES * 4096)
    extra: dict[int, int] = {}
    while tx.space.nr_free > 4:
        extra[tx.space.allocate()] = 1
    tx.space.extend(2 * ENTRIES + 7)
    for _ in range(100):
        extra[tx.space.allocate()] = 1
    fold(tx)
    check_self(tx, extra)


def test_a_block_without_reference_is_not_in_use(tx: Transaction) -> None:
    with pytest.raises(OSError, match="block 100: is in use, but its reference count is 0") as error:
        tx.dec(100)
    assert error.value.errno == errno.EILSEQ


def test_a_metadata_blocks_count_has_an_end(tx: Transaction) -> None:
    """As the bitmaps say it; what a count would be that does not fit was noticed only while it was written."""
    blocknr = tx.space.allocate()
    fold(tx)
    tx.space.counts.set(blocknr, MAX_COUNT)
    with pytest.raises(OSError, match=f"block {blocknr}: has 4294967295 references and cannot get another") as error:
        tx.inc(blocknr)
    assert error.value.errno == errno.EILSEQ
    tx.dec(blocknr)
    tx.inc(blocknr)
    fold(tx)
    assert tx.space.count(blocknr) == MAX_COUNT


def test_no_metadata_block_left() -> None:
    tx = new_transaction(16)
    with pytest.raises(OSError, match="no free metadata block: of 16") as error:
        while True:
            tx.space.allocate()
    assert error.value.errno == errno.ENOSPC
    assert tx.space.nr_free == 0
