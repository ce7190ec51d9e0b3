"""An active thin volume: what a read, write or discard of it means. Offsets and lengths in bytes.

Follows drivers/md/dm-thin.c in behaviour, with two differences that are allowed to us: the last sharer of a block
writes in place once it is the only owner, and what a discard covers reads as zeros even in part blocks
(a loop device sends write-zeroes and discards as one and the same request).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from userdm.segment import Copy, Direct, Fail, Gate, Intent, Place, Segment, Wait, Zero
from userdm.thin.host import Host
from userdm.thin.metadata import ThinMetadata
from userdm.thin.modes import Mode

if TYPE_CHECKING:
    from userdm.thin.pool import Pool


METADATA_ERROR = errno.EIO
"""What a request gets whose metadata operation failed, whatever it was: ENOSPC, say, is of data only."""


class Provision:
    """New homes for ``count`` blocks from ``vblock`` at ``pblock``: mapped when the bytes are there."""

    __slots__ = ("count", "gate", "pblock", "replaces", "vblock", "volume")

    def __init__(self, volume: Volume, vblock: int, pblock: int, count: int, replaces: bool) -> None:
        self.volume = volume
        self.vblock = vblock
        self.pblock = pblock
        self.count = count
        self.replaces = replaces
        self.gate = Gate()
        for block in range(vblock, vblock + count):
            volume.moving[block] = self

    def done(self, number: int) -> None:
        """Segment's token: 0 maps the blocks, anything else gives them back. OSError when mapping fails."""
        pool = self.volume.pool
        try:
            with pool.lock:
                try:
                    if number == 0:
                        self._map()
                    else:
                        pool.unreserve(self.pblock, self.count)
                finally:
                    for block in range(self.vblock, self.vblock + self.count):
                        del self.volume.moving[block]
        finally:
            self.gate.open()

    def _map(self) -> None:
        pool, volume = self.volume.pool, self.volume
        try:
            pool.check_writable()
            volume.metadata.insert(self.vblock, self.pblock, self.count)
        except OSError as error:
            if pool.metadata.failed is None:
                # nothing has changed; otherwise nobody knows whose the blocks are
                pool.unreserve(self.pblock, self.count)
            pool.metadata_error(error)
            raise OSError(METADATA_ERROR, error.strerror) from error
        pool.changed()
        if self.replaces:
            volume.revoke(self.vblock, self.count)


class Volume:
    """One thin device of a pool, opened by one or more tables. Every method but `resolve` wants the pool's lock."""

    def __init__(self, pool: Pool, metadata: ThinMetadata) -> None:
        self.pool = pool
        self.metadata = metadata
        self.users = 0
        self.moving: dict[int, Provision] = {}
        """Blocks on the way to a new home: their writers wait, their readers read the old one."""
        self.hosts: dict[object, tuple[Host, int]] = {}
        """The live tables that have the volume: their mapped device, and the byte of it at which the volume starts."""

    def active(self) -> list[Host]:
        """The devices through which writes may be going on."""
        return [host for host, _ in self.hosts.values() if not host.suspended]

    def revoke(self, vblock: int, count: int) -> None:
        size = self.pool.block_bytes
        for host, start in self.hosts.values():
            host.revoke(start + vblock * size, count * size)

    def forget(self) -> None:
        """From now on nobody acts on a mapping that was handed out before."""
        for host, _ in self.hosts.values():
            host.fence()

    def quiesce(self) -> None:
        """Nobody acts any more on a mapping that was handed out before. Who comes next waits for the pool's lock."""
        hosts = [host for host, _ in self.hosts.values()]
        for host in hosts:
            host.fence()
        for host in hosts:
            host.drain(requests=False)

    def grace(self) -> list[Callable[[], bool]]:
        return [host.grace() for host, _ in self.hosts.values()]

    def resolve(self, offset: int, length: int, intent: Intent, origin: Place | None) -> Sequence[Segment]:
        """The segments of a range; ``origin`` is the external origin, read where the volume has no block."""
        pool = self.pool
        with pool.lock:
            if pool.gate is not None:
                return [Wait(length, pool.gate)]
            if pool.mode is Mode.FAIL:
                return [Fail(length, errno.EIO)]
            request = _Request(self, offset, length, intent, origin)
            try:
                return request.read() if intent is Intent.READ else request.change()
            except OSError as error:
                request.give_back()
                pool.metadata_error(error)
                return [Fail(length, METADATA_ERROR)]


class _Request:
    """One range of one volume, answered under the pool's lock."""

    def __init__(self, volume: Volume, offset: int, length: int, intent: Intent, origin: Place | None) -> None:
        self.volume = volume
        self.pool = volume.pool
        self.block = volume.pool.block_bytes
        self.offset = offset
        self.end = offset + length
        self.discard = intent is Intent.DISCARD
        """Holes stay holes; a write of zeros fills them, as on the kernel, which has to write the zeros."""
        self.origin = origin
        self.out: list[Segment] = []

    def give_back(self) -> None:
        """Cancel what was reserved, for an answer that is not given. The lock is held, so not through done()."""
        for segment in self.out:
            token = segment.token if isinstance(segment, Direct | Copy) else None
            if isinstance(token, Provision):
                self.pool.unreserve(token.pblock, token.count)
                for block in range(token.vblock, token.vblock + token.count):
                    del self.volume.moving[block]
                token.gate.open()

    def _pieces(self) -> Iterator[tuple[int, int, int | None, bool]]:
        """(first vblock, blocks, first pblock or None for a hole, shared) over the range, in order."""
        first, last = self.offset // self.block, (self.end - 1) // self.block + 1
        at = first
        for run in self.volume.metadata.lookup_runs(first, last):
            if run.vblock > at:
                yield at, run.vblock - at, None, False
            yield run.vblock, run.length, run.pblock, run.shared
            at = run.vblock + run.length
        if at < last:
            yield at, last - at, None, False

    def _clip(self, vblock: int, blocks: int) -> tuple[int, int]:
        """The part of the blocks that the request covers, as (first byte, end byte) of the volume."""
        return max(vblock * self.block, self.offset), min((vblock + blocks) * self.block, self.end)

    def _mapped(self, vblock: int, blocks: int, pblock: int, writable: bool) -> None:
        low, high = self._clip(vblock, blocks)
        before, after = low - vblock * self.block, (vblock + blocks) * self.block - high
        where = pblock * self.block + before
        self.out.append(Direct(high - low, self.pool.data, where, writable=writable, before=before, after=after))

    def _origin(self, low: int, high: int) -> list[Segment]:
        """What the volume's bytes low to high are where it has no block: the external origin's, or zeros."""
        size = self.origin.size if self.origin is not None else 0
        out: list[Segment] = []
        if self.origin is not None and low < size:
            # never cached: a block that is provisioned later must show
            out.append(Direct(min(high, size) - low, self.origin, low, cacheable=False, writable=False))
        if high > max(low, size):
            out.append(Zero(high - max(low, size)))
        return out

    def read(self) -> list[Segment]:
        for vblock, blocks, pblock, shared in self._pieces():
            if pblock is None:
                self.out.extend(self._origin(*self._clip(vblock, blocks)))
            else:
                self._mapped(vblock, blocks, pblock, not shared)
        return self.out

    def change(self) -> list[Segment]:
        """Write, discard, write-zeroes."""
        moving = self.volume.moving
        if moving:
            for block in range(self.offset // self.block, (self.end - 1) // self.block + 1):
                if block in moving:
                    return [Wait(self.end - self.offset, moving[block].gate)]
        # the kernel lets a discard of a read-only pool do nothing; ours may have been asked for zeros
        if self.discard and self.origin is None and self.pool.features.discard and not self.pool.readonly:
            self._unmap()
        for vblock, blocks, pblock, shared in self._pieces():
            if pblock is not None and not shared:
                self._mapped(vblock, blocks, pblock, True)
            elif not self._new(vblock, blocks, pblock):
                break
        return self.out

    def _unmap(self) -> None:
        """Take the whole blocks of the range out of the mapping; what is left is answered as a write of zeros."""
        first, last = -(-self.offset // self.block), self.end // self.block
        if first >= last:
            return
        freed = self.volume.metadata.remove(first, last)
        self.volume.revoke(first, last - first)
        self.pool.discarded(freed)

    def _new(self, vblock: int, blocks: int, pblock: int | None) -> bool:
        """Answer for blocks that have no home of their own; False when the answer ends in a wait or an error."""
        if self.discard and pblock is None and self.origin is None:
            low, high = self._clip(vblock, blocks)
            self.out.append(Zero(high - low))
            return True
        at, end = vblock, vblock + blocks
        while at < end:
            old = None if pblock is None else pblock + at - vblock
            if old is not None and self._exclusive(at):
                # from now on it is not even taken for shared: nobody may move it while others write where it is
                self.volume.metadata.renew(at, old)
                self.pool.changed()
                self._mapped(at, 1, old, True)
                at += 1
                continue
            low, high = self._clip(at, 1)
            wanted = 1
            if high - low == self.block:
                # a whole block copies nothing, and whole blocks in a row are one piece
                while at + wanted < end and (at + wanted + 1) * self.block <= self.end:
                    if old is not None and self._exclusive(at + wanted):
                        break
                    wanted += 1
            new = self._reserve(wanted, low)
            if new is None:
                return False
            self._home(at, new[0], new[1], old)
            at += new[1]
        return True

    def _exclusive(self, vblock: int) -> bool:
        """Whether a shared block may be written in place: it is ours alone, and no reader of another volume that was
        sent to it before is still on the way. The kernel does not look; nor do we where it would refuse the write."""
        pool = self.pool
        return pool.mode is Mode.WRITE and not pool.settling and self.volume.metadata.exclusive(vblock)

    def _reserve(self, wanted: int, low: int) -> tuple[int, int] | None:
        """Blocks for new homes; without any, the answer from byte ``low`` on is to wait or to fail."""
        if self.pool.readonly:
            self.out.append(Fail(self.end - low, errno.EIO))
            return None
        gate = self.pool.claims.admit(self.volume, wanted)
        if gate is not None:
            self.out.append(Wait(self.end - low, gate))
            return None
        new = self.pool.reserve(wanted)
        if isinstance(new, tuple):
            return new
        self.out.append(Fail(self.end - low, errno.ENOSPC) if new is None else Wait(self.end - low, new))
        return None

    def _home(self, vblock: int, pblock: int, blocks: int, old: int | None) -> None:
        """A new home at ``pblock``: written straight where the request covers it, otherwise composed."""
        token = Provision(self.volume, vblock, pblock, blocks, old is not None)
        low, high = self._clip(vblock, blocks)
        start = vblock * self.block
        whole = high - low == blocks * self.block
        where = pblock * self.block
        if whole or (old is None and self.origin is None and not self.pool.features.zero_new_blocks):
            self.out.append(Direct(high - low, self.pool.data, where + low - start, cacheable=False, token=token))
            return
        if old is not None:
            source: list[Segment] = [Direct(self.block, self.pool.data, old * self.block)]
        else:
            source = self._origin(start, start + self.block)
        self.out.append(Copy(high - low, low - start, self.block, source, self.pool.data, where, token))
