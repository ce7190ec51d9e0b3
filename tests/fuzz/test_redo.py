"""The redo log's reader on bent memory: refused with a text, or a pool that thin_check accepts after its commit."""

from __future__ import annotations

import errno
import os
import random
import struct

import pytest
from crc32c import crc32c

from fuzz.images import damaged, image
from fuzz.test_metadata import CHANGING, storage_of
from support import budget
from support.kept import MemoryKeep
from support.thin import commit, dumped, thin_check
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata
from userdm.thin.redo import FORMAT, LIMIT, RECORD, Kind, digest
from userdm.thin.replay import open_metadata

NUMBERS = (0, 1, 2, 5, 9, 40, 100, 999, 1023, 1024, 16384, 17_000, 1 << 24, 1 << 32, (1 << 64) - 1)


def packed(kind: int, sequence: int, *words: int) -> bytes:
    body = struct.pack("<IQ4Q", kind, sequence, *words, *(4 - len(words)) * [0])
    return struct.pack("<I", crc32c(body)) + body


def words(rng: random.Random, kind: int, pool: PoolMetadata) -> list[int]:
    """Nearly right ones."""

    def number() -> int:
        return rng.choice(NUMBERS) if rng.random() < 0.1 else rng.randrange(300)

    def device() -> int:
        return rng.choice((0, 1, 2, 3, 7, 9)) if rng.random() < 0.95 else rng.choice(NUMBERS)

    if kind == Kind.MAP:
        length = rng.choice((1, 1, 2, 30, number()))
        return [device(), number(), rng.randrange(pool.nr_data_blocks) if rng.random() < 0.9 else number(), length]
    if kind == Kind.TRANSACTION_ID:
        return [pool.transaction_id if rng.random() < 0.9 else number(), pool.transaction_id]
    if kind == Kind.RESIZE_DATA:
        return [pool.nr_data_blocks + rng.choice((0, 1, 20_000)) if rng.random() < 0.9 else number()]
    if kind == Kind.RESIZE_METADATA:
        return [rng.choice((pool.nr_metadata_blocks, number()))]
    first = number()
    return [device(), device() if kind == Kind.CREATE_SNAP else first, (first + number()) % (1 << 64)]


def segments(rng: random.Random, storage: MemoryStorage) -> tuple[bytes, bytes]:
    superblock = bytearray(4096)
    storage.read(0, memoryview(superblock))
    pool = PoolMetadata.open(storage, None, readonly=True)
    sequence = rng.choice((1, 1, 100, (1 << 64) - 5))
    halves = []
    for half in range(2):
        mark = digest(superblock) if half == 0 or rng.random() < 0.1 else [rng.getrandbits(64) for _ in range(4)]
        records = [packed(Kind.MARK, sequence % (1 << 64), *mark)]
        for _ in range(rng.choice((0, 1, 5, 60))):
            sequence += 1 if rng.random() < 0.99 else rng.randrange(3)
            kind = rng.choice((*Kind, Kind.MAP, Kind.MAP, Kind.MAP, Kind.UNMAP, Kind.CREATE_THIN, Kind.CREATE_SNAP))
            if kind in (Kind.MARK, Kind.FAILED) and rng.random() < 0.9:
                kind = Kind.MAP
            number = int(kind) if rng.random() < 0.99 else rng.randrange(20)
            records.append(packed(number, sequence % (1 << 64), *words(rng, kind, pool)))
        sequence += 1
        raw = bytearray(b"".join(records))
        if rng.random() < 0.2:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        halves.append(bytes(raw))
    rng.shuffle(halves)
    return halves[0], halves[1]


def kept(*contents: bytes, note: str = FORMAT) -> MemoryKeep:
    keep, fds = MemoryKeep(), []
    for content in contents:
        fds.append(os.memfd_create("bent", os.MFD_CLOEXEC))
        os.truncate(fds[-1], -(-max(len(content), 1) // 65536) * 65536)
        os.pwrite(fds[-1], content, 0)
    keep.put("log", fds, note)
    for fd in fds:
        os.close(fd)
    return keep


def replayed(storage: MemoryStorage, keep: MemoryKeep) -> PoolMetadata | OSError:
    before = len(os.listdir("/proc/self/fd"))
    try:
        pool = open_metadata(storage, 128, keep, "log")
        assert pool.redo is not None
        pool.redo.close()
        pool.redo = None
    except OSError as error:
        assert error.errno in CHANGING and error.strerror, error
        return error
    finally:
        assert keep.kept, "what was kept stays until another log takes its place"
        assert len(os.listdir("/proc/self/fd")) <= before + 1, "one kept descriptor may have become two"
        keep.close()
    return pool


def test_bent_logs_of_whole_pools() -> None:
    outcomes = {True: 0, False: 0}

    def example(rng: random.Random) -> None:
        storage = storage_of(image(rng.choice(("external", "held", "sharers", "tall"))))
        before = dumped(PoolMetadata.open(storage, None, readonly=True))
        pool = replayed(storage, kept(*segments(rng, storage)))
        outcomes[isinstance(pool, OSError)] += 1
        # whatever came of it, nothing was written
        assert dumped(PoolMetadata.open(storage, None, readonly=True)) == before
        if isinstance(pool, PoolMetadata) and pool.failed is None:
            commit(pool)
            thin_check(storage)
            assert dumped(PoolMetadata.open(storage, None, readonly=True)) == dumped(pool)

    budget.run(60, example)
    assert budget.one_seed() or all(outcomes.values()), outcomes


def test_bent_logs_of_damaged_pools() -> None:
    def example(rng: random.Random) -> None:
        damage = damaged(rng)
        try:
            logs = segments(rng, storage_of(damage.content))
        except OSError:
            return
        pool = replayed(storage_of(damage.content), kept(*logs))
        if isinstance(pool, PoolMetadata):
            try:
                commit(pool)
            except OSError as error:
                assert error.errno in CHANGING, error

    budget.run(60, example)


@pytest.mark.parametrize("what", ["none", "huge", "pipe", "note", "noise", "short"])
def test_what_is_no_log(what: str) -> None:
    storage = storage_of(image("sharers"))
    keep = kept(b"")
    if what == "huge":
        fd = os.memfd_create("huge")
        os.truncate(fd, LIMIT + RECORD)
        keep.put("log", [fd], FORMAT)
        os.close(fd)
    elif what == "pipe":
        ends = os.pipe()
        keep.put("log", ends, FORMAT)
        for end in ends:
            os.close(end)
    elif what == "note":
        keep = kept(b"", note="x" * 10_000)
    elif what == "noise":
        keep = kept(random.Random(0).randbytes(100_000), random.Random(1).randbytes(100_000))
    elif what == "short":
        keep = kept(packed(Kind.MARK, 1, 0, 0, 0, 0)[: RECORD - 1])
    with budget.bounded(what):
        error = replayed(storage, keep)
    assert isinstance(error, OSError) and error.errno == errno.EIO
