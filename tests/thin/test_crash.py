"""Power cuts at every write and flush of workloads that use every feature of a pool.

Nothing that was flushed is lost, a snapshot is what its origin was, the metadata is whole, and life goes on. The test's
own checker (support.strict), which is no more lenient than thin_check, reads the metadata at every point; thin_check
itself at one in sixteen. `test_how_many` has the number of points.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from support.faulty import Fault
from support.kept import KeptPool, MemoryKeep, World, put, read_all
from support.powercut import Disks, Flush, Handle, Recording, Write
from support.strict import strict_check
from support.thin import content, thin_check
from thin_metadata import test_crash as metadata_points
from userdm import Thin
from userdm.dataplane.plane import BlockingWorker
from userdm.storage import MemoryStorage
from userdm.thin import pool as engine
from userdm.thin.superblock import NEEDS_CHECK, Superblock

SECTOR = 512
METADATA = 128 * 4096
DATA_BLOCKS = 16
"""Of 15 that the volumes can take: what is given back is used again as soon as the pool allows it."""
GROWN = 4


@dataclass(frozen=True)
class Scenario:
    """A workload: which features it has, and how many points it has at least."""

    name: str
    least: int
    features: tuple[str, ...] = ()
    block_sectors: int = 128
    steps: int = 100
    origin: int = 0
    """Sectors of an external origin under every volume."""
    whole_blocks: bool = False
    """What was never written has no defined content: new blocks are written whole."""
    grows: bool = False
    held: bool = False
    metadata: int = METADATA
    """Bytes of the metadata device before it grows."""
    deaths: bool = False
    """The worker is killed now and then, and another one goes on with the page cache and the redo log."""
    fails: bool = False
    """A commit fails, and the metadata is repaired."""

    @property
    def block(self) -> int:
        return self.block_sectors * SECTOR

    @property
    def volume(self) -> int:
        return 3 * self.block

    @property
    def data_blocks(self) -> int:
        """A metadata snapshot keeps what it had, beside what the volumes have now."""
        return 2 * DATA_BLOCKS if self.held else DATA_BLOCKS


SCENARIOS = [
    Scenario("plain", 400),
    Scenario("no-passdown", 300, ("no_discard_passdown",)),
    Scenario("ignore-discard", 400, ("ignore_discard",)),
    Scenario("skip-zeroing", 400, ("skip_block_zeroing",), whole_blocks=True),
    Scenario("skip-zeroing-and-more", 400, ("skip_block_zeroing", "no_discard_passdown"), whole_blocks=True),
    Scenario("192-KiB-blocks", 400, block_sectors=384),
    Scenario("192-KiB-blocks-ignoring", 400, ("ignore_discard",), block_sectors=384),
    Scenario("external-origin", 400, origin=2 * 128 + 37),
    Scenario("external-origin-192-KiB", 400, origin=384 + 1, block_sectors=384),
    Scenario("grows", 400, grows=True, metadata=64 * 4096),
    Scenario("metadata-snapshots", 400, held=True),
    Scenario("metadata-full", 300, grows=True, held=True, metadata=18 * 4096),
    Scenario("deaths", 400, deaths=True),
    Scenario("deaths-and-all", 400, ("no_discard_passdown",), deaths=True, grows=True, held=True, metadata=64 * 4096),
    Scenario("failures", 300, fails=True),
]


def test_how_many() -> None:
    """At least 5,000 moments; each scenario asserts its own part."""
    points = sum(scenario.least for scenario in SCENARIOS) + metadata_points.LEAST * metadata_points.SEEDS
    assert points >= 5000, points


# what happened, beside the writes and flushes of the devices


@dataclass
class Issue:
    """A write or discard that begins: ``fill`` repeated, over ``length`` bytes."""

    dev_id: int
    offset: int
    length: int
    fill: int


@dataclass
class Coming:
    """A volume that is being made, with what it will have."""

    dev_id: int
    data: bytes


@dataclass
class Going:
    dev_id: int


@dataclass
class There:
    """After a refusal: what the volumes are."""

    volumes: dict[int, bytes]


@dataclass
class Sizes:
    """A table for devices of these sizes is about to be loaded."""

    metadata: int
    data: int


class Flushed:
    """Everything issued before this is durable."""


class Work:
    """The workload, and everything that happened in it."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.rng = random.Random(f"{scenario.name} {seed}")
        self.events: list[Any] = []
        self.metadata = Recording(METADATA, 0, self.events)
        self.metadata.visible = scenario.metadata
        self.data = Recording((scenario.data_blocks + GROWN) * scenario.block, 1, self.events)
        self.size = scenario.data_blocks * scenario.block
        self.keep = MemoryKeep(lasting=scenario.deaths)
        self.model: dict[int, bytearray] = {}
        self.solid: dict[int, set[int]] = {}
        """Blocks that have a content of their own."""
        self.fill = 0
        self.refused = 0
        self.open()

    def open(self) -> None:
        self.events.append(Sizes(self.metadata.visible, self.size))
        self.handles = Handle(self.metadata), Handle(self.data)
        self.pool = opened(self.scenario, World(*self.handles, self.keep), self.size)  # type: ignore[arg-type]
        self.thins: dict[int, Thin] = {}

    def thin(self, dev_id: int) -> Thin:
        if dev_id not in self.thins:
            self.thins[dev_id] = self.pool.open_thin(dev_id, self.scenario.volume)
        return self.thins[dev_id]

    @contextmanager
    def maybe(self) -> Iterator[None]:
        """A change that the pool may refuse, for want of metadata or because of a failure: it gets what it needs."""
        try:
            yield
        except OSError as error:
            assert self.scenario.fails or self.scenario.metadata < 32 * 4096, error
            self.refused += 1
            if self.pool.engine.metadata.failed is not None:
                self.repair()
            self.look()
            self.metadata.visible = min(self.metadata.visible + 4 * 4096, METADATA)
            self.reload()
            self.pool.engine.commit()
            self.events.append(Flushed())

    def look(self) -> None:
        """Take over what the pool says."""
        ids = [dev_id for dev_id, _ in self.pool.engine.metadata.devices()]
        self.model = {dev_id: bytearray(read_all(self.thin(dev_id))) for dev_id in ids}
        self.events.append(There({dev_id: bytes(data) for dev_id, data in self.model.items()}))

    def repair(self) -> None:
        """What an administrator does after a failure: look whether the metadata is sound, and use it again."""
        for handle in self.handles:
            handle.faults.clear()
        with suppress(OSError):
            self.pool.close()
        block = bytearray(4096)
        self.metadata.read(0, memoryview(block))
        superblock = Superblock.unpack(block)
        assert superblock.flags & NEEDS_CHECK
        thin_check(self.metadata)
        superblock.flags = 0
        self.metadata.write(0, superblock.pack())  # as thin_check --clear-needs-check-flag
        self.metadata.flush()
        self.open()

    def reload(self) -> None:
        self.events.append(Sizes(self.metadata.visible, self.size))
        self.pool.resize(self.size)

    def step(self) -> None:
        scenario, rng = self.scenario, self.rng
        there = list(self.model)
        weights = {"write": 50, "discard": 17, "snap": 7, "create": 3, "delete": 6, "flush": 4, "commit": 3, "id": 1}
        weights |= {"grow": 3} if scenario.grows else {}
        weights |= {"hold": 5} if scenario.held else {}
        weights |= {"die": 5} if scenario.deaths else {}
        weights |= {"fail": 6} if scenario.fails else {}
        action = rng.choices(list(weights), list(weights.values()))[0]
        free = min(set(range(9)) - set(there))
        if not there or (action == "create" and len(there) < 5):
            self.create(free, None)
        elif action == "snap" and len(there) < 5:
            self.create(free, rng.choice(there))
        elif action == "delete" and len(there) > 1:
            self.delete(rng.choice(there))
        elif action == "flush":
            self.flush(rng.choice(there))
        elif action == "commit":
            with self.maybe():
                self.pool.engine.commit()  # as it comes by itself, after a second
        elif action == "id":
            now = self.pool.engine.metadata.transaction_id
            with self.maybe():
                self.message(f"set_transaction_id {now} {now + 1}")
        elif action == "grow":
            self.grow()
        elif action == "hold":
            held = self.pool.engine.metadata.held_root
            with self.maybe():
                self.message("release_metadata_snap" if held else "reserve_metadata_snap")
        elif action == "die":
            self.die()
        elif action == "fail":
            self.handles[rng.randrange(2)].faults.append(
                Fault(errno.EIO, kinds=frozenset({rng.choice(["flush", "write"])}))
            )
            with self.maybe():
                self.pool.engine.commit()
            for handle in self.handles:
                handle.faults.clear()
        else:
            self.change(rng.choice(there), action == "discard")

    def message(self, text: str) -> None:
        self.pool.message(text)
        self.events.append(Flushed())

    def create(self, dev_id: int, origin: int | None) -> None:
        data = pristine(self.scenario) if origin is None else bytes(self.model[origin])
        self.events.append(Coming(dev_id, data))
        with self.maybe():
            self.message(f"create_thin {dev_id}" if origin is None else f"create_snap {dev_id} {origin}")
            self.model[dev_id] = bytearray(data)
            self.solid[dev_id] = set() if origin is None else set(self.solid[origin])

    def delete(self, dev_id: int) -> None:
        with self.maybe():
            thin = self.thins.pop(dev_id, None)
            if thin is not None:
                thin.close()
            self.events.append(Going(dev_id))
            self.message(f"delete {dev_id}")
            del self.model[dev_id]

    def flush(self, dev_id: int) -> None:
        with self.maybe():
            thin = self.thin(dev_id)
            BlockingWorker(thin.device.worker()).flush()
            self.events.append(Flushed())

    def grow(self) -> None:
        self.size = min(self.size + self.scenario.block, self.data.size)
        self.metadata.visible = min(self.metadata.visible + 3 * 4096, METADATA)
        self.reload()

    def die(self) -> None:
        """Killed between two requests; the page cache stays, and is no more durable than before."""
        for handle in self.handles:
            handle.dead = True
        left = self.keep.copy()
        with suppress(OSError):
            self.pool.close()
        self.keep.close()
        self.keep = left
        self.open()
        for dev_id, data in self.model.items():
            assert read_all(self.thin(dev_id)) == data, f"thin {dev_id} is not what it was before the worker's death"

    def change(self, dev_id: int, discard: bool) -> None:
        scenario, rng = self.scenario, self.rng
        offset = rng.randrange(scenario.volume // SECTOR) * SECTOR
        offset = offset if rng.random() < (0.2 if discard else 0.6) else offset // scenario.block * scenario.block
        length = rng.choice([1, 8, 16, scenario.block_sectors, 200, 2 * scenario.block_sectors]) * SECTOR
        length = min(length, scenario.volume - offset)
        if scenario.whole_blocks:
            first, last = offset // scenario.block, (offset + length - 1) // scenario.block
            blocks = set(range(first, last + 1))
            solid = self.solid.setdefault(dev_id, set())
            if discard or not blocks <= solid:
                offset, length = first * scenario.block, len(blocks) * scenario.block
            self.solid[dev_id] = solid - blocks if discard else solid | blocks
        self.fill = self.fill % 250 + 1
        fill = 0 if discard else self.fill
        self.events.append(Issue(dev_id, offset, length, fill))
        with self.maybe():
            if discard:
                BlockingWorker(self.thin(dev_id).device.worker()).discard(offset, length)
            else:
                put(self.thin(dev_id), offset, bytes([fill]) * length)
            self.model[dev_id][offset : offset + length] = bytes([fill]) * length

    def run(self) -> list[Any]:
        for _ in range(self.scenario.steps):
            self.step()
        for handle in self.handles:
            handle.faults.clear()
        self.pool.close()
        self.events.append(Flushed())
        self.keep.close()
        return self.events


def opened(scenario: Scenario, world: World, size: int) -> KeptPool:
    origin = MemoryStorage(scenario.origin * SECTOR) if scenario.origin else None
    if origin is not None:
        origin.write(0, origin_bytes(scenario))
        origin.readonly = True
    return KeptPool(world, size=size, features=scenario.features, block_sectors=scenario.block_sectors, origin=origin)


def origin_bytes(scenario: Scenario) -> bytes:
    return b"".join(bytes([0xFF, at % 251]) * (SECTOR // 2) for at in range(scenario.origin))


def pristine(scenario: Scenario) -> bytes:
    """What a new volume reads as."""
    data = origin_bytes(scenario)[: scenario.volume]
    return data + bytes(scenario.volume - len(data))


@dataclass
class Possible:
    """What may be found after a cut: the state of the last flush, and what was done since."""

    floor: dict[int, bytearray] = field(default_factory=dict)
    now: dict[int, bytearray] = field(default_factory=dict)
    since: list[Issue] = field(default_factory=list)
    fresh: dict[int, bytes] = field(default_factory=dict)
    going: set[int] = field(default_factory=set)
    sizes: Sizes = field(default_factory=lambda: Sizes(0, 0))

    def advance(self, event: Any) -> None:
        if isinstance(event, Issue):
            self.now[event.dev_id][event.offset : event.offset + event.length] = bytes([event.fill]) * event.length
            self.since.append(event)
        elif isinstance(event, Coming):
            self.fresh[event.dev_id] = event.data
        elif isinstance(event, Going):
            self.going.add(event.dev_id)
        elif isinstance(event, Sizes):
            self.sizes = event
        elif isinstance(event, There):
            self.now = {dev_id: bytearray(data) for dev_id, data in event.volumes.items()}
            self.fresh = {dev_id: data for dev_id, data in event.volumes.items() if dev_id not in self.floor}
            self.going = self.floor.keys() - event.volumes.keys()
        elif isinstance(event, Flushed):
            self.now |= {dev_id: bytearray(data) for dev_id, data in self.fresh.items() if dev_id not in self.now}
            for dev_id in self.going:
                self.now.pop(dev_id, None)
            self.floor = {dev_id: bytearray(data) for dev_id, data in self.now.items()}
            self.since.clear()
            self.fresh.clear()
            self.going.clear()

    def check(self, pool: KeptPool, volume: int) -> dict[int, Thin]:
        found: dict[int, Thin] = {}
        for dev_id in sorted(self.floor.keys() | self.fresh.keys()):
            try:
                thin = found[dev_id] = pool.open_thin(dev_id, volume)
            except OSError:
                assert dev_id in self.going or dev_id not in self.floor, f"thin {dev_id} is gone"
                continue
            got = read_all(thin)
            if got == self.floor.get(dev_id) or got == self.fresh.get(dev_id):
                continue
            assert dev_id in self.floor, f"snapshot {dev_id} is not what its origin was"
            self._sectors(dev_id, got, volume)
        return found

    def _sectors(self, dev_id: int, got: bytes, volume: int) -> None:
        floor = self.floor[dev_id]
        later = [issue for issue in self.since if issue.dev_id == dev_id]
        for at in range(0, volume, SECTOR):
            sector = got[at : at + SECTOR]
            if sector != floor[at : at + SECTOR]:
                fills = [issue.fill for issue in later if issue.offset <= at < issue.offset + issue.length]
                assert any(
                    sector == bytes([fill]) * SECTOR for fill in fills
                ), f"thin {dev_id} byte {at}: {sector[:4]!r}, flushed {floor[at : at + 4]!r}, later {fills}"


@pytest.fixture(autouse=True)
def commits_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock has no part in what happens."""
    monkeypatch.setattr(engine, "COMMIT_PERIOD", 3600.0)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_cut_at_every_moment(scenario: Scenario) -> None:
    points = seed = 0
    while points < scenario.least:
        points += cuts(scenario, seed)
        seed += 1
        assert seed < 9
    print(f"{scenario.name}: {points} points")


def cuts(scenario: Scenario, seed: int) -> int:
    work = Work(scenario, seed)
    events = work.run()
    assert work.refused or not (scenario.fails or scenario.metadata < 32 * 4096), "nothing was ever refused"
    rng = random.Random(seed)
    possible, disks = Possible(), Disks(METADATA, work.data.size)
    first = next(index for index, event in enumerate(events) if isinstance(event, Flushed))
    points = 0
    for index, event in enumerate(events):
        if index >= first and isinstance(event, Write | Flush):
            points += 1
            after(scenario, possible, disks.cut(rng), rng.randrange(16))
        possible.advance(event)
        disks.advance(event)
    return points


def after(scenario: Scenario, possible: Possible, images: list[bytearray], dice: int) -> None:
    """The machine is on again."""
    strict_check(images[0])
    world = World(MemoryStorage(possible.sizes.metadata), MemoryStorage(len(images[1])))
    world.metadata.write(0, memoryview(images[0])[: possible.sizes.metadata])
    world.data.write(0, images[1])
    if dice == 0:
        thin_check(world.metadata)
    pool = opened(scenario, world, possible.sizes.data)
    thins = possible.check(pool, scenario.volume)
    if dice < 4 and pool.engine.mode == 0:
        with suppress(OSError):  # where there is hardly any metadata
            for dev_id, thin in thins.items():
                put(thin, dev_id % 3 * scenario.block, bytes([dev_id]) * scenario.block)
    pool.close()
    strict_check(content(world.metadata))
    world.keep.close()
