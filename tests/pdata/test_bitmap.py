"""Two-bit counts and block sets against plain lists and sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from userdm.pdata.bitmap import BYTES, ENTRIES, Bitmap, Mask, pack, split, unpack
from userdm.pdata.block import BLOCK_SIZE


def test_the_high_bit_comes_first() -> None:
    """The kernel's order: count 1 is stored as 0b10, count 2 as 0b01."""
    bitmap = Bitmap(1, bytearray(BLOCK_SIZE))
    for entry, count in enumerate((1, 2, 3, 0, 1)):
        bitmap.set(entry, count)
    assert bitmap.buffer[16:18] == bytes((0b00_11_01_10, 0b10))
    assert [bitmap.get(entry) for entry in range(6)] == [1, 2, 3, 0, 1, 0]


@given(st.binary(max_size=64))
def test_pack_is_the_reverse_of_unpack(raw: bytes) -> None:
    counts = unpack(raw)
    assert len(counts) == 4 * len(raw)
    assert set(counts) <= {0, 1, 2, 3}
    assert pack(counts) == raw


@given(st.integers(0, ENTRIES - 1), st.lists(st.integers(0, 3), min_size=1, max_size=70))
def test_a_range_is_stored_and_read_back(start: int, counts: list[int]) -> None:
    counts = counts[: ENTRIES - start]
    bitmap = Bitmap(1, bytearray(b"\x99" * BLOCK_SIZE))
    before = [bitmap.get(entry) for entry in range(ENTRIES)]
    bitmap.store(start, bytes(counts))
    before[start : start + len(counts)] = counts
    assert [bitmap.get(entry) for entry in range(ENTRIES)] == before
    assert list(bitmap.counts(start, start + len(counts))) == counts
    assert bitmap.buffer[:16] == b"\x99" * 16


@given(st.sets(st.integers(0, 200)), st.sets(st.integers(0, 200)), st.integers(0, 210), st.integers(0, 210))
def test_free_runs_are_the_zeros_that_are_not_withheld(used: set[int], held: set[int], start: int, end: int) -> None:
    bitmap = Bitmap(1, bytearray(BLOCK_SIZE))
    mask = Mask()
    for entry in used:
        bitmap.set(entry, 2)
    for entry in held:
        mask.add(entry, 1)
    end = max(start, end)
    runs = list(bitmap.free_runs(start, end, mask.pages.get(0, 0)))
    assert [entry for first, count in runs for entry in range(first, first + count)] == sorted(
        set(range(start, end)) - used - held
    )
    assert all(first + count < after for (first, count), (after, _) in pairwise(runs))


@given(st.integers(0, 5 * ENTRIES), st.integers(0, 3 * ENTRIES))
def test_split_covers_the_run_in_order(block: int, count: int) -> None:
    at = block
    for page, start, end in split(block, count):
        assert page * ENTRIES + start == at
        assert start <= end <= ENTRIES
        at += end - start
    assert at == block + count


@given(
    st.lists(st.tuples(st.booleans(), st.integers(ENTRIES - 20, ENTRIES + 20), st.integers(1, 30)), max_size=30),
    st.integers(ENTRIES - 25, ENTRIES + 25),
    st.integers(1, 40),
)
def test_a_mask_is_a_set(changes: list[tuple[bool, int, int]], block: int, count: int) -> None:
    mask, model = Mask(), set[int]()
    for add, first, length in changes:
        if add:
            mask.add(first, length)
            model |= set(range(first, first + length))
        else:
            mask.remove(first, length)
            model -= set(range(first, first + length))
    asked = set(range(block, block + count))
    assert mask.any(block, count) == bool(asked & model)
    assert mask.all(block, count) == (asked <= model)


def test_a_bitmap_has_room_for_16320_counts() -> None:
    assert (ENTRIES, BYTES) == (16320, 4080)
