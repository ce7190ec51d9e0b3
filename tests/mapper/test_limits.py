"""Where a table's ranges must lie, and when that is looked at; logical blocks and discards by the table."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line, TableError
from userdm.storage import MemoryStorage

K4 = 8
"""Sectors of a block of 4096 bytes."""


class Disk(MemoryStorage):
    def __init__(self, size: int, block_size: int, *, discards: bool = True) -> None:
        super().__init__(size)
        self.block_size = block_size
        self.discards = discards


@pytest.fixture
def mapper() -> Iterator[Mapper]:
    mapper = Mapper()
    mapper.attached["small"] = Disk(1 << 20, 512)
    mapper.attached["large"] = Disk(1 << 20, 4096)
    mapper.attached["keeps"] = Disk(1 << 20, 512, discards=False)
    yield mapper
    mapper.close()


def lines(text: str) -> list[Line]:
    """start length type params, a slash between two lines"""
    found = []
    for line in text.split("/"):
        start, length, kind, *params = line.split()
        found.append(Line(int(start), int(length), kind, " ".join(params).replace("@", "/dev/mapper/")))
    return found


def make(mapper: Mapper, name: str, text: str) -> MappedDevice:
    device = mapper.create(name)
    try:
        mapper.load(device, lines(text))
        mapper.resume(device)
    except OSError:
        mapper.remove(device)
        raise
    return device


ALIGNED = [
    "0 8 linear large 0",
    "0 16 linear large 8",
    "0 8 zero / 8 8 linear large 0",
    "0 8 linear large 0 / 8 8 zero",
    "0 4 linear small 0 / 4 4 linear small 8 / 8 8 linear large 0",
]
MISALIGNED = [
    ("0 8 linear large 1", ["line 1", "'large'", "start 1", "logical block 8"]),
    ("0 12 linear large 0", ["line 1", "'large'", "length 12", "logical block 8"]),
    ("0 4 zero / 4 8 linear large 0", ["line 2", "sectors 4 to 12", "4096"]),
    ("0 8 zero / 8 8 linear large 0 / 16 4 zero", ["line 3", "sectors 16 to 20", "4096"]),
    ("0 4096 linear large 0", ["line 1", "too small", "it has 2048"]),
]


@pytest.mark.parametrize("text", ALIGNED)
def test_a_device_has_the_largest_logical_block_below_it(mapper: Mapper, text: str) -> None:
    assert make(mapper, "d", text).block_size == 4096


@pytest.mark.parametrize(("text", "words"), MISALIGNED, ids=lambda value: str(value)[:40])
def test_refused_by_the_first_load(mapper: Mapper, text: str, words: list[str]) -> None:
    with pytest.raises(TableError) as caught:
        make(mapper, "d", text)
    assert caught.value.errno == errno.EINVAL
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("text", "words"), MISALIGNED, ids=lambda value: str(value)[:40])
def test_refused_by_the_resume_of_a_later_one(mapper: Mapper, text: str, words: list[str]) -> None:
    """As on the kernel: suspended by the attempt, with its old table, and a resume lets it go on."""
    device = make(mapper, "d", "0 8 linear small 0")
    mapper.load(device, lines(text))
    assert device.inactive is not None
    with pytest.raises(TableError) as caught:
        mapper.resume(device)
    assert caught.value.errno == errno.EINVAL
    for word in words:
        assert word in str(caught.value)
    assert device.suspended
    assert device.asleep, "for the next daemon, too"
    assert device.inactive is None
    assert device.size == 4096
    mapper.resume(device)
    assert not device.suspended


def test_the_logical_block_of_a_stack(mapper: Mapper) -> None:
    low = make(mapper, "low", "0 64 linear large 0")
    with pytest.raises(TableError, match="length 4"):
        make(mapper, "top", "0 4 linear @low 0")
    top = make(mapper, "top", "0 8 linear @low 0")
    assert top.block_size == 4096
    mapper.load(low, lines("0 64 linear small 0"))
    mapper.resume(low)
    assert low.block_size == 512
    assert top.block_size == 4096, "it is taken when a table becomes live"
    assert make(mapper, "stripes", "0 32 striped 2 8 small 0 large 0").block_size == 4096


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("0 8 linear small 0", True),
        ("0 8 linear keeps 0", False),
        ("0 8 zero", False),
        ("0 8 error", False),
        ("0 8 linear small 0 / 8 8 zero", False),
        ("0 8 linear small 0 / 8 8 linear large 0", True),
        ("0 32 striped 2 8 small 0 keeps 0", False),
        ("0 8 linear @zeros 0", False),
        ("0 8 linear @lines 0", True),
    ],
)
def test_discards_by_the_table(mapper: Mapper, text: str, takes: bool) -> None:
    make(mapper, "zeros", "0 8 zero")
    make(mapper, "lines", "0 8 linear small 64")
    assert make(mapper, "d", text).discards is takes


def test_a_pool_is_replaced_by_errors_and_nothing_else(mapper: Mapper) -> None:
    mapper.attached["m"] = MemoryStorage(1 << 20)
    pool = make(mapper, "pool", "0 2048 thin-pool m small 128 0")
    with pytest.raises(TableError, match="immutable"):
        mapper.load(pool, lines("0 2048 zero"))
    mapper.load(pool, lines("0 2048 error"))
    mapper.resume(pool)
    mapper.load(pool, lines("0 2048 zero"))
    mapper.resume(pool)
