"""Storage that gives errors, metadata that is damaged: an OSError that says where, and never a wrong answer written."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable

import pytest

from support.faulty import FailingStorage, Fault
from support.thin import commit, content, dumped, new_pool, thin_check, write
from userdm.pdata.bitmap import Bitmap
from userdm.pdata.block import BITMAP_SALT, BLOCK_SIZE, INDEX_SALT, NODE_SALT, SUPERBLOCK_SALT, checksum, seal
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata


def filled(storage: MemoryStorage | None = None) -> MemoryStorage:
    """A pool with a bit of everything."""
    pool = new_pool(storage=storage or MemoryStorage(1 << 20), data_blocks=3000)
    pool.create_thin(0)
    write(pool, 0, 0, 1200)
    for dev in range(1, 6):
        pool.create_snap(dev, 0)
        write(pool, dev, dev * 100, 5)
    pool.reserve_metadata_snap()
    write(pool, 0, 50)
    commit(pool)
    assert isinstance(pool.storage, MemoryStorage)
    return pool.storage


def read_all(pool: PoolMetadata) -> None:
    dumped(pool)
    for dev, _ in list(pool.devices()):
        thin = pool.open_thin(dev)
        thin.lookup_runs(0, 1 << 64)
        thin.exclusive(7)
        thin.highest_mapped()


def change_all(pool: PoolMetadata) -> None:
    """Something of each kind, on every device."""
    pool.create_thin(100)
    write(pool, 100, 0, 10)
    for dev, _ in list(pool.devices()):
        write(pool, dev, 1100, 3)
        pool.open_thin(dev).remove(10, 400)
        pool.create_snap(dev + 200, dev)
    pool.release_metadata_snap()
    for dev in (0, 1, 2):
        pool.delete(dev)
    commit(pool)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kind", ["write", "flush"])
@pytest.mark.parametrize("skip", range(3))
def test_an_error_in_a_commit(number: int, kind: str, skip: int) -> None:
    """Nothing can be changed any more; reads go on; the last commit is on disk."""
    storage = FailingStorage(filled())
    pool = PoolMetadata.open(storage, 128)
    before = dumped(pool)
    write(pool, 0, 2000, 5)
    sealed = pool.seal()
    assert sealed is not None
    write(pool, 0, 2100, 5)
    after = dumped(pool)
    storage.faults.append(Fault(number, kinds=frozenset({kind}), skip=skip))
    with pytest.raises(OSError, match="injected") as error:
        for _ in range(2):
            sealed.write(storage, lambda: None)
    assert error.value.errno == number
    assert pool.finish(sealed, False) == []
    assert pool.failed is not None
    for change in (lambda: write(pool, 0, 5), lambda: pool.create_thin(99), pool.seal):
        with pytest.raises(OSError, match="after an error") as error:
            change()
        assert error.value.errno == errno.EIO
    assert dumped(pool) == after
    read_all(pool)
    thin_check(storage.inner)
    again = dumped(PoolMetadata.open(storage.inner, 128))
    assert again == before or again != after


def test_a_read_error_is_passed_on() -> None:
    storage = FailingStorage(filled())
    storage.faults.append(Fault(errno.EIO, begin=BLOCK_SIZE, kinds=frozenset({"read"})))
    pool = PoolMetadata.open(storage, 128)
    with pytest.raises(OSError, match="injected: read of bytes"):
        dumped(pool)
    assert pool.failed is None
    storage.faults.clear()
    dumped(pool)
    write(pool, 0, 5000)
    commit(pool)
    thin_check(storage.inner)


@pytest.mark.parametrize("skip", range(0, 12, 3))
def test_a_read_error_in_a_change_spoils_nothing_on_disk(skip: int) -> None:
    storage = FailingStorage(filled())
    pool = PoolMetadata.open(storage, 128)
    thins = [pool.open_thin(dev) for dev in range(6)]
    before = content(storage.inner)
    storage.faults.append(Fault(errno.EIO, kinds=frozenset({"read"}), skip=skip))
    with pytest.raises(OSError, match="injected|after an error"):
        for thin in thins:
            thin.remove(0, 1000)
            pool.delete(thin.dev_id)
    storage.faults.clear()
    if pool.failed is None:
        commit(pool)
    else:
        assert content(storage.inner) == before
    thin_check(storage.inner)


SALTS = {NODE_SALT, BITMAP_SALT, INDEX_SALT, SUPERBLOCK_SALT}


def salt_of(block: bytes) -> int | None:
    """What kind of block this is, by its checksum."""
    stored = struct.unpack_from("<I", block)[0]
    return next((salt for salt in SALTS if checksum(block, salt) == stored), None)


def survives(storage: MemoryStorage) -> None:
    """Whatever is on disk: opening, reading and changing end in success or an OSError, soon."""
    try:
        pool = PoolMetadata.open(storage, 128)
        read_all(pool)
        change_all(pool)
    except OSError as error:
        assert error.errno in (errno.EILSEQ, errno.ENOTBLK, errno.EINVAL, errno.ENODATA, errno.ENOSPC), error
        assert error.strerror


def test_every_damaged_block_is_seen() -> None:
    """A flipped bit anywhere in a block that is used is an error that names the block, when it is read."""
    storage = filled()
    clean = content(storage)
    rng = random.Random(4)
    for blocknr in range(len(clean) // BLOCK_SIZE):
        block = clean[blocknr * BLOCK_SIZE : (blocknr + 1) * BLOCK_SIZE]
        if salt_of(block) != NODE_SALT:
            continue
        damaged = bytearray(block)
        damaged[rng.randrange(BLOCK_SIZE)] ^= 1 << rng.randrange(8)
        storage.write(blocknr * BLOCK_SIZE, damaged)
        pool = PoolMetadata.open(storage, 128)
        try:
            read_all(pool)
            change_all(pool)
        except OSError as error:
            assert f"block {blocknr}:" in str(error)
            assert error.errno in (errno.EILSEQ, errno.ENOTBLK)
        storage.write(0, clean)


def enemy(block: bytearray, rng: random.Random) -> None:
    """Change a few words to what an enemy would try."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.choice((rng.randrange(4, 64), rng.randrange(4, 400), rng.randrange(4, BLOCK_SIZE - 8))) & ~3
        value = rng.choice(
            (0, 1, 2, 3, 252, 253, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(300), rng.randrange(2**64))
        )
        if value >= 2**32:
            struct.pack_into("<Q", block, at, value)
        else:
            struct.pack_into("<I", block, at, value)


@pytest.mark.parametrize("seed", range(6))
def test_an_enemys_metadata(seed: int) -> None:
    """Words changed under a good checksum: an error or no harm done; no exception but OSError."""
    clean = content(filled())
    rng = random.Random(seed)
    used = [
        (blocknr, salt)
        for blocknr in range(len(clean) // BLOCK_SIZE)
        if (salt := salt_of(clean[blocknr * BLOCK_SIZE : (blocknr + 1) * BLOCK_SIZE])) is not None
    ]
    assert {salt for _, salt in used} == SALTS
    for _ in range(150):
        storage = MemoryStorage(len(clean))
        storage.write(0, clean)
        for blocknr, salt in {rng.choice(used), rng.choice((used[0], rng.choice(used)))}:
            block = bytearray(clean[blocknr * BLOCK_SIZE : (blocknr + 1) * BLOCK_SIZE])
            enemy(block, rng)
            seal(block, blocknr, salt)
            storage.write(blocknr * BLOCK_SIZE, block)
        survives(storage)


def sealed_superblock(storage: MemoryStorage, at: int, layout: str, value: int) -> None:
    block = bytearray(content(storage)[:BLOCK_SIZE])
    struct.pack_into(layout, block, at, value)
    seal(block, 0, SUPERBLOCK_SALT)
    storage.write(0, block)


@pytest.mark.parametrize(
    ("at", "layout", "value", "says"),
    [
        (72, "<Q", 0, "with this bitmap -"),
        (200, "<Q", 0, "with this bitmap -"),
        (44, "<I", 1 << 24, "time is 16777216, but mappings have room for 16777215"),
        (320, "<Q", 0, "block 0 is referred to"),
        (328, "<Q", 1 << 40, "is referred to, but blocks are 1 to 255"),
        (48 + 8, "<Q", 200, "metadata block 200"),
    ],
)
def test_numbers_in_the_superblock_that_cannot_be(at: int, layout: str, value: int, says: str) -> None:
    storage = filled()
    sealed_superblock(storage, at, layout, value)
    with pytest.raises(OSError, match=says) as error:
        pool = PoolMetadata.open(storage, 128)
        pool.release_metadata_snap()
        for dev in range(6):
            pool.delete(dev)
        commit(pool)
    assert error.value.errno in (errno.EILSEQ, errno.ENOTBLK)


def test_a_wrong_number_of_mapped_blocks() -> None:
    pool = PoolMetadata.open(filled(), 128)
    pool.open_thin(1).details.mapped_blocks = 10
    with pytest.raises(OSError, match="said to have 10 mapped blocks, which cannot change by -1200") as error:
        pool.open_thin(1).remove(0, 2000)
    assert error.value.errno == errno.EILSEQ
    assert pool.failed is not None


def test_a_data_block_out_of_range_is_never_handed_out() -> None:
    storage = filled()
    pool = PoolMetadata.open(storage, 128)
    thin = pool.open_thin(3)
    found = pool.trees.bottom.find(thin.root, 20)
    assert found is not None
    leaf, at = found
    leaf.values[at] = 3000 << 24
    for look in (lambda: thin.lookup(20), lambda: thin.lookup_runs(0, 100)):
        with pytest.raises(OSError, match="data blocks 3000\\+1, expected blocks below 3000") as error:
            look()
        assert error.value.errno == errno.EILSEQ


def test_a_count_of_zero_under_a_mapping() -> None:
    storage = filled()
    pool = PoolMetadata.open(storage, 128)
    page = pool.data.counts.bitmap(0)
    assert isinstance(page, Bitmap)
    page.set(20, 0)
    thin: Callable[[], object] = lambda: pool.open_thin(3).remove(20, 21)  # noqa: E731
    with pytest.raises(OSError, match="count of block 20 is 0|expected") as error:
        for _ in range(10):
            thin()
            pool.delete(0)
    assert error.value.errno in (errno.EILSEQ, errno.EIO)
    assert pool.failed is not None
