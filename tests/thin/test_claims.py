"""What was claimed for a cached volume is there when it is written down, whatever the other volumes do."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from userdm import Pool, Thin
from userdm.dataplane import Parked
from userdm.targets.thin_pool import ThinPool
from userdm.thin import claims
from userdm.thin.claims import Claim
from userdm.thin.pool import Pool as ThinPoolCore

MakePool = Callable[..., Pool]
MIB = 1 << 20
BLOCK = 65536
PAGE = bytes(4096)


def core(pool: Pool) -> ThinPoolCore:
    assert pool.device.live is not None
    target = pool.device.live.entries[0].target
    assert isinstance(target, ThinPool)
    return target.pool


class Volume:
    """A volume, and what is dirty in the page cache above it: one page each of some of its blocks."""

    def __init__(self, thin: Thin, blocks: int) -> None:
        self.thin = thin
        self.blocks = blocks
        self.worker = thin.device.worker()
        self.claim: Claim | None = None
        self.dirty: set[int] = set()
        self.left = False

    def rise(self) -> bool:
        assert self.claim is None
        try:
            self.claim = self.thin.device.caching.claim(self._leave, self.fall)
        except OSError:
            return False
        self.left = False
        return True

    def _leave(self) -> None:
        self.left = True

    def write(self, block: int) -> None:
        """As a request of the export's; waits for commits, and for others' claims as `Parked` says."""
        while True:
            try:
                return self.worker.write(block * BLOCK, memoryview(PAGE))
            except Parked as parked:
                if parked.gate is core(self.thin.pool).claims._gate:
                    assert self.claim is None
                    raise
                assert parked.gate.wait(60)

    def write_down(self, block: int) -> None:
        self.write(block)
        self.dirty.discard(block)

    def fall(self) -> None:
        if self.claim is not None:
            while self.dirty:
                self.write_down(next(iter(self.dirty)))
            claim, self.claim = self.claim, None
            self.thin.device.caching.release(claim)


class Scene:
    """Some volumes, larger together than their pool, under random work."""

    def __init__(self, pool: Pool, volumes: list[Volume], chance: random.Random) -> None:
        self.pool = core(pool)
        self.volumes = volumes
        self.chance = chance
        self.rises = self.called_back = self.full = 0

    def direct_write(self, volume: Volume, block: int) -> None:
        while True:
            try:
                return volume.write(block)
            except Parked:
                others = [other for other in self.volumes if other.claim is not None]
                assert others
                for other in others:
                    assert other.left
                    self.called_back += 1
                    other.fall()
            except OSError as error:
                assert error.errno in (errno.ENOSPC, errno.EIO)
                # nobody was refused a block that somebody else had only claimed
                assert all(other.claim is None or other.claim.blocks == 0 for other in self.volumes)
                self.full += 1
                return None

    def cached_write(self, volume: Volume, block: int) -> None:
        claim = volume.claim
        assert claim is not None
        if claim.pages is not None and len(volume.dirty) >= claim.pages:
            volume.write_down(self.chance.choice(sorted(volume.dirty)))
        volume.dirty.add(block)
        # the thread that looks after it comes in its time
        if volume.left and self.chance.random() < 0.05:
            volume.fall()

    def step(self) -> None:
        volume = self.chance.choice(self.volumes)
        block = self.chance.randrange(volume.blocks)
        what = self.chance.random()
        if what < 0.90:
            if volume.claim is not None:
                self.cached_write(volume, block)
            else:
                self.direct_write(volume, block)
        elif what < 0.94:
            if volume.claim is not None and volume.dirty:
                volume.write_down(self.chance.choice(sorted(volume.dirty)))
        elif what < 0.96:
            # the kernel writes down and forgets what a discard covers
            count = self.chance.randrange(1, 40)
            for each in sorted(volume.dirty & set(range(block, block + count))):
                volume.write_down(each)
            length = min(count, volume.blocks - block)
            try:
                volume.worker.discard(block * BLOCK, length * BLOCK)
            except OSError:
                # a pool that is read-only by now
                assert all(other.claim is None for other in self.volumes)
        elif volume.claim is None:
            self.rises += volume.rise()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LEAST_PAGES", 4)
    monkeypatch.setattr(claims, "OVERSHOOT", 4)
    monkeypatch.setattr(claims, "MARGIN", 4)


def scene(make_pool: MakePool, folder: Path, seed: int, sizes: list[int], metadata: int, data: int = 640) -> Scene:
    """``sizes`` and ``data`` in blocks, ``metadata`` in bytes."""
    for name, length in (("meta.img", metadata), ("data.img", data * BLOCK)):
        with (folder / name).open("wb") as file:
            file.truncate(length)
    pool = make_pool(features=("skip_block_zeroing", "error_if_no_space"))
    volumes = [Volume(pool.create_thin(number, blocks * BLOCK), blocks) for number, blocks in enumerate(sizes)]
    return Scene(pool, volumes, random.Random(seed))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("small")
def test_a_promise_is_kept(make_pool: MakePool, tmp_path: Path, seed: int) -> None:
    made = scene(make_pool, tmp_path, seed, [400, 300, 600, 100], 8 * MIB)
    for _ in range(1500):
        made.step()
    for volume in made.volumes:
        volume.fall()
    assert made.rises > 3
    assert made.called_back + made.full > 0


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.usefixtures("small")
def test_a_promise_is_kept_while_the_metadata_runs_out(make_pool: MakePool, tmp_path: Path, seed: int) -> None:
    """Each snapshot makes nodes that are copied then."""
    made = scene(make_pool, tmp_path, seed, [200, 150], 6 * MIB, data=8000)
    refused = 0
    for step in range(5000):
        made.step()
        if step % 3 == 0 and refused < 20:
            try:
                made.pool.messages.create_snap(10 + step, step // 3 % 2)
            except OSError as error:
                assert error.errno in (errno.ENOSPC, errno.EOPNOTSUPP)
                refused += 1
    for volume in made.volumes:
        volume.fall()
    assert made.rises > 3
    # it came to the point where nothing can be promised
    assert refused > 0
    assert not any(volume.rise() for volume in made.volumes)
