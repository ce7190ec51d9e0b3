"""Whether the kernel may cache a device's writes without anybody noticing: what the mapper knows about it.

Contract 4: direct by default; cached only while this device is the one way to its bytes, and nothing that is cached
can fail to be written down. Whoever changes what is looked at here changes it first and then calls the export's
`recache`, which returns with everything written down when the answer has become a no.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from userdm.thin.claims import Claim

if TYPE_CHECKING:
    from userdm.mapper.device import MappedDevice
    from userdm.segment import Place
    from userdm.targets.base import Target


class Caching:
    """One device's."""

    def __init__(self, device: MappedDevice) -> None:
        self._device = device
        self.paused = False
        """The device is suspended, or about to be."""
        self.adopted = False
        """Its export was another process's, and may have had it cached."""

    def why_direct(self) -> str | None:
        """Why the device must not be cached, in words; None when it may be."""
        device = self._device
        table = device.live
        if self.paused or device.gate is not None:
            return "it is suspended"
        if table is None or not table.entries:
            return "it has no table"
        if table.readonly:
            return "it is read-only"
        for user in list(device.users):
            return f"the table of {user.device.name} names it"
        if len(table.entries) != 1:
            return "its table has several lines"
        target = table.entries[0].target
        return target.why_direct() or self._why_shared(target)

    def _why_shared(self, target: Target) -> str | None:
        """What the pool lies on may be named by the pool's tables alone."""
        mapper = self._device.mapper
        for pool in target.places:
            tables = [table for table in (getattr(pool, "live", None), getattr(pool, "inactive", None)) if table]
            places: dict[int, Place] = {id(place): place for table in tables for place in table.places}
            for place in places.values():
                naming = sum(any(mine is place for mine in table.places) for table in tables)
                if mapper.storages.users(place) > naming:
                    return "another table names what its pool lies on"
        return None

    def claim(self, leave: Callable[[], None], settle: Callable[[], None]) -> Claim:
        """See thin.claims; for a device that may be cached. OSError that says why not."""
        table = self._device.live
        assert table is not None
        return table.entries[0].target.claim_cache(leave, settle)

    def release(self, claim: Claim) -> None:
        claim.volume.pool.claims.release(claim)
