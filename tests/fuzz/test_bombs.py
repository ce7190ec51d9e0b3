"""Metadata made to take for ever: small images whose pointers cross, so that there are more ways than blocks."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import partial

import pytest

from fuzz.reference import BLOCK
from fuzz.test_metadata import CHANGING, Changes, check_refusal, counted, storage_of
from support import budget
from support.thin import commit, content, dumped, new_pool, write
from userdm.pdata.block import NODE_SALT, SUPERBLOCK_SALT, seal
from userdm.pdata.node import max_entries
from userdm.thin.metadata import PoolMetadata

BLOCKS = 512
LEVELS = 10
WEB_AT = 400
"""Blocks from here on are free in the image."""
FIELDS = {"mappings": 320, "details": 328, "data index": 80, "data overflow": 88, "metadata overflow": 216}
SIZES = {"mappings": 8, "details": 24, "data index": 16, "data overflow": 4, "metadata overflow": 4}


def node(blocknr: int, keys: list[int], values: list[bytes], *, leaf: bool) -> bytes:
    size = len(values[0]) if values else 8
    room = max_entries(size)
    raw = bytearray(BLOCK)
    struct.pack_into("<IIQIII", raw, 0, 0, 2 if leaf else 1, blocknr, len(keys), room, size)
    struct.pack_into(f"<{len(keys)}Q", raw, 32, *keys)
    at = 32 + 8 * room
    raw[at : at + size * len(values)] = b"".join(values)
    seal(raw, blocknr, NODE_SALT)
    return bytes(raw)


def web(image: bytearray, size: int, step: Callable[[int], int]) -> int:
    """A tree of LEVELS inner nodes, each of whose 252 pointers leads to the next one; the last to a leaf. Its root.

    ``step(level)`` is how far apart the keys of that level's node are.
    """
    for level in range(LEVELS):
        blocknr = WEB_AT + level
        child = (blocknr + 1).to_bytes(8, "little")
        raw = node(blocknr, [index * step(level) for index in range(252)], [child] * 252, leaf=False)
        image[blocknr * BLOCK : (blocknr + 1) * BLOCK] = raw
    blocknr = WEB_AT + LEVELS
    keys = list(range(5))
    image[blocknr * BLOCK : (blocknr + 1) * BLOCK] = node(blocknr, keys, [bytes(size)] * len(keys), leaf=True)
    return WEB_AT


def pool_with_web(where: str, step: Callable[[int], int]) -> bytearray:
    pool = new_pool(data_blocks=70_000)
    for dev in range(3):
        pool.create_thin(dev)
        write(pool, dev, 10 * dev, 20)
    pool.create_snap(3, 0)
    pool.create_snap(4, 0)
    pool.create_snap(5, 0)
    commit(pool)
    image = bytearray(content(pool.storage))
    if where == "device":
        root = struct.unpack_from("<Q", image, FIELDS["mappings"])[0]
        at = root * BLOCK + 32 + 8 * max_entries(8)
        struct.pack_into("<Q", image, at, web(image, 8, step))
        block = image[root * BLOCK : (root + 1) * BLOCK]
        seal(block, root, NODE_SALT)
        image[root * BLOCK : (root + 1) * BLOCK] = block
    else:
        struct.pack_into("<Q", image, FIELDS[where], web(image, SIZES[where], step))
        block = image[:BLOCK]
        seal(block, 0, SUPERBLOCK_SALT)
        image[:BLOCK] = block
    return image


def tight(level: int) -> int:
    return 1


def wide(level: int) -> int:
    return int(252 ** max(7 - level, 0))


@pytest.mark.parametrize("step", [tight, wide])
@pytest.mark.parametrize("where", ["device", *FIELDS])
def test_a_web_is_seen_through(where: str, step: Callable[[int], int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = pool_with_web(where, step)

    def bounded(act: Callable[[], object]) -> None:
        with budget.bounded(f"{where} {step.__name__}"), counted(monkeypatch) as visits:
            try:
                act()
            except OSError as error:
                assert error.errno in CHANGING, error
        assert visits[0] <= 10_000

    bounded(lambda: dumped(PoolMetadata.open(storage_of(image), None, readonly=True)))
    for seed in range(10):
        pool = PoolMetadata.open(storage_of(image), None)
        changes = Changes(pool, random.Random(seed))
        for _ in range(10):
            bounded(changes.one)
    changes_of_all: tuple[Callable[[PoolMetadata], object], ...] = (
        lambda pool: pool.open_thin(0).lookup_runs(0, 1 << 40),
        lambda pool: pool.open_thin(0).remove(3, 1 << 40),
        lambda pool: pool.open_thin(0).remove(0, 1 << 64),
        lambda pool: write(pool, 0, 300, 300),
        lambda pool: pool.delete(0),
        lambda pool: pool.create_snap(9, 0),
        lambda pool: pool.resize_data(200_000),
    )
    for act in changes_of_all:
        pool = PoolMetadata.open(storage_of(image), None)
        bounded(partial(act, pool))
        bounded(partial(commit, pool))


def test_a_child_beside_its_keys_is_not_passed_over() -> None:
    """It was once: half of a volume read as a hole, and nobody was told."""
    with pytest.raises(OSError, match=f"block {WEB_AT + 1}: keys are 0 to 251, expected from 0 and below 1") as error:
        dumped(PoolMetadata.open(storage_of(pool_with_web("device", tight)), None, readonly=True))
    check_refusal(error.value, CHANGING)
