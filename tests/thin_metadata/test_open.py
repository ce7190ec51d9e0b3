"""What is opened, what is formatted, and what is refused untouched."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from support.thin import MIB, commit, content, dumped, new_pool, thin_check, thin_dump, write
from userdm.pdata.block import BLOCK_SIZE, SUPERBLOCK_SALT, seal
from userdm.pdata.metadata_map import MAX_BLOCKS
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata
from userdm.thin.superblock import Superblock


def made() -> MemoryStorage:
    """A pool with a device and its snapshot."""
    pool = new_pool()
    pool.create_thin(7)
    write(pool, 7, 3, 20)
    pool.create_snap(9, 7)
    commit(pool)
    storage = pool.storage
    assert isinstance(storage, MemoryStorage)
    return storage


def changed(change: Callable[[bytearray], None], *, sealed: bool = True) -> MemoryStorage:
    storage = made()
    block = bytearray(content(storage)[:BLOCK_SIZE])
    change(block)
    if sealed:
        seal(block, struct.unpack_from("<Q", block, 8)[0], SUPERBLOCK_SALT)
    storage.write(0, block)
    return storage


def put(at: int, layout: str, value: int) -> Callable[[bytearray], None]:
    return lambda block: struct.pack_into(layout, block, at, value)


def tear(block: bytearray) -> None:
    """Half of the first sector is older: it should not happen, and must be seen."""
    block[100:256] = bytes(156)


def overwrite(block: bytearray) -> None:
    block[:] = b"x" * BLOCK_SIZE


REFUSED = [
    ("not thin metadata", lambda: changed(put(32, "<Q", 1)), errno.EILSEQ),
    ("not thin metadata", lambda: changed(overwrite, sealed=False), errno.ENOTBLK),
    ("says that it is block 3, expected 0", lambda: changed(put(8, "<Q", 3)), errno.ENOTBLK),
    ("torn or damaged", lambda: changed(tear, sealed=False), errno.EILSEQ),
    ("torn or damaged", lambda: changed(put(4095, "<B", 1), sealed=False), errno.EILSEQ),
    ("made with 256", lambda: changed(put(336, "<I", 256)), errno.EINVAL),
    ("version is 3, allowed are 1 to 2", lambda: changed(put(40, "<I", 3)), errno.EINVAL),
    ("metadata block size is 16 sectors, allowed is 8", lambda: changed(put(340, "<I", 16)), errno.EINVAL),
    ("unsupported incompatible features 0x4", lambda: changed(put(360, "<I", 4)), errno.EINVAL),
    ("features 0x2 allow reading only", lambda: changed(put(356, "<I", 2)), errno.EINVAL),
    ("has 512 blocks, too few: expected 513", lambda: changed(put(192, "<Q", 513)), errno.EINVAL),
    ("513 in use", lambda: changed(put(200, "<Q", 513)), errno.EILSEQ),
    ("data space map has 2199023255552 blocks", lambda: changed(put(64, "<Q", 1 << 41)), errno.EILSEQ),
]  # fmt: skip


@pytest.mark.parametrize(("says", "make", "number"), REFUSED, ids=[says for says, _, _ in REFUSED])
def test_refused_untouched(says: str, make: Callable[[], MemoryStorage], number: int) -> None:
    storage = make()
    before = content(storage)
    with pytest.raises(OSError, match=says) as error:
        PoolMetadata.open(storage, 128)
    assert error.value.errno == number
    assert content(storage) == before


def test_the_offsets_of_this_file_are_the_superblocks() -> None:
    block = content(made())[:BLOCK_SIZE]
    assert struct.unpack_from("<Q", block, 32)[0] == 27022010
    assert struct.unpack_from("<I", block, 40)[0] == 2
    assert struct.unpack_from("<Q", block, 64)[0] == 1000
    assert struct.unpack_from("<Q", block, 192)[0] == 512
    assert struct.unpack_from("<II", block, 336) == (128, 8)
    assert Superblock.unpack(block).pack() == block


def test_read_only_features_may_be_read() -> None:
    pool = PoolMetadata.open(changed(put(356, "<I", 2)), 128, readonly=True)
    assert [dev for dev, _ in pool.devices()] == [7, 9]


def test_what_other_programs_put_there_stays() -> None:
    """uuid and compatible features; the version too."""

    def change(block: bytearray) -> None:
        block[16:32] = b"0123456789abcdef"
        struct.pack_into("<I", block, 352, 0x80)
        struct.pack_into("<I", block, 40, 1)

    storage = changed(change)
    pool = PoolMetadata.open(storage, 128)
    pool.create_thin(1)
    commit(pool)
    block = content(storage)
    assert block[16:32] == b"0123456789abcdef"
    assert struct.unpack_from("<I", block, 352)[0] == 0x80
    assert struct.unpack_from("<I", block, 40)[0] == 1


def test_zeros_are_formatted() -> None:
    storage = MemoryStorage(MIB)
    pool = PoolMetadata.open(storage, 1024)
    assert (pool.data_block_sectors, pool.nr_metadata_blocks, pool.nr_data_blocks) == (1024, 256, 0)
    thin_check(storage)
    assert thin_dump(storage) == dumped(pool) == dumped(PoolMetadata.open(storage, None, readonly=True))


@pytest.mark.parametrize("options", [{"may_format": False}, {"readonly": True}])
def test_zeros_that_may_not_be_formatted(options: dict[str, bool]) -> None:
    storage = MemoryStorage(MIB)
    with pytest.raises(OSError, match="not formatted") as error:
        PoolMetadata.open(storage, 128, **options)
    assert error.value.errno == errno.EPERM
    assert not any(content(storage))


def test_only_an_all_zero_block_is_unformatted() -> None:
    storage = MemoryStorage(MIB)
    storage.write(4095, b"\1")
    with pytest.raises(OSError, match="not thin metadata"):
        PoolMetadata.open(storage, 128)


@pytest.mark.parametrize("sectors", [0, 64, 129, 2097280])
def test_data_block_sizes_that_are_not_allowed(sectors: int) -> None:
    storage = MemoryStorage(MIB)
    with pytest.raises(OSError, match=f"data block size is {sectors} sectors, allowed are") as error:
        PoolMetadata.open(storage, sectors)
    assert error.value.errno == errno.EINVAL
    assert not any(content(storage))


@pytest.mark.parametrize(("size", "number"), [(0, errno.EINVAL), (4095, errno.EINVAL), (7 * 4096, errno.ENOSPC)])
def test_a_device_too_small(size: int, number: int) -> None:
    with pytest.raises(OSError) as error:
        PoolMetadata.open(MemoryStorage(size), 128)
    assert error.value.errno == number


class Huge(MemoryStorage):
    """A sparse terabyte, of which only the beginning is there."""

    @property
    def size(self) -> int:
        return 1 << 40


def test_a_terabyte_is_used_up_to_the_limit() -> None:
    storage = Huge(4 * MIB)
    pool = PoolMetadata.open(storage, 128)
    assert pool.nr_metadata_blocks == MAX_BLOCKS
    assert pool.superblock.metadata_nr_blocks == MAX_BLOCKS
    assert pool.free_metadata_blocks > MAX_BLOCKS - 4096 - 300
    pool.resize_metadata(storage.size // BLOCK_SIZE)
    assert pool.seal() is None
    assert PoolMetadata.open(storage, 128).nr_metadata_blocks == MAX_BLOCKS


def test_nothing_is_written_by_a_reader() -> None:
    storage = made()
    storage.readonly = True
    pool = PoolMetadata.open(storage, None, readonly=True)
    assert pool.open_thin(9).lookup(3) == (0, True)
    for change in (
        lambda: pool.create_thin(1),
        lambda: pool.create_snap(1, 7),
        lambda: pool.delete(7),
        lambda: pool.reserve_data(1),
        lambda: pool.resize_data(2000),
        lambda: pool.open_thin(7).remove(0, 10),
        lambda: pool.set_transaction_id(0, 1),
        pool.reserve_metadata_snap,
        pool.seal,
    ):
        with pytest.raises(OSError) as error:
            change()
        assert error.value.errno == errno.EROFS
