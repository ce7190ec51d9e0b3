"""Pools on damaged metadata, used as a program uses them: a volume's bytes are where the trees say, or an error."""

from __future__ import annotations

import errno
import random
import threading

import pytest

from fuzz.images import damaged
from fuzz.reference import Broken, Image
from fuzz.test_metadata import storage_of
from support import budget
from support.thin import commit, content, new_pool
from userdm.api.pool import Pool, Thin
from userdm.pdata.block import NODE_SALT, seal
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata

DATA_BLOCKS = 17_000
BLOCK = 64 << 10
SIZE = 32 * BLOCK
"""Bytes of a volume of which the first are read."""
KERNELS = {
    errno.EILSEQ, errno.ENOTBLK, errno.EINVAL, errno.EPERM, errno.EIO, errno.ENOSPC, errno.ENODATA, errno.EEXIST,
    errno.EBUSY, errno.EOPNOTSUPP, errno.ENODEV,
}  # fmt: skip


class Sparse(MemoryStorage):
    """A large device that remembers what was written; everywhere else, each 512 bytes say which they are."""

    def __init__(self, size: int) -> None:
        super().__init__(0)
        self._size = size
        self._sectors: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, view: memoryview) -> None:
        assert offset % 512 == 0 and len(view) % 512 == 0
        assert 0 <= offset <= offset + len(view) <= self._size, "a read past the end of the device"
        for at in range(0, len(view), 512):
            sector = (offset + at) // 512
            view[at : at + 512] = self._sectors.get(sector) or sector.to_bytes(8, "little") * 64

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        assert offset % 512 == 0 and len(view) % 512 == 0
        assert 0 <= offset <= offset + len(view) <= self._size, "a write past the end of the device"
        for at in range(0, len(view), 512):
            self._sectors[(offset + at) // 512] = bytes(view[at : at + 512])

    def discard(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self._size, "a discard past the end of the device"

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))


def expected(image: Image, dev_id: int) -> bytes | None:
    """What the volume's first blocks are by the trees; None where those cannot be read."""
    try:
        roots = dict(image.entries(image.roots[0]))
        mapped = {
            key: int.from_bytes(raw, "little") >> 24
            for key, raw in image.entries(int.from_bytes(roots[dev_id], "little"), SIZE // BLOCK)
        }
    except (Broken, KeyError):
        return None
    blocks = []
    for vblock in range(SIZE // BLOCK):
        first = mapped.get(vblock)
        if first is None:
            blocks.append(bytes(BLOCK))
        else:
            blocks.append(b"".join((first * 128 + sector).to_bytes(8, "little") * 64 for sector in range(128)))
    return b"".join(blocks)


def devices(image: Image) -> list[int]:
    try:
        return [dev for dev, _ in image.entries(image.roots[1])][:6]
    except Broken:
        return [0, 1, 2]


def use(pool: Pool, thin: Thin, image: Image, rng: random.Random) -> None:
    with thin.open() as file:
        try:
            found = file.read(SIZE)
        except OSError as error:
            assert error.errno in KERNELS, error
        else:
            assert found == expected(image, thin.dev_id)
        try:
            file.seek(rng.randrange(40) * 4096)
            mark = rng.randbytes(4096)
            file.write(mark)
            file.seek(-4096, 1)
            assert file.read(4096) == mark
            file.discard(rng.randrange(10) * BLOCK, 3 * BLOCK)
            file.flush()
        except OSError as error:
            assert error.errno in KERNELS, error
    thin.status()


def attempt(act: object) -> None:
    try:
        act()  # type: ignore[operator]
    except OSError as error:
        assert error.errno in KERNELS and error.strerror, error


def one_pool(rng: random.Random) -> None:
    damage = damaged(rng)
    image = Image(bytes(damage.content))
    try:
        pool = Pool(storage_of(damage.content), Sparse(DATA_BLOCKS * BLOCK))
    except OSError as error:
        assert error.errno in KERNELS and error.strerror, error
        return
    try:
        pool.status()
        for dev_id in devices(image):
            if 0 <= dev_id < 1 << 24:
                try:
                    thin = pool.open_thin(dev_id, SIZE)
                except OSError as error:
                    assert error.errno in KERNELS and error.strerror, error
                    continue
                attempt(lambda thin=thin: use(pool, thin, image, rng))
                break  # what is changed now changes what others read, where a space map lies
        for text in ("create_thin 77", "create_snap 78 0", "delete 2", "reserve_metadata_snap", "release_metadata_snap",
                     "set_transaction_id 0 1", "delete 77"):  # fmt: skip
            attempt(lambda text=text: pool.message(text))
        pool.status()
    finally:
        attempt(pool.close)


def test_volumes_of_damaged_pools() -> None:
    before = threading.active_count()
    budget.run(80, one_pool)
    assert threading.active_count() == before


def test_a_device_that_has_more_blocks_than_there_are() -> None:
    """A mapping that fails half way is told as what it is, and as EIO; it was EINVAL, about blocks not reserved."""
    made = new_pool(data_blocks=100)
    made.create_thin(0)
    commit(made)
    raw = bytearray(content(made.storage))
    details = Image(raw).roots[1]
    at = Image(raw).node(details)[4]
    raw[at : at + 8] = bytes(8 * [0xFF])
    block = raw[details * 4096 : (details + 1) * 4096]
    seal(block, details, NODE_SALT)
    raw[details * 4096 : (details + 1) * 4096] = block
    metadata = storage_of(raw)
    pool = Pool(metadata, Sparse(100 * BLOCK))
    thin = pool.open_thin(0, SIZE)
    file = thin.open()
    with pytest.raises(OSError, match="said to have 18446744073709551615 mapped blocks") as error:
        file.write(bytes(4096))
    assert error.value.errno == errno.EIO
    assert file.read(4096) == bytes(4096)
    with pytest.raises(OSError, match="an earlier change of the metadata failed"):
        file.close()
    assert " ro " in pool.status() and "needs_check" in pool.status()
    pool.close()
    assert PoolMetadata.open(metadata, None, readonly=True).needs_check
