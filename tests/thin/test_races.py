"""Writers against snapshots, discards, deletes, table swaps, suspends and growth, all at once, and nothing is lost.

Every sector that is looked at, a *slot*, belongs to one writer, who gives each write a stamp that was never used.
So it is known at any time which contents a read may find: what was completed last when the read began, or what was
begun until it ended. A snapshot forks these expectations: it has what was completed before its message, and of what was
going on meanwhile nothing without what the same writer had completed before it.
"""

from __future__ import annotations

import faulthandler
import itertools
import random
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from support.kept import KeptPool, World, read_all
from support.strict import strict_check
from support.thin import content, thin_check
from userdm.dataplane.plane import BlockingWorker
from userdm.mapper.device import MappedDevice
from userdm.mapper.table import Line
from userdm.storage import MemoryStorage
from userdm.thin import pool as engine

SECTOR = 512
WRITERS = 3
MIXED, OWNED = 2, 6
"""Blocks whose slots belong to all writers, and blocks that belong to one writer each, who writes them whole."""
VOLUMES = 4
SLOTS = (0, 1, 77, 127)
"""Sectors of a block that are looked at."""
PATIENCE = 120
"""Seconds after which something hangs."""


def stamped(stamp: int, sectors: int = 1) -> bytes:
    return struct.pack("<Q", stamp) * (64 * sectors)


@dataclass
class Version:
    """One write to a slot; the stamp 0 reads as zeros. What a snapshot began with may be one of several contents."""

    at: int
    contents: frozenset[int]


class Slot:
    def __init__(self, sector: int, owner: int, first: Version) -> None:
        self.sector = sector
        self.owner = owner
        self.versions = [first]
        self.completed = 0
        """The last version that is complete."""


class Volume:
    """One thin device, a linear device on top of it, and what may be read from them."""

    def __init__(self, race: Race, dev_id: int, name: str, slots: dict[int, Slot]) -> None:
        self.race = race
        self.dev_id = dev_id
        self.name = name
        self.slots = slots
        self.retired = False
        mapper = race.pool.mapper
        self.thin = mapper.create(name)
        self.top = mapper.create(f"{name}-top")
        self.load_thin()
        mapper.resume(self.thin)
        self.load_top()
        mapper.resume(self.top)

    def load_thin(self, blocks: int = 0) -> None:
        sectors = (MIXED + OWNED + blocks) * self.race.sectors
        self.race.pool.mapper.load(self.thin, [Line(0, sectors, "thin", f"/dev/mapper/pool {self.dev_id}")])

    def load_top(self) -> None:
        """The same bytes, in one line or in two, neither of which ends with a block."""
        where, half = f"/dev/mapper/{self.name}", 1000
        size = (MIXED + OWNED) * self.race.sectors
        lines = [Line(0, size, "linear", f"{where} 0")]
        if self.race.dice.random() < 0.5:
            lines = [Line(0, half, "linear", f"{where} 0"), Line(half, size - half, "linear", f"{where} {half}")]
        self.race.pool.mapper.load(self.top, lines)


class Race:
    def __init__(self, seed: int, features: tuple[str, ...], sectors: int) -> None:
        self.seed = seed
        self.sectors = sectors
        self.dice = random.Random(seed)
        self.clock = itertools.count(1)
        self.lock = threading.Lock()
        self.failures: list[str] = []
        self.rounds = 0
        self.stop = threading.Event()
        need = (VOLUMES + 1) * (MIXED + OWNED)
        self.size = need * sectors * SECTOR
        self.data = MemoryStorage(self.size + 8 * sectors * SECTOR)
        self.world = World(MemoryStorage(1 << 20), self.data)
        self.pool = KeptPool(self.world, size=self.size, features=features, block_sectors=sectors)
        self.volumes: list[Volume] = []
        self.ids = itertools.count()

    def new(self) -> None:
        dev_id = next(self.ids)
        self.pool.message(f"create_thin {dev_id}")
        slots: dict[int, Slot] = {}
        for block in range(MIXED + OWNED):
            for at, sector in enumerate(SLOTS):
                owner = (at if block < MIXED else block - MIXED) % WRITERS
                where = block * self.sectors + sector
                slots[where] = Slot(where, owner, Version(0, frozenset([0])))
        self.add(Volume(self, dev_id, f"v{dev_id}", slots))

    def add(self, volume: Volume) -> None:
        with self.lock:
            self.volumes.append(volume)

    @contextmanager
    def blamed(self, who: str) -> Iterator[None]:
        """What goes wrong in a thread ends the race."""
        try:
            yield
        except BaseException as error:
            self.failures.append(f"seed {self.seed}, {who}: {type(error).__name__}: {error}")
            self.stop.set()
            if not isinstance(error, AssertionError | OSError):
                raise

    def run(self, rounds: int) -> None:
        for _ in range(2):
            self.new()
        jobs = [Writer(self, number) for number in range(WRITERS)] + [Reader(self, 7), Control(self, 8, rounds)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(PATIENCE)
            if job.is_alive():
                faulthandler.dump_traceback(all_threads=True)
                self.stop.set()
                pytest.fail(f"seed {self.seed}: {job.name} hangs; {self.failures}")
        assert self.failures == []


class Job(threading.Thread):
    """A thread with its own ways into the devices, and its own dice."""

    def __init__(self, race: Race, number: int) -> None:
        super().__init__(name=f"{type(self).__name__} {number}", daemon=True)
        self.race = race
        self.number = number
        self.dice = random.Random(f"{race.seed} {number}")
        self.workers: dict[int, BlockingWorker] = {}

    def run(self) -> None:
        with self.race.blamed(self.name):
            while not self.race.stop.is_set():
                self.turn()
        for worker in self.workers.values():
            worker.close()

    def turn(self) -> None:
        raise NotImplementedError

    def pick(self) -> Volume | None:
        with self.race.lock:
            there = [volume for volume in self.race.volumes if not volume.retired]
        return self.dice.choice(there) if there else None

    def worker(self, device: MappedDevice) -> BlockingWorker:
        if id(device) not in self.workers:
            self.workers[id(device)] = BlockingWorker(device.worker())
        return self.workers[id(device)]

    def read(self, volume: Volume, device: MappedDevice, slot: Slot) -> None:
        """What is found must be what the slot may have."""
        oldest = slot.completed
        data = bytearray(SECTOR)
        self.worker(device).read(slot.sector * SECTOR, memoryview(data))
        newest = len(slot.versions)
        self.judge(volume, slot, data, slot.versions[oldest:newest])

    def judge(self, volume: Volume, slot: Slot, data: bytes | bytearray, legal: list[Version]) -> int:
        stamp: int = struct.unpack_from("<Q", data)[0]
        assert data == stamped(stamp), f"{volume.name} sector {slot.sector} is torn: {bytes(data[:16])!r}"
        contents = [version.contents for version in legal]
        assert any(
            stamp in content for content in contents
        ), f"{volume.name} sector {slot.sector} is {stamp}, may be {contents}"
        return stamp


class Reader(Job):
    def turn(self) -> None:
        volume = self.pick()
        if volume is None:
            return
        try:
            for _ in range(5):
                device = self.dice.choice([volume.thin, volume.top])
                self.read(volume, device, self.dice.choice(list(volume.slots.values())))
        except OSError:
            assert volume.retired


class Writer(Job):
    def turn(self) -> None:
        volume = self.pick()
        if volume is None:
            return
        device = self.dice.choice([volume.thin, volume.top])
        action = self.dice.choices(["slot", "whole", "discard", "zero", "own", "flush"], [50, 15, 15, 5, 10, 5])[0]
        try:
            if action == "flush":
                self.worker(device).flush()
            elif action == "own":
                mine = [slot for slot in volume.slots.values() if slot.owner == self.number]
                self.read(volume, device, self.dice.choice(mine))
            else:
                self.change(volume, device, action)
        except OSError:
            assert volume.retired

    def change(self, volume: Volume, device: MappedDevice, action: str) -> None:
        sectors = self.race.sectors
        if action in ("slot", "zero"):
            mine = [slot for slot in volume.slots.values() if slot.owner == self.number]
            start, length = self.dice.choice(mine).sector, 1
        else:
            block = MIXED + self.number + WRITERS * self.dice.randrange(OWNED // WRITERS)
            start, length = block * sectors, sectors
        stamp = next(self.race.clock)
        zeros = action in ("zero", "discard")
        slots = [slot for where, slot in volume.slots.items() if start <= where < start + length]
        for slot in slots:
            slot.versions.append(Version(stamp, frozenset([0 if zeros else stamp])))
        worker = self.worker(device)
        if action == "discard":
            worker.discard(start * SECTOR, length * SECTOR)
        elif action == "zero":
            worker.zero(start * SECTOR, length * SECTOR)
        else:
            worker.write(start * SECTOR, stamped(stamp, length))
        for slot in slots:
            slot.completed = len(slot.versions) - 1


class Control(Job):
    """Snapshots, deletes, tables, suspends, sizes; ends the race after so many rounds."""

    def __init__(self, race: Race, number: int, rounds: int) -> None:
        super().__init__(race, number)
        self.rounds = rounds

    def turn(self) -> None:
        race, volume = self.race, self.pick()
        mapper, pool = race.pool.mapper, race.pool
        assert volume is not None
        kinds = [
            "snap",
            "delete",
            "swap",
            "swap top",
            "suspend",
            "suspend pool",
            "reload pool",
            "grow",
            "commit",
            "held",
        ]
        action = self.dice.choices(kinds, [20, 12, 14, 12, 14, 5, 5, 2, 6, 3])[0]
        if action == "snap":
            self.snapshot(volume)
        elif action == "delete" and len(race.volumes) > 2:
            self.delete(volume)
        elif action == "swap":
            volume.load_thin(self.dice.randrange(3))
            mapper.resume(volume.thin)
        elif action == "swap top":
            volume.load_top()
            mapper.resume(volume.top)
        elif action == "suspend":
            device = self.dice.choice([volume.thin, volume.top])
            mapper.suspend(device, flush=self.dice.random() < 0.5)
            self.race.stop.wait(self.dice.random() * 0.002)
            mapper.resume(device)
        elif action == "suspend pool":
            mapper.suspend(pool.device, flush=self.dice.random() < 0.5)
            self.race.stop.wait(self.dice.random() * 0.002)
            mapper.resume(pool.device)
        elif action in ("reload pool", "grow"):
            if action == "grow" and race.size < race.data.size:
                race.size += race.sectors * SECTOR
            pool.resize(race.size)
        elif action == "commit":
            pool.engine.commit()
        elif action == "held":
            held = pool.engine.metadata.held_root
            pool.message("release_metadata_snap" if held else "reserve_metadata_snap")
            if not held:
                pool.message("release_metadata_snap")
        race.rounds += 1
        if race.rounds >= self.rounds:
            race.stop.set()

    def delete(self, volume: Volume) -> None:
        """In the middle of what goes on; who is inside gets an error."""
        race = self.race
        volume.retired = True
        with race.lock:
            race.volumes.remove(volume)
        race.pool.mapper.remove(volume.top)
        race.pool.mapper.remove(volume.thin)
        race.pool.message(f"delete {volume.dev_id}")

    def snapshot(self, origin: Volume) -> None:
        race = self.race
        if len(race.volumes) >= VOLUMES:
            self.delete(next(volume for volume in race.volumes if volume is not origin))
        dev_id = next(race.ids)
        first_suspended = self.dice.random() < 0.3
        if first_suspended:
            race.pool.mapper.suspend(origin.thin)
        begun = {where: slot.completed for where, slot in origin.slots.items()}
        race.pool.message(f"create_snap {dev_id} {origin.dev_id}")
        ended = {where: list(slot.versions) for where, slot in origin.slots.items()}
        if first_suspended:
            race.pool.mapper.resume(origin.thin)
        slots: dict[int, Slot] = {}
        for where, slot in origin.slots.items():
            contents = frozenset().union(*(version.contents for version in ended[where][begun[where] :]))
            slots[where] = Slot(where, slot.owner, Version(0, contents))
        volume = Volume(race, dev_id, f"v{dev_id}", slots)
        self.judge_snapshot(volume, origin, begun, ended)
        race.add(volume)

    def judge_snapshot(
        self, volume: Volume, origin: Volume, begun: dict[int, int], ended: dict[int, list[Version]]
    ) -> None:
        """Nobody else knows of it yet. What it has is settled now, and of each writer it has a prefix."""
        found: dict[int, int] = {}
        for where, slot in volume.slots.items():
            data = bytearray(SECTOR)
            self.worker(volume.thin).read(where * SECTOR, memoryview(data))
            found[where] = self.judge(volume, slot, data, slot.versions)
            slot.versions[0] = Version(0, frozenset([found[where]]))
        for writer in range(WRITERS):
            mine = [where for where, slot in volume.slots.items() if slot.owner == writer]
            last = max(
                (version.at for where in mine for version in ended[where] if found[where] in version.contents - {0}),
                default=0,
            )
            for where in mine:
                had = [version for version in ended[where][begun[where] :] if version.at <= last]
                after = [version for version in ended[where] if version.at > last]
                if not had:
                    continue
                # the last write itself may be there in part; a discard leaves no stamp
                legal = had[-1:] + (had[-2:-1] if had[-1].at == last else []) + after
                assert any(
                    found[where] in version.contents for version in legal
                ), f"{volume.name}, a snapshot of {origin.name}, has write {last}, but sector {where} is {found[where]}"


CONFIGS = {
    "default": ((), 128),
    "no-passdown": (("no_discard_passdown",), 128),
    "ignore-discard": (("ignore_discard",), 128),
    "192-KiB-blocks": ((), 384),
}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commits come often, and so do changes of threads."""
    monkeypatch.setattr(engine, "COMMIT_PERIOD", 0.005)
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(4))
def test_all_at_once(seed: int, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, sectors = CONFIGS[config]
    race = Race(seed, features, sectors)
    race.run(300)
    finish(race, monkeypatch)


def finish(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody has stopped: each slot has its last version, nothing else was touched, and a death loses nothing."""
    monkeypatch.setattr(engine, "COMMIT_PERIOD", 3600.0)
    race.pool.engine.commit()
    last = [Writer(race, number) for number in range(WRITERS)]
    for volume in race.volumes:
        for writer in last:
            writer.change(volume, volume.top, writer.dice.choice(["slot", "whole", "discard"]))
    left = race.world.copy()
    quiet = Job(race, 99)
    wanted: dict[int, bytes] = {}
    for volume in race.volumes:
        data = bytearray((MIXED + OWNED) * race.sectors * SECTOR)
        BlockingWorker(volume.thin.worker()).read(0, memoryview(data))
        wanted[volume.dev_id] = bytes(data)
        for where, slot in volume.slots.items():
            quiet.judge(volume, slot, data[where * SECTOR : (where + 1) * SECTOR], slot.versions[slot.completed :])
        for sector in range(MIXED * race.sectors):
            if sector not in volume.slots:
                assert not any(data[sector * SECTOR : (sector + 1) * SECTOR]), f"{volume.name} sector {sector}"
    race.pool.close()
    strict_check(content(race.world.metadata))
    thin_check(race.world.metadata)
    with KeptPool(left, size=race.size, block_sectors=race.sectors) as successor:
        for dev_id, expected in wanted.items():
            with successor.open_thin(dev_id, len(expected)) as thin:
                assert read_all(thin) == expected, f"thin {dev_id} after the worker's death"
    strict_check(content(left.metadata))
