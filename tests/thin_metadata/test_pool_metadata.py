"""Devices, snapshots, mappings, sizes: what each call does, and how it refuses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from support.thin import MIB, commit, dumped, new_pool, on_file, thin_check, write
from userdm.storage import MemoryStorage
from userdm.thin.mapping import MAX_TIME
from userdm.thin.metadata import PoolMetadata, Run


def fails(number: int, call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(OSError) as error:
        call(*args)
    assert error.value.errno == number
    return str(error.value)


@pytest.fixture
def pool() -> PoolMetadata:
    return new_pool()


def test_device_ids(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    pool.create_thin((1 << 24) - 1)
    assert "exists" in fails(errno.EEXIST, pool.create_thin, 0)
    for dev in (-1, 1 << 24):
        assert "allowed are 0 to 16777215" in fails(errno.EINVAL, pool.create_thin, dev)
        fails(errno.EINVAL, pool.create_snap, dev, 0)
    fails(errno.ENODATA, pool.create_snap, 5, 6)
    fails(errno.EEXIST, pool.create_snap, 0, 6)
    fails(errno.ENODATA, pool.delete, 6)
    fails(errno.ENODATA, pool.open_thin, 6)
    assert pool.open_thin(0) is pool.open_thin(0)
    pool.delete(0)
    fails(errno.ENODATA, pool.open_thin, 0)
    assert [dev for dev, _ in pool.devices()] == [(1 << 24) - 1]


def test_a_deleted_device_is_gone_for_those_who_hold_it(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    thin = pool.open_thin(0)
    pool.delete(0)
    fails(errno.ENODATA, thin.lookup, 0)
    fails(errno.ENODATA, thin.lookup_runs, 0, 1)
    fails(errno.ENODATA, thin.remove, 0, 1)
    fails(errno.ENODATA, thin.insert, 0, *pool.reserve_data(1))


def test_close_and_open_again(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 5)
    first = pool.open_thin(0)
    pool.close_thin(0)
    assert pool.open_thin(0).mapped_blocks == 5
    pool.close_thin(0)
    commit(pool)
    assert pool.open_thin(0) is not first
    assert pool.open_thin(0).mapped_blocks == 5


def test_times_and_sharing(pool: PoolMetadata) -> None:
    """The kernel's rule: shared when mapped before the device's last snapshot; a snapshot shares everything it got."""
    pool.set_transaction_id(0, 3)
    pool.create_thin(0)
    write(pool, 0, 0, 2)
    assert pool.open_thin(0).lookup(0) == (0, False)
    pool.set_transaction_id(3, 4)
    pool.create_snap(1, 0)
    base, snap = pool.open_thin(0), pool.open_thin(1)
    assert (base.transaction_id, base.creation_time, base.snapshotted_time) == (3, 0, 1)
    assert (snap.transaction_id, snap.creation_time, snap.snapshotted_time) == (4, 1, 1)
    write(pool, 0, 1)
    assert base.lookup_runs(0, 10) == [Run(0, 0, 1, True), Run(1, 2, 1, False)]
    assert snap.lookup_runs(0, 10) == [Run(0, 0, 2, True)]
    assert pool.time == 1


def test_runs_are_maximal_and_clipped(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    thin = pool.open_thin(0)
    write(pool, 0, 10, 700)
    write(pool, 0, 900, 5)
    assert thin.lookup_runs(0, 1 << 40) == [Run(10, 0, 700, False), Run(900, 700, 5, False)]
    assert thin.lookup_runs(20, 600) == [Run(20, 10, 580, False)]
    assert thin.lookup_runs(710, 900) == []
    assert thin.lookup_runs(5, 5) == []
    pool.create_snap(1, 0)
    write(pool, 0, 300)
    assert thin.lookup_runs(298, 303) == [
        Run(298, 288, 2, True),
        Run(300, 705, 1, False),
        Run(301, 291, 2, True),
    ]


def test_only_reserved_blocks_are_mapped(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    thin = pool.open_thin(0)
    block, _ = pool.reserve_data(1)
    assert "not all reserved" in fails(errno.EINVAL, thin.insert, 0, block, 2)
    assert "there are 1000" in fails(errno.EINVAL, thin.insert, 0, 1000, 1)
    fails(errno.EINVAL, thin.insert, (1 << 64) - 1, block, 2)
    fails(errno.EINVAL, thin.insert, -1, block, 1)
    thin.insert(0, block)
    fails(errno.EINVAL, thin.insert, 1, block, 1)
    fails(errno.EINVAL, pool.unreserve_data, block, 1)
    fails(errno.EINVAL, pool.reserve_data, 0)
    assert pool.failed is None


def test_a_reservation_is_not_on_disk(pool: PoolMetadata) -> None:
    """A crash leaks nothing: only what is mapped has a count."""
    pool.reserve_data(500)
    assert pool.free_data_blocks == 500
    assert pool.seal() is None
    assert PoolMetadata.open(pool.storage, 128).free_data_blocks == 1000


def test_replaced_blocks_lose_their_reference(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 10)
    write(pool, 0, 5, 10)
    assert pool.open_thin(0).mapped_blocks == 15
    sealed = pool.seal()
    assert sealed is not None
    sealed.write(pool.storage, lambda: None)
    assert pool.finish(sealed, True) == [(5, 5)]
    thin_check(pool.storage)


def test_freed_blocks_are_held_until_they_are_released(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 1000)
    commit(pool)
    assert pool.open_thin(0).remove(100, 200) == [(100, 100)]
    assert pool.free_data_blocks == 100
    fails(errno.ENOSPC, pool.reserve_data, 1)
    sealed = pool.seal()
    assert sealed is not None
    fails(errno.ENOSPC, pool.reserve_data, 1)
    sealed.write(pool.storage, lambda: None)
    runs = pool.finish(sealed, True)
    assert runs == [(100, 100)]
    fails(errno.ENOSPC, pool.reserve_data, 1)
    pool.release_data(runs)
    assert pool.reserve_data(1000) == (100, 100)


def test_blocks_from_before_the_pool_was_opened_are_held_as_well(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 1000)
    commit(pool)
    pool = PoolMetadata.open(pool.storage, 128)
    pool.open_thin(0).remove(100, 200)
    pool.release_data([(150, 1)])
    assert pool.reserve_data(1000) == (150, 1)
    fails(errno.ENOSPC, pool.reserve_data, 1)


def test_remove_tells_what_is_free_now(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 10)
    pool.create_snap(1, 0)
    write(pool, 0, 4, 2)
    assert pool.open_thin(0).remove(3, 7) == [(10, 2)]
    assert pool.open_thin(0).mapped_blocks == 6
    assert pool.open_thin(1).remove(0, 1 << 64) == [(3, 4)]
    assert pool.open_thin(1).highest_mapped() is None
    assert pool.open_thin(0).highest_mapped() == 9
    assert pool.open_thin(0).remove(20, 30) == []


def test_nothing_changed_is_nothing_to_commit(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    commit(pool)
    pool.open_thin(0).remove(0, 100)
    pool.resize_data(1000)
    pool.unreserve_data(*pool.reserve_data(3))
    assert pool.seal() is None
    pool.set_needs_check()
    assert pool.seal() is not None


def test_ten_sharers_of_one_block(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 300)
    for dev in range(1, 10):
        pool.create_snap(dev, 0)
        write(pool, dev, 200)
    commit(pool)
    assert pool.data.counts.get(0) == 10
    assert "block 0" not in dumped(pool)
    for dev in range(9):
        assert not pool.open_thin(9).exclusive(0)
        pool.delete(dev)
        commit(pool)
        thin_check(pool.storage)
    assert pool.data.counts.get(0) == 1
    assert pool.open_thin(9).exclusive(0)
    again = PoolMetadata.open(pool.storage, 128)
    assert again.free_data_blocks == pool.free_data_blocks == 700
    assert again.open_thin(9).exclusive(0)


def test_the_last_owner_waits_for_the_commit(pool: PoolMetadata) -> None:
    """While the last durable state still has a snapshot, its blocks are not written in place."""
    pool.create_thin(0)
    write(pool, 0, 0, 4)
    assert pool.open_thin(0).exclusive(1)
    pool.create_snap(1, 0)
    commit(pool)
    pool.delete(1)
    thin = pool.open_thin(0)
    assert thin.lookup(1) == (1, True)
    assert not thin.exclusive(1)
    sealed = pool.seal()
    assert sealed is not None
    assert not thin.exclusive(1)
    sealed.write(pool.storage, lambda: None)
    assert not thin.exclusive(1)
    pool.finish(sealed, True)
    assert thin.exclusive(1)
    assert not thin.exclusive(100)


def test_the_last_owner_after_the_other_wrote(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 4)
    pool.create_snap(1, 0)
    commit(pool)
    write(pool, 1, 0, 4)
    assert not pool.open_thin(0).exclusive(0)
    commit(pool)
    assert pool.open_thin(0).exclusive(0)
    assert pool.open_thin(1).exclusive(0)


def test_a_metadata_snapshot_shares_everything(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 4)
    commit(pool)
    pool.reserve_metadata_snap()
    assert not pool.open_thin(0).exclusive(0)
    commit(pool)
    pool.release_metadata_snap()
    assert not pool.open_thin(0).exclusive(0)
    commit(pool)
    assert pool.open_thin(0).exclusive(0)


def test_transaction_id(pool: PoolMetadata) -> None:
    assert "is 0, not 1" in fails(errno.EINVAL, pool.set_transaction_id, 1, 2)
    pool.set_transaction_id(0, (1 << 64) - 1)
    fails(errno.EINVAL, pool.set_transaction_id, (1 << 64) - 1, 1 << 64)
    commit(pool)
    assert PoolMetadata.open(pool.storage, 128).transaction_id == (1 << 64) - 1


def test_metadata_snapshot(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 300)
    fails(errno.EINVAL, pool.release_metadata_snap)
    pool.reserve_metadata_snap()
    fails(errno.EBUSY, pool.reserve_metadata_snap)
    assert pool.held_root
    commit(pool)
    thin_check(pool.storage)
    pool.delete(0)
    pool.create_thin(4)
    commit(pool)
    thin_check(pool.storage)
    assert pool.free_data_blocks == 700
    again = PoolMetadata.open(pool.storage, 128)
    assert again.held_root == pool.held_root
    again.release_metadata_snap()
    commit(again)
    thin_check(again.storage)
    assert (again.held_root, again.free_data_blocks) == (0, 1000)


def test_a_metadata_snapshot_does_not_change(pool: PoolMetadata) -> None:
    pool.create_thin(0)
    write(pool, 0, 0, 300)
    thin = pool.open_thin(0)
    pool.reserve_metadata_snap()
    commit(pool)
    before = on_file("thin_dump", pool.storage, "--metadata-snap").stdout
    assert 'length="300"' in before
    write(pool, 0, 100, 50)
    commit(pool)
    thin_check(pool.storage)
    thin.remove(0, 20)
    pool.create_snap(1, 0)
    commit(pool)
    thin_check(pool.storage)
    assert on_file("thin_dump", pool.storage, "--metadata-snap").stdout == before
    assert pool.free_data_blocks == 650


def test_needs_check(pool: PoolMetadata) -> None:
    assert not pool.needs_check
    pool.set_needs_check()
    commit(pool)
    assert PoolMetadata.open(pool.storage, 128).needs_check


def test_the_clock_has_an_end(pool: PoolMetadata) -> None:
    """The mapping has 24 bits for the time; one more would become part of the block."""
    pool.create_thin(0)
    pool.superblock.time = MAX_TIME
    fails(errno.EINVAL, pool.create_snap, 1, 0)
    write(pool, 0, 0)
    assert pool.open_thin(0).lookup(0) == (0, False)


def test_resize_data(pool: PoolMetadata) -> None:
    assert "allowed are 1000" in fails(errno.EINVAL, pool.resize_data, 999)
    fails(errno.EINVAL, pool.resize_data, (1 << 40) + 1)
    pool.create_thin(0)
    write(pool, 0, 0, 1000)
    for blocks in (1001, 16320, 16321, 50_000):
        pool.resize_data(blocks)
        write(pool, 0, pool.open_thin(0).mapped_blocks, pool.free_data_blocks)
        commit(pool)
        thin_check(pool.storage)
    assert pool.open_thin(0).lookup_runs(0, 1 << 30) == [Run(0, 0, 50_000, False)]


def test_resize_metadata() -> None:
    storage = MemoryStorage(128 * MIB)
    small = MemoryStorage(MIB)
    pool = new_pool(storage=small)
    pool.create_thin(0)
    write(pool, 0, 0, 1000)
    commit(pool)
    fails(errno.EINVAL, pool.resize_metadata, 255)
    assert "allowed are 256 to 256" in fails(errno.EINVAL, pool.resize_metadata, 257)
    view = bytearray(MIB)
    small.read(0, memoryview(view))
    storage.write(0, view)
    pool = PoolMetadata.open(storage, 128)
    free = pool.space.nr_free
    pool.resize_metadata(20_000)
    assert pool.space.nr_free == free + 20_000 - 256 - 1
    commit(pool)
    thin_check(storage)
    pool.resize_metadata(32_768)
    commit(pool)
    thin_check(storage)
    assert PoolMetadata.open(storage, 128).nr_metadata_blocks == 32_768


def test_status_counts_as_the_kernel_does(pool: PoolMetadata) -> None:
    """A tenth of the metadata, 16 MiB at most, is never shown as free."""
    assert pool.free_metadata_blocks == pool.space.nr_free - 51
    assert pool.nr_metadata_blocks == 512


def test_a_snapshot_costs_the_same_however_much_is_mapped() -> None:
    pool = new_pool(metadata=16 * MIB, data_blocks=200_000)
    pool.create_thin(0)
    pool.create_thin(1)
    write(pool, 0, 0, 160_000)
    commit(pool)
    used = pool.space.nr_used
    pool.create_snap(2, 1)
    empty = pool.space.nr_used - used
    pool.create_snap(3, 0)
    assert pool.space.nr_used - used == empty
    assert len(pool.tx.blocks.dirty) < 10
