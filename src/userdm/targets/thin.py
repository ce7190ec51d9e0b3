"""thin: a volume of a thin pool.

Table line:

    <start> <length> thin <pool device> <device id> [<external origin device>]

The device id is one that a create_thin or create_snap message made. A volume takes a block of the pool when it is first
written; what was never written reads as zeros, or as the external origin, which is never written.
Any length is allowed, shorter or longer than at any other time.

Status: <sectors mapped> <highest mapped sector>, or ``-`` for the second while nothing is mapped.
Kernel document: Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from userdm.segment import SECTOR, Direct, Intent, Place, Segment
from userdm.targets.base import Context, Flushable, Target, TargetError, count
from userdm.targets.thin_pool import ThinPool, device_id
from userdm.thin.claims import Claim
from userdm.thin.modes import Mode
from userdm.thin.pool import Pool


class Thin(Target):
    """One volume, active while its table is live."""

    name = "thin"
    version = (1, 22, 0)
    syntax = "<pool device> <device id> [<external origin device>]"

    def __init__(self, context: Context, arguments: Sequence[str]) -> None:
        super().__init__(context, arguments)
        count(arguments, 2, 3, self.syntax)
        self.origin: Place | None = None
        if len(arguments) == 3:
            if arguments[2] == arguments[0]:
                raise TargetError(errno.EINVAL, f"external origin device {arguments[2]!r}: must not be the pool device")
            self.origin = context.open("external origin device", arguments[2])
        self.pool_place = context.open("pool device", arguments[0])
        self.dev_id = device_id("device id", arguments[1])
        target = context.live_target(self.pool_place)
        if not isinstance(target, ThinPool):
            raise TargetError(errno.EINVAL, f"pool device {arguments[0]!r}: has no live thin-pool table")
        self.pool: Pool = target.pool
        if self.pool.mode is Mode.FAIL:
            raise TargetError(errno.EINVAL, f"pool device {arguments[0]!r}: the pool has failed")
        try:
            self.volume = self.pool.open_volume(self.dev_id)
        except OSError as error:
            raise TargetError(error.errno, f"device id {self.dev_id}: {error.strerror}") from error
        if self.pool.gate is not None and not context.restoring:
            self.pool.close_volume(self.volume)
            raise TargetError(errno.EINVAL, f"pool device {arguments[0]!r}: is suspended")
        # two ways to a volume, be it for the time of a reload: neither is cached
        self.pool.claims.settle()

    @property
    def places(self) -> Sequence[Place]:
        return (self.pool_place,) if self.origin is None else (self.pool_place, self.origin)

    @property
    def granule(self) -> int:
        return self.pool.block_bytes

    @property
    def discards(self) -> bool:
        return self.pool.features.discard

    @property
    def discard_granularity(self) -> int:
        return self.pool.block_bytes

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        segments = self.volume.resolve(offset, length, intent, self.origin)
        last = segments[-1]
        if isinstance(last, Direct):
            # the last block may reach past the end of the target
            last.after = min(last.after, self.length * SECTOR - offset - length)
        return segments

    def flush_points(self) -> Sequence[Flushable]:
        return (self.pool,)

    def table_line(self) -> str:
        if self.pool.mode is Mode.FAIL:
            return "Fail"
        origin = "" if self.origin is None else f" {self.context.describe(self.origin)}"
        return f"{self.context.describe(self.pool_place)} {self.dev_id}{origin}"

    def status_line(self, *, noflush: bool = False) -> str:
        pool = self.pool
        if not noflush:
            self.context.host.write_down()
        with pool.lock:
            if pool.mode is Mode.FAIL:
                return "Fail"
            try:
                sectors = self.volume.metadata.mapped_blocks * pool.block_sectors
                highest = self.volume.metadata.highest_mapped()
            except OSError:
                return "Error"
        return f"{sectors} {'-' if highest is None else (highest + 1) * pool.block_sectors - 1}"

    def why_direct(self) -> str | None:
        if self.origin is not None:
            return "it has an external origin"
        return self.pool.claims.why_direct(self.volume)

    def claim_cache(self, leave: Callable[[], None], settle: Callable[[], None]) -> Claim:
        return self.pool.claims.claim(self.volume, self.length * SECTOR, leave, settle)

    def resume(self) -> None:
        with self.pool.lock:
            if self.context.host.adopted:
                self.pool.claims.adopted.add(self.dev_id)
            self.volume.hosts[self] = (self.context.host, self.context.start * SECTOR)

    def postsuspend(self) -> None:
        with self.pool.lock:
            # what waits for space waits for the device from now on, and asks the table that it has then
            self.pool.modes.ask_again()
        if not self.pool.readonly and self.pool.gate is None:
            self.pool.flush()

    def close(self) -> None:
        with self.pool.lock:
            self.volume.hosts.pop(self, None)
        self.pool.close_volume(self.volume)
