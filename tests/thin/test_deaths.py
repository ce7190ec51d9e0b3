"""A worker is killed, and the next one goes on: nothing that was completed is lost, wherever it was killed.

The page cache survives the process, so a death keeps every byte that was written, flushed or not, and the redo log.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from support.kept import KeptPool, Watched, World, put, read_all
from support.thin import content, thin_check
from userdm import Thin
from userdm.dataplane.plane import BlockingWorker
from userdm.storage import MemoryStorage
from userdm.thin import pool as engine

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
        self.thins: dict[int, Thin] = {}
        self._start(World(MemoryStorage(METADATA), MemoryStorage(LARGE)))
        self.fill = 0
        self.failures: list[str] = []

    def _start(self, left: World) -> None:
        """A worker goes on with what was left. While it opens the pool it changes nothing: see test_redo."""
        self.ready = False
        metadata, data = (Watched(storage.size, self.moment, self.lock) for storage in (left.metadata, left.data))
        metadata.write(0, content(left.metadata))
        data.write(0, content(left.data))
        self.world = World(metadata, data, left.keep)
        self.pool = KeptPool(self.world, size=self.size, features=self.features)
        self.pool.on_record(self.moment, self.lock)
        self.ready = True

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
        self.ready = False
        self.pool.close()
        self._start(left)
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
    """Any steps; at a share of the moments a successor is tried."""
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


IDS = st.integers(0, 4)
OFFSETS = st.one_of(
    st.integers(0, VOLUME // SECTOR - 1).map(lambda sector: sector * SECTOR),
    st.integers(0, 3).map(lambda block: block * BLOCK),
)
LENGTHS = st.one_of(
    st.integers(1, 300).map(lambda sectors: sectors * SECTOR), st.sampled_from([BLOCK, 2 * BLOCK, VOLUME])
)


class Deaths(RuleBasedStateMachine):
    """Hypothesis looks for the work, and the moments, that lose something."""

    @initialize(passdown=st.booleans())
    def start(self, passdown: bool) -> None:
        self.run_of = Run(0, () if passdown else ("no_discard_passdown",))
        self.run_of.chosen = self.now
        self.countdown = 0
        self.run_of.create(0, None)

    def now(self) -> bool:
        self.countdown -= 1
        return self.countdown == 0

    def pick(self, dev_id: int) -> int:
        there = sorted(self.run_of.thins)
        return there[dev_id % len(there)]

    @rule(moment=st.integers(1, 12))
    def kill_soon(self, moment: int) -> None:
        """So many moments from now: in the middle of whatever comes next."""
        self.countdown = moment

    @rule()
    def die(self) -> None:
        self.run_of.take_over()

    @rule(dev_id=IDS, offset=OFFSETS, length=LENGTHS)
    def write(self, dev_id: int, offset: int, length: int) -> None:
        self.run_of.write(self.pick(dev_id), offset, min(length, VOLUME - offset))

    @rule(dev_id=IDS, offset=OFFSETS, length=LENGTHS)
    def discard(self, dev_id: int, offset: int, length: int) -> None:
        self.run_of.discard(self.pick(dev_id), offset, min(length, VOLUME - offset))

    @precondition(lambda self: len(self.run_of.thins) < 5)
    @rule(origin=st.none() | IDS)
    def create(self, origin: int | None) -> None:
        free = min(set(range(5)) - set(self.run_of.thins))
        self.run_of.create(free, None if origin is None else self.pick(origin))

    @precondition(lambda self: len(self.run_of.thins) > 1)
    @rule(dev_id=IDS)
    def delete(self, dev_id: int) -> None:
        self.run_of.delete(self.pick(dev_id))

    @rule()
    def flush(self) -> None:
        self.run_of.commit()

    @rule()
    def grow(self) -> None:
        if self.run_of.size != LARGE:
            self.run_of.size = LARGE
            self.run_of.pool.resize(LARGE)

    @rule(reserve=st.booleans())
    def metadata_snap(self, reserve: bool) -> None:
        held = bool(self.run_of.pool.engine.metadata.held_root)
        if reserve != held:
            self.run_of.pool.message("reserve_metadata_snap" if reserve else "release_metadata_snap")

    def teardown(self) -> None:
        if hasattr(self, "run_of"):
            self.run_of.take_over()
            self.run_of.pool.close()
            assert self.run_of.failures == []
            thin_check(self.run_of.world.metadata)


TestDeaths = Deaths.TestCase
TestDeaths.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
