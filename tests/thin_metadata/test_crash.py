"""Power cuts at every write and flush: the last commit, or the one under way, is there whole, and nothing leaks.

While a commit is being written, the next transaction goes on in memory, as it does in the pool.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from support.faulty import CrashStorage
from support.thin import dumped, new_pool, thin_check, write
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata

METADATA = 120 * 4096
SEEDS, LEAST = 6, 50
"""How many workloads, and how many points each has at least: see tests/thin/test_crash.py."""


def step(pool: PoolMetadata, rng: random.Random) -> None:
    """One random change."""
    devices = [dev for dev, _ in pool.devices()]
    what = rng.choice(("create", "snap", "snap", "insert", "insert", "insert", "remove", "delete", "hold"))
    dev, origin = rng.randrange(8), rng.choice(devices or [0])
    if what == "create" and dev not in devices:
        pool.create_thin(dev)
    elif what == "snap" and devices and dev not in devices:
        pool.create_snap(dev, origin)
    elif what == "insert" and devices:
        write(pool, origin, rng.choice((0, rng.randrange(500))), rng.choice((1, 5, 120)))
    elif what == "remove" and devices:
        begin = rng.randrange(500)
        pool.open_thin(origin).remove(begin, begin + rng.choice((1, 40, 1000)))
    elif what == "delete" and len(devices) > 2:
        pool.delete(origin)
    elif what == "hold":
        if pool.held_root:
            pool.release_metadata_snap()
        else:
            pool.reserve_metadata_snap()


@dataclass
class Workload:
    """A recorded run: what the metadata was after each commit, and where in the recording each commit ended."""

    storage: CrashStorage
    states: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def workload(seed: int) -> Workload:
    rng = random.Random(seed)
    run = Workload(CrashStorage(METADATA))
    pool = new_pool(storage=run.storage, data_blocks=3000)
    run.storage.checkpoint()
    run.states.append(dumped(pool))
    run.ends.append(0)

    def meanwhile() -> None:
        if rng.random() < 0.3:
            step_if_room(pool, rng)

    for _ in range(12):
        for _ in range(rng.randrange(1, 8)):
            step_if_room(pool, rng)
        sealed = pool.seal()
        if sealed is None:
            continue
        run.states.append(dumped(pool))
        run.storage.before_event = meanwhile
        sealed.write(run.storage, meanwhile)
        run.storage.before_event = None
        run.ends.append(len(run.storage.events))
        freed = pool.finish(sealed, True)
        meanwhile()
        pool.release_data(freed)
    return run


def step_if_room(pool: PoolMetadata, rng: random.Random) -> None:
    try:
        step(pool, rng)
    except OSError as error:
        assert pool.failed is None, error


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_cut_at_every_event(seed: int) -> None:
    run = workload(seed)
    assert len(run.states) > 3
    assert len(run.storage.events) >= LEAST
    rng = random.Random(seed)
    for at, image in run.storage.cuts(rng):
        done = max(number for number, end in enumerate(run.ends) if end <= at)
        pool = PoolMetadata.open(image, 128)
        state = dumped(pool)
        possible = run.states[done : done + 2]
        assert state in possible
        thin_check(image)


def test_the_superblock_decides() -> None:
    """A cut before its last flush saves the commit or loses it, whole."""
    storage = CrashStorage(METADATA)
    pool = new_pool(storage=storage)
    storage.checkpoint()
    before = dumped(pool)
    pool.create_thin(0)
    sealed = pool.seal()
    assert sealed is not None
    sealed.write(storage, lambda: None)
    last = len(storage.events) - 1
    found: list[set[str]] = [set(), set(), set()]
    for seed in range(40):
        for at, image in storage.cuts(random.Random(seed)):
            found[0 if at < last else at - last + 1].add(dumped(PoolMetadata.open(image, 128)))
    assert found == [{before}, {before, dumped(pool)}, {dumped(pool)}]


def test_life_goes_on_after_a_cut() -> None:
    """What is left of one crash is the start of the next workload."""
    rng = random.Random(99)
    image: MemoryStorage = workload(20).storage
    for _ in range(30):
        pool = PoolMetadata.open(image, 128)
        recording = CrashStorage(METADATA)
        content = bytearray(METADATA)
        image.read(0, memoryview(content))
        recording.write(0, content)
        recording.checkpoint()
        pool = PoolMetadata.open(recording, 128)
        for _ in range(4):
            for _ in range(5):
                step_if_room(pool, rng)
            sealed = pool.seal()
            if sealed is not None:
                sealed.write(recording, lambda: None)
                pool.release_data(pool.finish(sealed, True))
        cuts = list(recording.cuts(rng))
        image = rng.choice(cuts)[1]
        thin_check(image)


def test_formatting_is_all_or_nothing() -> None:
    storage = CrashStorage(1 << 20)
    PoolMetadata.open(storage, 128)
    for _, image in storage.cuts(random.Random(1)):
        pool = PoolMetadata.open(image, 128)
        assert pool.nr_data_blocks == 0
        thin_check(image)


def test_the_order_of_a_commit() -> None:
    """Data flush, metadata blocks, metadata flush, superblock, flush."""
    storage = CrashStorage(METADATA)
    pool = new_pool(storage=storage)
    pool.create_thin(0)
    storage.checkpoint()
    sealed = pool.seal()
    assert sealed is not None
    data_flushed: list[int] = []
    sealed.write(storage, lambda: data_flushed.append(len(storage.events)))
    kinds = ["flush" if not hasattr(event, "offset") else "superblock" if event.offset == 0 else "blocks"
             for event in storage.events]  # fmt: skip
    assert data_flushed == [0]
    assert kinds[-3:] == ["flush", "superblock", "flush"]
    assert set(kinds[:-3]) == {"blocks"}
