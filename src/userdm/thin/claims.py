"""Room in a pool for what lies in the page cache above its volumes and is not written down yet.

A device that lets the kernel cache its writes (export/cached.py) holds a `Claim`: so many new blocks at most can what
is dirty still want. The pool gives no block to anybody as long as that would break a claim: first every claim is
called back, which means that what is dirty is written down, and only then the asker has his turn. So a cached write
is never told that the pool is full, and a direct one is told at the same block as without any cache.

A claim is one of two kinds. *Exposed*: the volume has no more blocks to get than that; exact, and it shrinks with
each block that it gets. *Bounded*: a number of dirty pages, which the kernel keeps to (bdi max_ratio, strict_limit),
each of which may want a block; twice that and some more is set aside, since the kernel looks at the number only now
and then, and what is written down while the claim is called back makes room for a little more.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from userdm.segment import Gate
from userdm.thin.modes import Mode
from userdm.thin.room import LEAF

if TYPE_CHECKING:
    from userdm.thin.pool import Pool
    from userdm.thin.volume import Volume

LEAST_PAGES = 1024
"""Of 4 KiB. A cache of fewer dirty pages is not worth having."""
OVERSHOOT = 2048
"""Pages by which a writer may pass the kernel's limit before he is held up, and some more."""
MARGIN = 64
MARGIN_PART = 64
"""A new claim leaves so many blocks free, and this part of the pool, so that it is not called back at once."""
FOREIGN_SECONDS = 10.0
"""Who has read or written the pool device itself will do so again."""


class Claim:
    """One volume's. ``leave`` asks its holder, and must not wait; ``settle`` returns when the holder has looked at
    `Claims.why_direct` and has acted on it."""

    def __init__(self, volume: Volume, blocks: int, leave: Callable[[], None], settle: Callable[[], None]) -> None:
        self.volume = volume
        self.leave = leave
        self.settle = settle
        self.pages: int | None = None
        """How many pages may be dirty; None for any number."""
        self.revoked = False
        metadata = volume.metadata
        highest = metadata.highest_mapped()
        self._beyond = highest is not None and highest >= blocks
        # by the kernel's rule nothing is shared that was mapped after the last snapshot; without any, nothing at all
        shared = metadata.mapped_blocks if metadata.snapshotted_time else 0
        self._blocks = blocks + shared

    @property
    def exposed(self) -> int:
        """Blocks that the volume can still get."""
        if self._beyond:
            return self._blocks
        return max(0, self._blocks - self.volume.metadata.mapped_blocks - len(self.volume.moving))

    @property
    def blocks(self) -> int:
        exposed = self.exposed
        return exposed if self.pages is None else min(exposed, 2 * self.pages + OVERSHOOT)


class Claims:
    """The claims on one pool. The pool's lock is held unless something else is said."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._claims: list[Claim] = []
        self._gate = Gate()
        """What waits for the claims that are being called back."""
        self._held: Counter[int | None] = Counter()
        self._foreign_until = 0.0
        self.paused = False
        """The pool is suspended, or about to be."""
        self.restoring = False
        """The claims of the process before us are not known: only what it may have cached gets blocks."""
        self.adopted: set[int] = set()
        """The ids of the volumes that it may have had cached."""

    def why_direct(self, volume: Volume) -> str | None:
        """Why the volume's device must not be cached; None when it may. With or without the pool's lock."""
        pool = self._pool
        if self.paused or pool.gate is not None:
            return "its pool is suspended"
        if pool.mode is not Mode.WRITE:
            return "its pool is read-only" if pool.readonly else "its pool is out of space"
        if volume.users != 1:
            return "another table has the volume as well"
        if self._held[volume.metadata.dev_id] or self._held[None]:
            return "a snapshot is being taken"
        if pool.metadata.held_root:
            return "its pool has a metadata snapshot, which others read"
        if pool.data.resolve is not None or getattr(pool.metadata_storage, "resolve", None) is not None:
            return "its pool lies on other mapped devices"
        if time.monotonic() < self._foreign_until:
            return "the pool device itself was read or written a moment ago"
        if any(claim.revoked and claim.volume is volume for claim in self._claims):
            return "its pool is low on space"
        return None

    # room

    def _floor(self) -> int:
        """Blocks that are left alone: the low water mark is to be passed by a write, not by its writing down."""
        pool = self._pool
        return 0 if pool.water.told else pool.water.data_blocks

    def _fits(self, wanted: int, volume: Volume | None) -> bool:
        """Whether every claim holds when the volume has got so many blocks more."""
        metadata = self._pool.metadata
        claimed = 0
        for claim in self._claims:
            blocks = claim.blocks
            if claim.volume is volume:
                blocks = min(blocks, max(0, claim.exposed - wanted))
            claimed += blocks
        free = metadata.free_data_blocks - wanted - self._floor()
        return free >= claimed and self._has_nodes(claimed + wanted)

    def _has_nodes(self, blocks: int) -> bool:
        """Whether the metadata has ample room for so many new mappings, wherever they are."""
        room, used = self._pool.metadata.room, self._pool.metadata.space.nr_used
        # each node may split for one mapping more, and what is split is at least a third full
        nodes = min(blocks, used + blocks // (LEAF // 3) + 1)
        # ample asks for room to copy all nodes, twice, and these will be among them
        return room.ample(3 * nodes)

    def admit(self, volume: Volume, wanted: int) -> Gate | None:
        """The volume is about to take new blocks: None, or what it must wait for. A cached one never waits: what
        it writes down is what was claimed."""
        if self.restoring:
            return None if volume.metadata.dev_id in self.adopted else self._gate
        if not self._claims:
            return None
        mine = any(claim.volume is volume for claim in self._claims)
        data = self._pool.metadata.data
        # who finds no free block now may put the pool into another mode, in which a claim is worth nothing
        if self._fits(wanted, volume) and (mine or data.nr_free - data.nr_held >= wanted):
            return None
        self._revoke()
        return None if mine else self._gate

    def _revoke(self) -> None:
        for claim in self._claims:
            if not claim.revoked:
                claim.revoked = True
                claim.leave()

    # claims; these take the pool's lock

    def claim(self, volume: Volume, size: int, leave: Callable[[], None], settle: Callable[[], None]) -> Claim:
        """Room for a device of ``size`` bytes; give it back with `release`. OSError that says why there is none."""
        pool = self._pool
        with pool.lock:
            why = self.why_direct(volume)
            if why is None and any(claim.revoked for claim in self._claims):
                why = "its pool is low on space"
            if why is not None:
                raise OSError(errno.EBUSY, why)
            claim = Claim(volume, -(-size // pool.block_bytes), leave, settle)
            metadata = pool.metadata
            claimed = sum(other.blocks for other in self._claims)
            margin = max(MARGIN, metadata.nr_data_blocks // MARGIN_PART)
            spare = metadata.free_data_blocks - self._floor() - margin - claimed
            exposed = claim.exposed
            if exposed and (exposed > spare or not self._has_nodes(claimed + exposed)):
                # half of it, so that others find some, too
                claim.pages = max(0, (spare // 2 - OVERSHOOT) // 2)
                while claim.pages and not self._has_nodes(claimed + claim.blocks):
                    claim.pages //= 2
                if claim.pages < LEAST_PAGES:
                    raise OSError(errno.ENOSPC, "its pool has too little space to spare")
            self._claims.append(claim)
            return claim

    def release(self, claim: Claim) -> None:
        """Nothing is dirty any more, nor will be."""
        with self._pool.lock:
            self._claims.remove(claim)
            gate = None
            if not any(other.revoked for other in self._claims):
                gate, self._gate = self._gate, Gate()
        if gate is not None:
            gate.open()

    def restored(self) -> None:
        """What the process before us had cached is written down."""
        with self._pool.lock:
            self.restoring = False
            self.adopted.clear()
            gate, self._gate = self._gate, Gate()
        gate.open()

    def settle(self) -> None:
        """Something has changed that `why_direct` looks at: returns when every holder has acted on it."""
        with self._pool.lock:
            claims = list(self._claims)
        for claim in claims:
            claim.settle()

    @contextmanager
    def direct(self, dev_id: int | None) -> Iterator[None]:
        """The device of this volume (None: of any) is not cached while the body runs."""
        with self._pool.lock:
            self._held[dev_id] += 1
        try:
            self.settle()
            yield
        finally:
            with self._pool.lock:
                self._held[dev_id] -= 1
                self._held += Counter()  # the zeros go

    def foreign(self) -> Gate | None:
        """Somebody reads or writes the pool device itself, below the volumes: what he must wait for, or None."""
        with self._pool.lock:
            self._foreign_until = time.monotonic() + FOREIGN_SECONDS
            self._revoke()
            return self._gate if self._claims else None
