"""Hypothesis drives a pool against a dict of bytes; thin_check reads the metadata after each round."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.check import check_file
from userdm import Pool, Thin

BLOCK = 65536
SIZE = 5 * BLOCK + 3 * 512
IDS = st.integers(0, 5)
OFFSETS = st.one_of(
    st.integers(0, SIZE - 1),
    st.integers(0, 5).map(lambda block: block * BLOCK),
    st.integers(1, 5).map(lambda block: block * BLOCK - 512),
)
LENGTHS = st.one_of(st.integers(1, 3 * BLOCK), st.sampled_from([1, 512, 4096, BLOCK, 2 * BLOCK, SIZE]))


class PoolModel(RuleBasedStateMachine):
    """Every volume beside a bytearray. ``fill`` makes each write's bytes tell which write they came from."""

    def __init__(self) -> None:
        super().__init__()
        # in memory where there is such a folder: what is flushed is not what this is about
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(prefix="userdm-model-", dir=memory)
        self.metadata = Path(self.folder.name) / "meta.img"
        self.data = Path(self.folder.name) / "data.img"
        self.model: dict[int, bytearray] = {}
        self.open: dict[int, Thin] = {}
        self.fill = 0

    @initialize(large=st.booleans())
    def start(self, large: bool) -> None:
        self.options = {"block_sectors": 384 if large else 128}
        self.pool = Pool(self.metadata, self.data, create=128 * 384 * 512, **self.options)  # type: ignore[arg-type]

    def thin(self, dev_id: int) -> Thin:
        if dev_id not in self.open:
            self.open[dev_id] = self.pool.open_thin(dev_id, SIZE)
        return self.open[dev_id]

    def pick(self, dev_id: int) -> int:
        """One of the volumes that there are."""
        there = sorted(self.model)
        return there[dev_id % len(there)]

    @rule(dev_id=IDS)
    def create(self, dev_id: int) -> None:
        if dev_id not in self.model:
            self.pool.message(f"create_thin {dev_id}")
            self.model[dev_id] = bytearray(SIZE)

    @precondition(lambda self: self.model)
    @rule(dev_id=IDS, origin=IDS)
    def snapshot(self, dev_id: int, origin: int) -> None:
        origin = self.pick(origin)
        if dev_id not in self.model:
            self.pool.message(f"create_snap {dev_id} {origin}")
            self.model[dev_id] = bytearray(self.model[origin])

    @precondition(lambda self: self.model)
    @rule(dev_id=IDS, offset=OFFSETS, length=LENGTHS)
    def write(self, dev_id: int, offset: int, length: int) -> None:
        dev_id = self.pick(dev_id)
        length = min(length, SIZE - offset)
        self.fill = self.fill % 255 + 1
        with self.thin(dev_id).open() as file:
            file.seek(offset)
            assert file.write(bytes([self.fill]) * length) == length
        self.model[dev_id][offset : offset + length] = bytes([self.fill]) * length

    @precondition(lambda self: self.model)
    @rule(dev_id=IDS, offset=OFFSETS, length=LENGTHS, zero=st.booleans())
    def discard(self, dev_id: int, offset: int, length: int, zero: bool) -> None:
        dev_id = self.pick(dev_id)
        length = min(length, SIZE - offset)
        worker = self.thin(dev_id).device.worker()
        (worker.zero if zero else worker.discard)(offset, length)
        worker.close()
        self.model[dev_id][offset : offset + length] = bytes(length)

    @precondition(lambda self: self.model)
    @rule(dev_id=IDS)
    def delete(self, dev_id: int) -> None:
        dev_id = self.pick(dev_id)
        thin = self.open.pop(dev_id, None)
        if thin is not None:
            thin.close()
        self.pool.delete(dev_id)
        del self.model[dev_id]

    @precondition(lambda self: self.model)
    @rule(dev_id=IDS)
    def flush(self, dev_id: int) -> None:
        with self.thin(self.pick(dev_id)).open() as file:
            file.flush()

    @rule(reserve=st.booleans())
    def metadata_snap(self, reserve: bool) -> None:
        held = self.pool.status().split()[3] != "-"
        if reserve != held:
            self.pool.message("reserve_metadata_snap" if reserve else "release_metadata_snap")

    @rule()
    def reopen(self) -> None:
        self.pool.close()
        self.open.clear()
        check_file(self.metadata)
        self.pool = Pool(self.metadata, self.data, **self.options)  # type: ignore[arg-type]

    @invariant()
    def same(self) -> None:
        for dev_id, expected in self.model.items():
            with self.thin(dev_id).open() as file:
                got = file.read(SIZE) or b""
            assert got == expected, f"thin {dev_id} differs first at byte " + str(
                next(at for at in range(SIZE) if got[at] != expected[at])
            )

    @invariant()
    def checked(self) -> None:
        if hasattr(self, "pool"):
            self.pool.mapper.suspend(self.pool.device)
            check_file(self.metadata)
            self.pool.mapper.resume(self.pool.device)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
            check_file(self.metadata)
        self.folder.cleanup()


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
