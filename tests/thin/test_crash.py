"""Power cuts at every moment of a workload: nothing flushed is lost, and thin_check passes each time.

Both devices record what is written and flushed, in one order. A cut at some point keeps what was flushed before, and of
what was not any subset: each write is kept, lost, or torn at 512-byte sectors.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.check import check_file
from userdm import Pool, Thin
from userdm.dataplane.plane import BlockingWorker
from userdm.storage import MemoryStorage

BLOCK = 65536
SECTOR = 512
VOLUME = 4 * BLOCK
DATA = 26 * BLOCK
"""Little more than six volumes: blocks are used again as soon as the pool allows it."""
METADATA = 2 << 20


@dataclass
class Issue:
    """A write or discard that begins: ``fill`` repeated, over ``length`` bytes."""

    dev_id: int
    offset: int
    length: int
    fill: int


@dataclass
class Snap:
    dev_id: int
    origin: int | None


@dataclass
class Gone:
    dev_id: int


class Flushed:
    """Everything issued before this is durable."""


@dataclass
class Write:
    device: int
    offset: int
    data: bytes


@dataclass
class Flush:
    device: int


Event = Issue | Snap | Gone | Flushed | Write | Flush


class Recording(MemoryStorage):
    """Memory that writes down what is done to it."""

    def __init__(self, size: int, device: int, events: list[Event]) -> None:
        super().__init__(size)
        self.device = device
        self.events = events

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self.events.append(Write(self.device, offset, bytes(view)))
        super().write(offset, view)

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        self.events.append(Flush(self.device))


def workload(rng: random.Random, steps: int, features: tuple[str, ...]) -> list[Event]:
    """Writes, discards, snapshots, deletes and flushes; returns what happened, in order."""
    events: list[Event] = []
    pool = Pool(Recording(METADATA, 0, events), Recording(DATA, 1, events), features=features)
    thins: dict[int, Thin] = {}
    fill = 0
    next_id = 0
    for _ in range(steps):
        action = rng.choices(["write", "discard", "snap", "create", "delete", "flush"], [60, 20, 7, 3, 6, 4])[0]
        if not thins or (action == "create" and len(thins) < 6):
            events.append(Snap(next_id, None))
            thins[next_id] = pool.create_thin(next_id, VOLUME)
            events.append(Flushed())
            next_id += 1
        elif action == "snap" and len(thins) < 6:
            origin = rng.choice(list(thins))
            events.append(Snap(next_id, origin))
            thins[next_id] = pool.create_snap(next_id, thins[origin])
            events.append(Flushed())
            next_id += 1
        elif action == "delete" and len(thins) > 1:
            dev_id = rng.choice(list(thins))
            thins.pop(dev_id).close()
            events.append(Gone(dev_id))
            pool.delete(dev_id)
            events.append(Flushed())
        elif action == "flush":
            with thins[rng.choice(list(thins))].open() as file:
                file.flush()
            events.append(Flushed())
        else:
            dev_id = rng.choice(list(thins))
            offset = rng.randrange(VOLUME // SECTOR) * SECTOR
            offset = offset if rng.random() < 0.6 else offset // BLOCK * BLOCK
            length = min(rng.choice([1, 8, 16, 128, 200]) * SECTOR, VOLUME - offset)
            fill = fill % 255 + 1
            worker = BlockingWorker(thins[dev_id].device.worker())
            if action == "discard":
                events.append(Issue(dev_id, offset, length, 0))
                worker.discard(offset, length)
            else:
                events.append(Issue(dev_id, offset, length, fill))
                worker.write(offset, bytes([fill]) * length)
            worker.close()
    pool.close()
    events.append(Flushed())
    return events


@dataclass
class World:
    """What may be found after a cut: the state of the last flush, and what was done since."""

    floor: dict[int, bytearray] = field(default_factory=dict)
    now: dict[int, bytearray] = field(default_factory=dict)
    since: list[Issue] = field(default_factory=list)
    fresh: set[int] = field(default_factory=set)

    def advance(self, event: Event) -> None:
        if isinstance(event, Issue):
            self.now[event.dev_id][event.offset : event.offset + event.length] = bytes([event.fill]) * event.length
            self.since.append(event)
        elif isinstance(event, Snap):
            self.now[event.dev_id] = bytearray(VOLUME) if event.origin is None else bytearray(self.now[event.origin])
            self.fresh.add(event.dev_id)
        elif isinstance(event, Gone):
            del self.now[event.dev_id]
        elif isinstance(event, Flushed):
            self.floor = {dev_id: bytearray(data) for dev_id, data in self.now.items()}
            self.since.clear()
            self.fresh.clear()

    def check(self, pool: Pool) -> None:
        for dev_id in sorted(self.floor.keys() | self.now.keys()):
            maybe = dev_id in self.fresh or dev_id not in self.now
            try:
                thin = pool.open_thin(dev_id, VOLUME)
            except OSError:
                assert maybe, f"thin {dev_id} is gone"
                continue
            with thin.open() as file:
                got = file.read(VOLUME) or b""
            if dev_id in self.fresh:
                assert got == self.now[dev_id], f"snapshot {dev_id} is not what its origin was"
                continue
            floor = self.floor[dev_id]
            if got == floor:
                continue
            for at in range(0, VOLUME, SECTOR):
                sector = got[at : at + SECTOR]
                if sector != floor[at : at + SECTOR]:
                    later = [i.fill for i in self.since if i.dev_id == dev_id and i.offset <= at < i.offset + i.length]
                    assert any(
                        sector == bytes([fill]) * SECTOR for fill in later
                    ), f"thin {dev_id} byte {at}: {sector[:4]!r}, flushed {floor[at : at + 4]!r}, later {later}"


class Disks:
    """Both devices as the cut leaves them."""

    def __init__(self) -> None:
        self.durable = [bytearray(METADATA), bytearray(DATA)]
        self.pending: list[list[Write]] = [[], []]

    def advance(self, event: Event) -> None:
        if isinstance(event, Write):
            self.pending[event.device].append(event)
        elif isinstance(event, Flush):
            for write in self.pending[event.device]:
                self.durable[event.device][write.offset : write.offset + len(write.data)] = write.data
            self.pending[event.device].clear()

    def cut(self, rng: random.Random) -> list[bytearray]:
        images = [bytearray(image) for image in self.durable]
        mood = rng.choice(["all", "none", "some", "some", "torn"])
        for device, image in enumerate(images):
            for write in self.pending[device]:
                fate = mood if mood != "some" else rng.choice(["all", "none", "torn"])
                for at in range(0, len(write.data), SECTOR):
                    if fate == "all" or (fate == "torn" and rng.random() < 0.5):
                        part = write.data[at : at + SECTOR]
                        image[write.offset + at : write.offset + at + len(part)] = part
        return images


@pytest.mark.parametrize("seed", range(5))
def test_cuts(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    features = () if seed % 2 else ("no_discard_passdown",)
    events = workload(rng, 150, features)
    first = next(index for index, event in enumerate(events) if isinstance(event, Flushed))
    moments = [index for index, event in enumerate(events) if index >= first and isinstance(event, Write | Flush)]
    chosen = set(rng.sample(moments, min(120, len(moments))))
    assert len(chosen) >= 100
    world, disks = World(), Disks()
    for index, event in enumerate(events):
        if index in chosen:
            metadata, data = disks.cut(rng)
            image = tmp_path / "meta.img"
            image.write_bytes(metadata)
            check_file(image)
            storages = [MemoryStorage(METADATA), MemoryStorage(DATA)]
            storages[0].write(0, metadata)
            storages[1].write(0, data)
            with Pool(*storages, features=features) as pool:
                world.check(pool)
        world.advance(event)
        disks.advance(event)
