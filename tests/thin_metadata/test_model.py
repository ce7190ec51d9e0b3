"""The metadata against a dict of blocks, driven by Hypothesis; thin_check and thin_dump after each commit."""

from __future__ import annotations

import errno
from copy import deepcopy
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from support.thin import content, dumped, thin_check, thin_dump
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata, SealedCommit

DATA = 4000
DEVICES = st.integers(0, 5)
BLOCKS = st.one_of(st.integers(0, 40), st.integers(0, 3000), st.sampled_from([1 << 30, 1 << 40]))
LENGTHS = st.one_of(st.integers(1, 3), st.integers(1, 700))


@dataclass
class Device:
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Virtual block to (data block, time)."""
    snapshotted: int = 0


@dataclass
class State:
    devices: dict[int, Device] = field(default_factory=dict)
    held: dict[int, Device] | None = None
    time: int = 0
    transaction: int = 0

    def owners(self, pblock: int) -> list[int]:
        """The devices, and -1 for the metadata snapshot, that map a data block."""
        found = [
            dev for dev, device in self.devices.items() for mapped, _ in device.blocks.values() if mapped == pblock
        ]
        for device in (self.held or {}).values():
            found += [-1 for mapped, _ in device.blocks.values() if mapped == pblock]
        return found

    def used(self) -> set[int]:
        every = [*self.devices.values(), *(self.held or {}).values()]
        return {pblock for device in every for pblock, _ in device.blocks.values()}


class MetadataMachine(RuleBasedStateMachine):
    metadata_bytes = 1 << 20
    may_be_full = False

    @initialize()
    def start(self) -> None:
        self.storage = MemoryStorage(self.metadata_bytes)
        self.pool = PoolMetadata.open(self.storage, 128)
        self.pool.resize_data(DATA)
        self.now = State()
        self.durable = State()
        self.flying: tuple[SealedCommit, State] | None = None
        self.reserved: list[tuple[int, int]] = []
        self.commit()

    def full(self, error: OSError) -> None:
        """A refusal for want of space changes nothing, and is allowed only where there is little."""
        assert error.errno == errno.ENOSPC, error
        assert self.may_be_full or "data block" in str(error), error
        assert self.pool.failed is None

    @rule(dev=DEVICES)
    def create(self, dev: int) -> None:
        try:
            self.pool.create_thin(dev)
        except OSError as error:
            if dev in self.now.devices:
                assert error.errno == errno.EEXIST
            else:
                self.full(error)
            return
        assert dev not in self.now.devices
        self.now.devices[dev] = Device(snapshotted=self.now.time)

    @rule(dev=DEVICES, origin=DEVICES)
    def snap(self, dev: int, origin: int) -> None:
        try:
            self.pool.create_snap(dev, origin)
        except OSError as error:
            if dev in self.now.devices:
                assert error.errno == errno.EEXIST
            elif origin not in self.now.devices:
                assert error.errno == errno.ENODATA
            else:
                self.full(error)
            return
        self.now.time += 1
        self.now.devices[origin].snapshotted = self.now.time
        self.now.devices[dev] = deepcopy(self.now.devices[origin])

    @rule(dev=DEVICES)
    def delete(self, dev: int) -> None:
        try:
            self.pool.delete(dev)
        except OSError as error:
            if dev not in self.now.devices:
                assert error.errno == errno.ENODATA
            else:
                self.full(error)
            return
        del self.now.devices[dev]

    @precondition(lambda self: self.now.devices)
    @rule(data=st.data(), vblock=BLOCKS, length=LENGTHS)
    def insert(self, data: st.DataObject, vblock: int, length: int) -> None:
        dev = data.draw(st.sampled_from(sorted(self.now.devices)))
        device, thin = self.now.devices[dev], self.pool.open_thin(dev)
        while length:
            try:
                pblock, count = self.pool.reserve_data(length)
            except OSError as error:
                self.full(error)
                return
            assert not set(range(pblock, pblock + count)) & (self.now.used() | self.durable.used())
            try:
                thin.insert(vblock, pblock, count)
            except OSError as error:
                self.full(error)
                self.pool.unreserve_data(pblock, count)
                return
            for at in range(count):
                device.blocks[vblock + at] = (pblock + at, self.now.time)
            vblock, length = vblock + count, length - count

    @precondition(lambda self: self.now.devices)
    @rule(data=st.data(), begin=BLOCKS, length=st.one_of(LENGTHS, st.just(1 << 63)))
    def remove(self, data: st.DataObject, begin: int, length: int) -> None:
        dev = data.draw(st.sampled_from(sorted(self.now.devices)))
        device = self.now.devices[dev]
        try:
            freed = self.pool.open_thin(dev).remove(begin, begin + length)
        except OSError as error:
            self.full(error)
            return
        gone = {vblock: device.blocks.pop(vblock) for vblock in list(device.blocks) if begin <= vblock < begin + length}
        unmapped = {pblock for pblock, _ in gone.values()} - self.now.used()
        assert sorted(block for first, count in freed for block in range(first, first + count)) == sorted(unmapped)

    @rule(count=st.integers(1, 300))
    def reserve(self, count: int) -> None:
        try:
            run = self.pool.reserve_data(count)
        except OSError as error:
            self.full(error)
            return
        assert not set(range(run[0], sum(run))) & (self.now.used() | self.durable.used())
        self.reserved.append(run)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def unreserve(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.reserved))
        self.reserved.remove(run)
        self.pool.unreserve_data(*run)

    @rule()
    def hold(self) -> None:
        try:
            self.pool.reserve_metadata_snap()
        except OSError as error:
            if self.now.held is not None:
                assert error.errno == errno.EBUSY
            else:
                self.full(error)
            return
        self.now.held = deepcopy(self.now.devices)

    @rule()
    def release(self) -> None:
        try:
            self.pool.release_metadata_snap()
        except OSError as error:
            if self.now.held is None:
                assert error.errno == errno.EINVAL
            else:
                self.full(error)
            return
        self.now.held = None

    @rule(old=st.integers(0, 2), new=st.integers(0, 2))
    def transaction_id(self, old: int, new: int) -> None:
        try:
            self.pool.set_transaction_id(old, new)
        except OSError as error:
            assert error.errno == errno.EINVAL
            assert old != self.now.transaction
            return
        assert old == self.now.transaction
        self.now.transaction = new

    @precondition(lambda self: self.flying is None)
    @rule()
    def seal(self) -> None:
        sealed = self.pool.seal()
        if sealed is not None:
            self.flying = (sealed, deepcopy(self.now))

    @precondition(lambda self: self.flying is not None)
    @rule()
    def finish(self) -> None:
        assert self.flying is not None
        sealed, state = self.flying
        sealed.write(self.storage, lambda: None)
        lost = self.durable.used() - state.used()
        freed = {b for first, count in self.pool_finish(sealed) for b in range(first, first + count)}
        assert lost <= freed
        assert not freed & state.used()
        self.durable, self.flying = state, None
        thin_check(self.storage)
        theirs = thin_dump(self.storage)
        again = PoolMetadata.open(self.storage, None, readonly=True)
        assert dumped(again) == theirs

    def pool_finish(self, sealed: SealedCommit) -> list[tuple[int, int]]:
        runs = self.pool.finish(sealed, True)
        self.pool.release_data(runs)
        return runs

    @rule()
    def commit(self) -> None:
        if self.flying is None:
            self.seal()
        if self.flying is not None:
            self.finish()

    @rule()
    def crash(self) -> None:
        """Open again what is on disk; what was not committed never happened."""
        self.flying, self.reserved = None, []
        self.now = deepcopy(self.durable)
        self.pool = PoolMetadata.open(self.storage, 128)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool, now = self.pool, self.now
        assert [dev for dev, _ in pool.devices()] == sorted(now.devices)
        assert (pool.time, pool.transaction_id, bool(pool.held_root)) == (
            now.time,
            now.transaction,
            now.held is not None,
        )
        used = now.used()
        reserved = sum(count for _, count in self.reserved)
        assert pool.nr_data_blocks - pool.free_data_blocks == len(used) + reserved
        for dev, device in now.devices.items():
            thin = pool.open_thin(dev)
            assert thin.mapped_blocks == len(device.blocks)
            assert thin.snapshotted_time == device.snapshotted
            assert thin.highest_mapped() == max(device.blocks, default=None)
            found: dict[int, tuple[int, bool]] = {}
            for run in thin.lookup_runs(0, 1 << 64):
                for at in range(run.length):
                    found[run.vblock + at] = (run.pblock + at, run.shared)
            assert found == {v: (p, t < device.snapshotted) for v, (p, t) in device.blocks.items()}
            for vblock in [*sorted(device.blocks)[::37], 17]:
                assert thin.lookup(vblock) == found.get(vblock)
                if thin.exclusive(vblock):
                    pblock = found[vblock][0]
                    assert now.owners(pblock) == [dev]
                    assert set(self.durable.owners(pblock)) <= {dev}

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.failed is None
            before = content(self.storage)
            thin_check(self.storage)
            assert content(self.storage) == before


class SmallMachine(MetadataMachine):
    """Hardly any room for the metadata: every change succeeds, or is refused before it begins."""

    metadata_bytes = 60 * 4096
    may_be_full = True


quick = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestMetadata = MetadataMachine.TestCase
TestMetadata.settings = quick
TestSmallMetadata = SmallMachine.TestCase
TestSmallMetadata.settings = quick
