"""Hardly any room for the metadata: every change succeeds, or is refused before it begins; a commit always fits."""

from __future__ import annotations

import errno
import random
from collections import Counter

import pytest

from support.thin import commit, dumped, new_pool, thin_check, thin_dump, write
from userdm.thin.metadata import PoolMetadata


def step(pool: PoolMetadata, rng: random.Random, devices: list[int]) -> str:
    what = rng.choice(("create", "snap", "snap", "insert", "insert", "insert", "run", "remove", "delete", "hold"))
    dev, origin = rng.randrange(400), rng.choice(devices or [0])
    if what == "create" and dev not in devices:
        pool.create_thin(dev)
    elif what == "snap" and devices and dev not in devices:
        pool.create_snap(dev, origin)
    elif what == "insert" and devices:
        write(pool, origin, rng.choice((rng.randrange(20), rng.randrange(3000))))
    elif what == "run" and devices:
        write(pool, origin, rng.randrange(1000), rng.randrange(600))
    elif what == "remove" and devices:
        begin = rng.randrange(2000)
        pool.open_thin(origin).remove(begin, begin + rng.choice((1, 40, 1000)))
    elif what == "delete" and len(devices) > 30:
        pool.delete(origin)
    elif what == "hold":
        if pool.held_root:
            pool.release_metadata_snap()
        else:
            pool.reserve_metadata_snap()
    return what


@pytest.mark.parametrize("blocks", [16, 20, 30, 45, 70, 120])
@pytest.mark.parametrize("seed", range(3))
def test_no_change_ends_half_way(blocks: int, seed: int) -> None:
    rng = random.Random(seed * 1000 + blocks)
    pool = new_pool(metadata=blocks * 4096, data_blocks=12_000)
    refused: Counter[str] = Counter()
    for number in range(1500):
        devices = [dev for dev, _ in pool.devices()]
        free = pool.space.nr_free
        try:
            step(pool, rng, devices)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert pool.failed is None
            if "metadata" in str(error):
                refused["metadata"] += 1
        if rng.random() < 0.1 or pool.space.nr_free < free // 4:
            commit(pool)
        if number % 500 == 0:
            commit(pool)
            thin_check(pool.storage)
    commit(pool)
    thin_check(pool.storage)
    assert thin_dump(pool.storage) == dumped(pool)
    assert refused["metadata"]


def test_the_last_change_that_fits_can_be_committed() -> None:
    """For every size of the device: changes until one is refused, all of them in one transaction."""
    for blocks in range(42, 90):
        pool = new_pool(metadata=blocks * 4096, data_blocks=40_000)
        pool.create_thin(0)
        write(pool, 0, 0, 20)
        commit(pool)
        dev = 1
        try:
            while True:
                pool.create_snap(dev, dev - 1)
                write(pool, dev, 7)
                pool.data.reserve(9000)
                dev += 1
                if dev == 4:
                    commit(pool)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        try:
            for vblock in range(0, 100_000, 9):
                write(pool, 0, vblock)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        for number in list(range(dev)):
            try:
                pool.delete(number)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        commit(pool)
        thin_check(pool.storage)


def test_a_full_device_can_be_emptied() -> None:
    """Most of the device can be used, and when it is full everything can be deleted, a commit at a time."""
    pool = new_pool(metadata=256 * 4096, data_blocks=100_000)
    pool.create_thin(0)
    with pytest.raises(OSError, match="no room for the metadata") as error:
        for vblock in range(0, 200_000, 2):
            write(pool, 0, vblock)
            if vblock % 1000 == 0:
                commit(pool)
    assert error.value.errno == errno.ENOSPC
    commit(pool)
    mapped = pool.open_thin(0).mapped_blocks
    assert mapped > 200 * 160, "two thirds full leaves in eight of ten blocks"
    assert pool.free_metadata_blocks < 20
    pool.open_thin(0).remove(10, 1000)
    commit(pool)
    pool.delete(0)
    commit(pool)
    thin_check(pool.storage)
    assert pool.free_data_blocks == 100_000
    pool.create_thin(1)


def test_many_snapshots_of_a_shared_leaf() -> None:
    """Each block of a leaf gets its count in the overflow tree: the rough estimate must know."""
    pool = new_pool(metadata=100 * 4096, data_blocks=10_000)
    pool.create_thin(0)
    write(pool, 0, 0, 250)
    with pytest.raises(OSError, match="no room for the metadata"):
        for dev in range(1, 1000):
            pool.create_snap(dev, dev - 1)
            write(pool, dev, dev % 250)
            commit(pool)
    commit(pool)
    thin_check(pool.storage)
    devices = [dev for dev, _ in pool.devices()]
    assert len(devices) > 40
    for dev in devices:
        pool.delete(dev)
        commit(pool)
    thin_check(pool.storage)
    assert pool.free_data_blocks == 10_000
