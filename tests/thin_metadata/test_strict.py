"""The tests' own quick checker against thin_check: whatever thin_check refuses, it refuses."""

from __future__ import annotations

import random
import struct

import pytest

from support.strict import BITMAP, BLOCK, INDEX, NODE, SUPERBLOCK, Damaged, strict_check
from support.thin import commit, content, new_pool, on_file, thin_check, write
from userdm.pdata.block import checksum
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata


def made() -> tuple[PoolMetadata, bytes]:
    """Shared trees, counts above two, a metadata snapshot, two levels and more."""
    pool = new_pool(metadata=120 * BLOCK, data_blocks=20000)
    pool.create_thin(0)
    for vblock in range(0, 900, 3):
        write(pool, 0, vblock)
    write(pool, 0, 5000, 300)
    for dev in range(1, 5):
        pool.create_snap(dev, dev - 1)
        write(pool, dev, 100 * dev, 20)
    pool.reserve_metadata_snap()
    pool.open_thin(2).remove(300, 600)
    write(pool, 3, 0, 2)
    commit(pool)
    return pool, content(pool.storage)


def kind(block: memoryview) -> int | None:
    """Which constant the block's checksum was made with."""
    stored = struct.unpack_from("<I", block)[0]
    return next((salt for salt in (SUPERBLOCK, NODE, BITMAP, INDEX) if checksum(block, salt) == stored), None)


def test_what_thin_check_refuses_is_refused() -> None:
    """One field or bit of a block in use is another, under a checksum that is right."""
    _, image = made()
    strict_check(image)
    rng = random.Random(11)
    kinds = {number: kind(memoryview(image)[number * BLOCK : (number + 1) * BLOCK]) for number in range(120)}
    sealed = {number: salt for number, salt in kinds.items() if salt is not None}
    assert set(sealed.values()) == {SUPERBLOCK, NODE, BITMAP, INDEX}
    refused = mine = 0
    for _ in range(150):
        number = rng.choice(list(sealed))
        changed = bytearray(image)
        block = memoryview(changed)[number * BLOCK : (number + 1) * BLOCK]
        at = rng.choice([rng.randrange(4, 400), rng.randrange(4, 100), rng.randrange(4, BLOCK)])
        block[at] ^= 1 << rng.randrange(8)
        struct.pack_into("<I", block, 0, checksum(block, sealed[number]))
        storage = MemoryStorage(len(changed))
        storage.write(0, changed)
        theirs = on_file("thin_check", storage).returncode != 0
        try:
            strict_check(changed)
            ours = False
        except (Damaged, struct.error):
            ours = True
        assert ours or not theirs, f"block {number} byte {at}: thin_check refuses, the quick checker does not"
        refused += theirs
        mine += ours
    assert 30 < refused <= mine


@pytest.mark.parametrize("what", ["leak", "free", "mapped", "summary", "overflow"])
def test_what_a_wrong_commit_would_leave(what: str) -> None:
    pool, _ = made()
    if what == "leak":
        block = pool.reserve_data(1)[0]
        pool.data.map_reserved(block, 1)
    elif what == "free":
        run = pool.open_thin(0).lookup_runs(5000, 5001)[0]
        pool.data.counts.set(run.pblock, 0)
    elif what == "mapped":
        thin = pool.open_thin(1)
        thin.details.mapped_blocks += 1
        pool.touch(thin)
    elif what == "summary":
        pool.data.counts.nr_allocated -= 1
        pool.set_transaction_id(0, 1)
    else:
        run = pool.open_thin(0).lookup_runs(0, 1)[0]
        pool.data.inc(run.pblock, 1)
    commit(pool)
    with pytest.raises(Damaged):
        strict_check(content(pool.storage))


def test_a_sound_pool_passes_both() -> None:
    pool, image = made()
    strict_check(image)
    thin_check(pool.storage)
