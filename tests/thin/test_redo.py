"""The redo log itself: what is read of it, what is refused, and that it is bounded."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from contextlib import suppress

import pytest

from support.faulty import FailingStorage, Fault
from support.kept import KeptPool, World, contents, copied, memfd, put, read_all
from support.thin import content, thin_check
from userdm import Pool
from userdm.pdata.counts import Root
from userdm.storage import MemoryStorage
from userdm.thin import pool as engine
from userdm.thin import redo
from userdm.thin.modes import Mode
from userdm.thin.redo import FORMAT, RECORD, START, Kind, RedoLog, changes_since
from userdm.thin.superblock import NEEDS_CHECK, Superblock

BLOCK = 65536
VOLUME = 4 * BLOCK
METADATA = 1 << 20
LARGE = 30 * BLOCK


@pytest.fixture(autouse=True)
def rare_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits come when they are asked for, so that the log holds more than a moment's work."""
    monkeypatch.setattr(engine, "COMMIT_PERIOD", 3600.0)


def changes(log: RedoLog, superblock: bytes) -> list[tuple[int, ...]]:
    return [(record.kind, *record.words) for record in changes_since(superblock, log.fds)]


def test_what_follows_the_superblock_that_is_found() -> None:
    first, second, third = (bytes([n]) * 4096 for n in range(1, 4))
    log = RedoLog(first)
    log.append(Kind.MAP, 1, 2, 3, 4)
    assert changes(log, first) == [(Kind.MAP, 1, 2, 3, 4)]
    log.mark(second)
    assert changes(log, second) == []
    log.append(Kind.DELETE, 5)
    assert changes(log, second) == [(Kind.DELETE, 5, 0, 0, 0)]
    assert changes(log, first) == [(Kind.MAP, 1, 2, 3, 4), (Kind.DELETE, 5, 0, 0, 0)]
    log.mark(third)
    log.append(Kind.DELETE, 6)
    assert changes(log, second) == [(Kind.DELETE, 5, 0, 0, 0), (Kind.DELETE, 6, 0, 0, 0)]
    assert changes(log, third) == [(Kind.DELETE, 6, 0, 0, 0)]
    with pytest.raises(OSError, match="somebody else has changed it") as caught:
        changes(log, first)
    assert caught.value.errno == errno.EIO
    log.close()


def test_needs_check_set_by_itself_is_no_other_superblock() -> None:
    block = Superblock(128, 16, Root(0, 0, 0, 0), Root(0, 0, 0, 0), 1, 2)
    log = RedoLog(block.pack())
    block.flags |= NEEDS_CHECK
    assert changes(log, block.pack()) == []
    block.trans_id += 1
    with pytest.raises(OSError, match="somebody else"):
        changes(log, block.pack())
    log.close()


def test_it_grows_and_is_used_again() -> None:
    blocks = [bytes([n]) * 4096 for n in range(1, 8)]
    log = RedoLog(blocks[0])
    many = 5 * START // RECORD
    sizes = []
    for block in blocks[1:]:
        for number in range(many):
            log.make_room()
            log.append(Kind.MAP, 1, number, number, 1)
        log.mark(block)
        assert changes(log, block) == []
        sizes.append(sum(os.fstat(fd).st_size for fd in log.fds))
    assert len(changes(log, blocks[-2])) == many
    assert sizes[0] == 9 * START
    assert set(sizes[1:]) == {16 * START}
    log.close()


def test_a_log_that_cannot_grow_refuses_before_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redo, "LIMIT", START)
    world = World(MemoryStorage(METADATA), MemoryStorage(LARGE))
    with KeptPool(world) as pool:
        thin = pool.create_thin(0, VOLUME)
        with pytest.raises(OSError, match="redo log has") as caught:
            for number in range(START // RECORD):
                pool.engine.metadata.set_transaction_id(number, number + 1)
        assert caught.value.errno == errno.ENOMEM
        with pytest.raises(OSError, match="Input/output error"):
            put(thin, 0, b"x")
        pool.engine.commit()  # makes room
        put(thin, 0, b"y")
        assert pool.engine.mode is Mode.WRITE
    thin_check(world.metadata)


def damaged(log: RedoLog, segment: int, at: int, data: bytes) -> list[int]:
    """Copies of a log's segments, with some bytes put in place of others."""
    out = [bytearray(contents(fd)) for fd in log.fds]
    out[segment][at : at + len(data)] = data
    return [memfd(bytes(segment)) for segment in out]


def test_a_torn_record_is_the_end() -> None:
    """Killed in the middle of a store: any part of the record may be there, none of it counts."""
    superblock = bytes(4096)
    log = RedoLog(superblock)
    log.append(Kind.DELETE, 1)
    log.append(Kind.DELETE, 2)
    for cut in range(RECORD):
        fds = damaged(log, 0, 2 * RECORD + cut, bytes(RECORD - cut))
        whole = contents(fds[0]) == contents(log.fds[0])  # its last words are zeros
        assert [record.words[0] for record in changes_since(superblock, fds)] == ([1, 2] if whole else [1])
        for fd in fds:
            os.close(fd)
    log.close()


def test_a_torn_mark_leaves_the_other_segment() -> None:
    """The mark of a new segment overwrites the oldest one; until it is whole, the transaction goes on before it."""
    first, second, third = (bytes([n]) * 4096 for n in range(1, 4))
    log = RedoLog(first)
    log.mark(second)
    log.append(Kind.DELETE, 1)
    old = contents(log.fds[1])[:RECORD]
    log.mark(third)
    new = contents(log.fds[0])[:RECORD]
    for cut in range(RECORD):
        fds = damaged(log, 0, 0, new[:cut] + old[cut:])
        assert [record.words[0] for record in changes_since(second, fds)] == [1]
        for fd in fds:
            os.close(fd)
    log.close()


def test_anything_may_be_in_the_memory() -> None:
    """Noise, other sizes, records of our own in any order: a list of changes or EIO, never anything else."""
    rng = random.Random(5)
    superblock = bytes(4096)
    log = RedoLog(superblock)
    for number in range(20):
        log.append(Kind.MAP, 0, number, number, 1)
    log.mark(bytes([1]) * 4096)
    log.append(Kind.DELETE, 1)
    whole = [contents(fd)[: 30 * RECORD] for fd in log.fds]
    outcomes: set[object] = set()
    for _ in range(2000):
        parts = [bytearray(part) for part in rng.choice([whole, whole[::-1], whole[:1], [whole[0], whole[0]]])]
        for part in parts:
            for _ in range(rng.randrange(3)):
                at = rng.randrange(len(part))
                part[at : at + rng.randrange(60)] = rng.randbytes(rng.randrange(60))
        fds = [memfd(bytes(part)) for part in parts]
        try:
            outcomes.add(len(changes_since(superblock, fds)) > 20)
        except OSError as error:
            assert error.errno == errno.EIO
            outcomes.add("refused")
        finally:
            for fd in fds:
                os.close(fd)
    assert outcomes == {True, False, "refused"}
    read, write = os.pipe()
    with pytest.raises(OSError, match="redo log"):
        changes_since(superblock, [read])
    os.close(read)
    os.close(write)
    log.close()


# what a successor refuses, and what it keeps to


def left_behind(*work: str) -> World:
    """A world whose worker was killed after these messages and one write to thin 0."""
    world = World(MemoryStorage(METADATA), MemoryStorage(LARGE))
    pool = KeptPool(world)
    thin = pool.create_thin(0, VOLUME)
    for text in work:
        pool.message(text)
    put(thin, 0, b"x" * BLOCK)
    left = world.copy()
    pool.close()
    assert not world.keep.kept
    return left


def test_a_successor_that_fails_leaves_everything_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    world = left_behind()
    before = content(world.metadata), {key: kept.fds for key, kept in world.keep.kept.items()}

    def refuse(key: str, fds: Sequence[int], note: str = "") -> None:
        raise OSError(errno.EPIPE, "the keeper is gone")

    with monkeypatch.context() as patch:
        patch.setattr(world.keep, "put", refuse)
        with pytest.raises(OSError, match="the keeper is gone"):
            KeptPool(world)
    assert (content(world.metadata), {key: kept.fds for key, kept in world.keep.kept.items()}) == before
    with KeptPool(world) as pool:
        assert read_all(pool.open_thin(0, BLOCK)) == b"x" * BLOCK
    thin_check(world.metadata)


def test_somebody_else_changed_the_metadata() -> None:
    world = left_behind()
    with Pool(world.metadata, world.data) as other:
        other.create_thin(7, BLOCK)
    now = content(world.metadata)
    with pytest.raises(OSError, match="somebody else has changed it") as caught:
        KeptPool(world)
    assert caught.value.errno == errno.EIO
    assert content(world.metadata) == now
    world.keep.close()
    KeptPool(world).close()


def test_another_version_of_the_log() -> None:
    world = left_behind()
    kept = world.keep.kept["redo:240:0"]
    world.keep.put("redo:240:0", kept.fds, "userdm redo log 99")
    with pytest.raises(OSError, match="userdm redo log 99"):
        KeptPool(world)
    world.keep.close()


@pytest.mark.parametrize(
    "record",
    [
        (Kind.MAP, 0, 9, 0, 1),  # data block 0 has an owner
        (Kind.MAP, 0, 9, 1 << 30, 1),
        (Kind.MAP, 0, 9, 5, 1 << 60),
        (Kind.MAP, 0, (1 << 64) - 1, 5, 2),
        (Kind.MAP, 3, 0, 5, 1),  # no such device
        (Kind.UNMAP, 3, 0, 5),
        (Kind.CREATE_THIN, 0),
        (Kind.CREATE_SNAP, 1, 3),
        (Kind.DELETE, 3),
        (Kind.TRANSACTION_ID, 5, 6),
        (Kind.RELEASE,),
        (Kind.RESIZE_DATA, 1),
        (Kind.RESIZE_METADATA, 1 << 40),
        (99,),
    ],
    ids=str,
)
def test_a_change_that_cannot_be_made_again(record: tuple[int, ...]) -> None:
    """A block that is not free, above all, is never taken: EIO, which names the record, and nothing is written."""
    world = left_behind()
    superblock = content(world.metadata)[:4096]
    log = RedoLog(superblock)
    log.append(Kind.MAP, 0, 0, 0, 1)
    log._put(*record, *[0] * (5 - len(record)))
    world.keep.put("redo:240:0", log.fds, FORMAT)
    log.close()
    now = content(world.metadata)
    with pytest.raises(OSError, match="redo log: record 3") as caught:
        KeptPool(world)
    assert caught.value.errno == errno.EIO
    assert content(world.metadata) == now
    world.keep.close()


def test_a_failed_commit_stays_failed() -> None:
    """What a failed flush was to make durable may be lost: the successor must not promise it by its own flushes."""
    world = World(FailingStorage(MemoryStorage(METADATA)), MemoryStorage(LARGE))  # type: ignore[arg-type]
    pool = KeptPool(world)
    thin = pool.create_thin(0, VOLUME)
    put(thin, 0, b"x" * BLOCK)
    world.metadata.faults.append(Fault(errno.EIO, kinds=frozenset({"flush"})))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="injected"):
        pool.engine.commit()
    left = World(copied(world.metadata.inner), copied(world.data), world.keep.copy())  # type: ignore[attr-defined]
    for _ in range(2):  # and the one after that
        with KeptPool(left) as successor:
            assert successor.status().split()[4] == "ro"
            thin = successor.open_thin(0, VOLUME)
            assert read_all(thin)[:BLOCK] == b"x" * BLOCK
            with pytest.raises(OSError, match="Input/output error"):
                put(thin, BLOCK, b"y")
            with pytest.raises(OSError, match="failed"):
                successor.engine.flush()
            left = left.copy()
    thin_check(left.metadata)
    left.keep.close()
    with suppress(OSError):
        pool.close()
    assert not world.keep.kept


def test_without_a_keeper_there_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redo, "Segment", None)
    with Pool(MemoryStorage(METADATA), MemoryStorage(LARGE)) as pool, pool.create_thin(0, VOLUME).open() as file:
        file.write(b"x")
        assert pool.device.mapper.keep.lasting is False


def test_a_killed_commit_is_flushed_before_anything_is_built_on_it() -> None:
    """The superblock is in the page cache only, when its writer is killed before the last flush."""
    events: list[str] = []

    class Noting(MemoryStorage):
        def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
            events.append("write")
            super().write(offset, view)

        def flush(self) -> None:
            events.append("flush")

    world = left_behind()
    metadata = Noting(METADATA)
    MemoryStorage.write(metadata, 0, content(world.metadata))
    KeptPool(World(metadata, world.data, world.keep)).close()
    assert events[:2] == ["flush", "write"]
