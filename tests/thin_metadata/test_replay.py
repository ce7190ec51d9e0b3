"""After each change of a random workload: what a successor makes of log and last commit is what was in memory."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from support.kept import MemoryKeep, copied
from support.thin import commit, content, thin_check
from thin_metadata.test_crash import step_if_room
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata
from userdm.thin.replay import open_metadata


def state(pool: PoolMetadata) -> list[Any]:
    """Everything that the metadata says, but where in the metadata device it lies."""
    out: list[Any] = [pool.time, pool.transaction_id, bool(pool.held_root), pool.needs_check]
    out += [pool.nr_data_blocks, pool.nr_metadata_blocks, pool.free_data_blocks]
    for dev, details in pool.devices():
        out.append((dev, details, pool.open_thin(dev).lookup_runs(0, 1 << 64)))
    return out


def more(pool: PoolMetadata, rng: random.Random) -> None:
    """A change, if there is room for it; now and then one of the rarer ones."""
    with suppress(OSError):
        _more(pool, rng)
    assert pool.failed is None


def _more(pool: PoolMetadata, rng: random.Random) -> None:
    what = rng.randrange(12)
    if what == 0:
        pool.set_transaction_id(pool.transaction_id, rng.randrange(1 << 64))
    elif what == 1 and pool.nr_data_blocks < 4000:
        pool.resize_data(pool.nr_data_blocks + rng.randrange(200))
    elif what == 2 and pool.nr_metadata_blocks < pool.storage.size // 4096:
        pool.resize_metadata(pool.nr_metadata_blocks + 1)
    else:
        step_if_room(pool, rng)


@pytest.mark.parametrize("blocks", [60, 200], ids=["hardly-any-room", "room"])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_it_was(seed: int, blocks: int) -> None:
    rng = random.Random(seed)
    storage, keep = MemoryStorage(blocks * 4096), MemoryKeep()
    pool = open_metadata(storage, 128, keep, "redo")
    pool.resize_data(2500)
    commit(pool)
    for _ in range(30):
        for _ in range(rng.randrange(6)):
            more(pool, rng)
            again(pool, storage, keep)
        sealed = pool.seal()
        if sealed is None:
            continue
        again(pool, storage, keep)
        more(pool, rng)
        again(pool, storage, keep)
        sealed.write(storage, lambda: None)
        again(pool, storage, keep)
        freed = pool.finish(sealed, True)
        more(pool, rng)
        again(pool, storage, keep)
        pool.release_data(freed)
    pool.set_needs_check()
    again(pool, storage, keep)
    keep.close()


def again(pool: PoolMetadata, storage: MemoryStorage, keep: MemoryKeep) -> None:
    """Killed now. The successor has the same, says so to its own successor, and can commit it."""
    left, left_keep = copied(storage), keep.copy()
    second = open_metadata(left, 128, left_keep, "redo")
    assert state(second) == state(pool)
    assert content(left) == content(storage)
    third = open_metadata(left, 128, left_keep, "redo")
    assert state(third) == state(pool)
    commit(third)
    assert state(PoolMetadata.open(left, 128)) == state(pool)
    left_keep.close()
    if pool.superblock.trans_id % 16 == 0:
        thin_check(left)
