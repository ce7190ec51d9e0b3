"""A worker is killed, and the next one goes on: nothing that was completed is lost, wherever it was killed.

The page cache survives the process, so a death keeps every byte that was written, flushed or not, and the redo log.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from support.faulty import FailingStorage, Fault
from support.kept import KeptPool, Watched, World, contents, copied, memfd, put, read_all
from support.thin import content, thin_check
from userdm import Pool, Thin
from userdm.dataplane.plane import BlockingWorker
from userdm.pdata.counts import Root
from userdm.storage import MemoryStorage
from userdm.thin import pool as engine
from userdm.thin import redo
from userdm.thin.modes import Mode
from userdm.thin.redo import FORMAT, RECORD, START, Kind, RedoLog, changes_since
from userdm.thin.superblock import NEEDS_CHECK, Superblock

BLOCK = 65536
SECTOR = 512
VOLUME = 4 * BLOCK
METADATA = 1 << 20
SMALL, LARGE = 22 * BLOCK, 30 * BLOCK
"""The data device before and after it grows; little enough for blocks to be used again."""


@dataclass
class Model:
    """What was completed, and the one change that is under way."""

    volumes: dict[int, bytearray] = field(default_factory=dict)
    doing: tuple[int, int, int, int] | None = None
    """(device, offset, length, fill) of a write or discard that has not ended."""
    coming: tuple[int, bytes] | None = None
    going: int | None = None

    def check(self, pool: KeptPool, there: dict[int, Thin]) -> None:
        """Every volume has what was completed; ``there`` keeps the opened ones."""
        for dev_id, expected in self.volumes.items():
            try:
                thin = pool.open_thin(dev_id, VOLUME)
            except OSError:
                assert dev_id == self.going, f"thin {dev_id} is gone"
                continue
            there[dev_id] = thin
            got = read_all(thin)
            if got != expected:
                self._differs(dev_id, got, expected)
        if self.coming is not None:
            dev_id, expected_new = self.coming
            try:
                thin = pool.open_thin(dev_id, VOLUME)
            except OSError:
                return
            there[dev_id] = thin
            assert read_all(thin) == expected_new

    def _differs(self, dev_id: int, got: bytes, expected: bytearray) -> None:
        for at in range(0, VOLUME, SECTOR):
            sector = got[at : at + SECTOR]
            if sector != expected[at : at + SECTOR]:
                assert self.doing is not None, f"thin {dev_id} byte {at} is {sector[:4]!r}, {expected[at : at + 4]!r}"
                device, offset, length, fill = self.doing
                assert device == dev_id
                assert offset <= at < offset + length
                assert sector == bytes([fill]) * SECTOR


class Run:
    """A pool with a model beside it; ``moment`` is called wherever what a kill leaves has changed."""

    def __init__(self, seed: int, features: tuple[str, ...]) -> None:
        self.rng = random.Random(seed)
        self.features = features
        self.lock = threading.RLock()
        self.model = Model()
        self.moments = 0
        self.chosen: Callable[[], bool] = lambda: True
        self.size = SMALL
        self.world = World(Watched(METADATA, self.moment, self.lock), Watched(LARGE, self.moment, self.lock))
        self.ready = False
        self.pool = KeptPool(self.world, size=SMALL, features=features)
        self.pool.on_record(self.moment, self.lock)
        self.ready = True
        self.thins: dict[int, Thin] = {}
        self.fill = 0
        self.failures: list[str] = []

    def moment(self) -> None:
        if not self.ready:
            return
        self.moments += 1
        if self.chosen():
            try:
                self.successor(self.world.copy())
            except BaseException as error:
                self.failures.append(f"moment {self.moments}: {error!r}")
                raise

    def successor(self, world: World) -> None:
        """The next worker: everything is there, it can go on, and what it commits is right."""
        pool = KeptPool(world, size=self.size, features=self.features)
        there: dict[int, Thin] = {}
        self.model.check(pool, there)
        now = {dev_id: bytearray(read_all(thin)) for dev_id, thin in there.items()}
        for dev_id, thin in there.items():
            at = self.rng.randrange(VOLUME // SECTOR) * SECTOR
            with thin.open() as file:
                file.seek(at)
                file.write(b"\xff" * SECTOR)
            now[dev_id][at : at + SECTOR] = b"\xff" * SECTOR
        for dev_id, thin in there.items():
            assert read_all(thin) == now[dev_id], f"a write to another volume reached thin {dev_id}"
        pool.close()
        assert not world.keep.kept
        if self.rng.random() < 0.2:
            thin_check(world.metadata)

    def take_over(self) -> None:
        """The worker is killed now, between two requests; its successor serves from here on."""
        left = self.world.copy()
        self.pool.close()
        self.world.keep.close()
        self.world = left
        self.pool = KeptPool(left, size=self.size, features=self.features)
        self.thins = {}
        self.model.check(self.pool, self.thins)

    # what is done

    @contextmanager
    def change(self, dev_id: int, offset: int, length: int, fill: int) -> Iterator[None]:
        with self.lock:
            self.model.doing = dev_id, offset, length, fill
        yield
        with self.lock:
            self.model.volumes[dev_id][offset : offset + length] = bytes([fill]) * length
            self.model.doing = None

    def write(self, dev_id: int, offset: int, length: int) -> None:
        self.fill = self.fill % 250 + 1
        with self.change(dev_id, offset, length, self.fill):
            put(self.thins[dev_id], offset, bytes([self.fill]) * length)

    def discard(self, dev_id: int, offset: int, length: int) -> None:
        with self.change(dev_id, offset, length, 0):
            worker = BlockingWorker(self.thins[dev_id].device.worker())
            worker.discard(offset, length)
            worker.close()

    def create(self, dev_id: int, origin: int | None) -> None:
        data = bytes(VOLUME) if origin is None else bytes(self.model.volumes[origin])
        with self.lock:
            self.model.coming = dev_id, data
        self.pool.message(f"create_thin {dev_id}" if origin is None else f"create_snap {dev_id} {origin}")
        with self.lock:
            self.model.volumes[dev_id] = bytearray(data)
            self.model.coming = None
        self.thins[dev_id] = self.pool.open_thin(dev_id, VOLUME)

    def delete(self, dev_id: int) -> None:
        self.thins.pop(dev_id).close()
        with self.lock:
            self.model.going = dev_id
        self.pool.delete(dev_id)
        with self.lock:
            del self.model.volumes[dev_id]
            self.model.going = None

    def commit(self) -> None:
        with next(iter(self.thins.values())).open() as file:
            file.flush()

    def random_step(self) -> None:
        rng, thins = self.rng, self.thins
        action = rng.choices(["write", "discard", "snap", "create", "delete", "flush"], [60, 18, 8, 4, 6, 4])[0]
        free = min(set(range(8)) - set(self.model.volumes))
        if not thins or (action == "create" and len(thins) < 5):
            self.create(free, None)
        elif action == "snap" and len(thins) < 5:
            self.create(free, rng.choice(list(thins)))
        elif action == "delete" and len(thins) > 1:
            self.delete(rng.choice(list(thins)))
        elif action == "flush":
            self.commit()
        else:
            offset = rng.randrange(VOLUME // SECTOR) * SECTOR
            offset = offset if rng.random() < 0.5 else offset // BLOCK * BLOCK
            length = min(rng.choice([1, 8, 128, 256, 300]) * SECTOR, VOLUME - offset)
            (self.discard if action == "discard" else self.write)(rng.choice(list(thins)), offset, length)


# the log itself


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
        with pytest.raises(OSError, match="Cannot allocate memory|redo log has"):
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


# deaths


@pytest.fixture(autouse=True)
def rare_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits come when they are asked for, so that the log holds more than a moment's work."""
    monkeypatch.setattr(engine, "COMMIT_PERIOD", 3600.0)


def fixed(run: Run) -> None:
    """Every kind of change once, and each of them on top of the others."""
    run.create(0, None)
    run.write(0, 0, 3 * BLOCK)
    run.write(0, 3 * BLOCK + 512, 1024)
    run.create(1, 0)
    run.write(0, BLOCK, 512)
    run.write(1, 0, BLOCK)
    run.create(2, 1)
    run.write(1, 512, 512)
    run.discard(0, 0, 2 * BLOCK)
    run.write(0, BLOCK, 2 * BLOCK)
    run.commit()
    run.delete(2)
    run.write(1, 2 * BLOCK, 4096)
    run.pool.message("reserve_metadata_snap")
    run.write(1, 3 * BLOCK, BLOCK)
    run.discard(1, 0, VOLUME)
    run.pool.message("set_transaction_id 0 7")
    run.write(1, 0, VOLUME)
    run.pool.message("release_metadata_snap")
    run.size = LARGE
    run.pool.resize(LARGE)
    run.create(3, 0)
    run.write(3, 0, VOLUME)
    run.write(0, 0, VOLUME)
    run.commit()
    run.discard(3, BLOCK, BLOCK + 512)
    run.create(4, 3)
    run.delete(0)
    run.write(4, 0, VOLUME)
    run.pool.message("set_transaction_id 7 8")


def random_run(seed: int, steps: int, share: float) -> Run:
    """Any steps; at a share of the moments a successor is tried, and a quarter of the way it takes over."""
    run = Run(seed, ())
    run.chosen = lambda: run.rng.random() < share
    for _ in range(steps):
        run.random_step()
    return run


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_of_random_work(seed: int) -> None:
    run = random_run(seed, 150, 0.3)
    run.pool.close()
    assert run.failures == []
    assert run.moments > 300
    thin_check(run.world.metadata)


@pytest.mark.parametrize("seed", range(2))
def test_one_successor_after_the_other(seed: int) -> None:
    """Each worker is killed after some work, and the next one goes on with what it left, again and again."""
    run = Run(100 + seed, ())
    run.chosen = lambda: False
    for _ in range(25):
        for _ in range(run.rng.randrange(1, 12)):
            run.random_step()
        run.take_over()
    run.pool.close()
    thin_check(run.world.metadata)


@pytest.mark.parametrize("features", [(), ("no_discard_passdown",)], ids=["default", "other"])
def test_a_kill_at_every_moment(features: tuple[str, ...]) -> None:
    run = Run(1, features)
    fixed(run)
    run.pool.close()
    assert run.failures == []
    assert run.moments > 150
    thin_check(run.world.metadata)
