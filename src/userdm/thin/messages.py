"""The messages of a pool. Each is committed before it returns. Follows pool_message of drivers/md/dm-thin.c."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from userdm.thin.metadata import PoolMetadata

if TYPE_CHECKING:
    from userdm.thin.pool import Pool

BATCH = 16384
"""Data blocks that a deletion gives up at a time: others who want the pool's lock wait for no more than those."""


class Messages:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._deleting: set[int] = set()

    @contextmanager
    def _change(self) -> Iterator[PoolMetadata]:
        """The metadata, to be changed under the pool's lock, and committed then."""
        pool = self._pool
        with pool.lock:
            if pool.readonly:
                raise OSError(errno.EOPNOTSUPP, "unable to service pool target messages in READ_ONLY or FAIL mode")
            yield pool.metadata
            pool.changed()
        pool.commit()

    def create_thin(self, dev_id: int) -> None:
        with self._change() as metadata:
            metadata.create_thin(dev_id)

    def create_snap(self, dev_id: int, origin: int, *, force: bool = False) -> None:
        """A snapshot of ``origin``; active and not suspended, it is frozen for the moment that it takes.

        EBUSY, unless forced, when somebody has it open who cannot be frozen.
        """
        with self._pool.claims.direct(origin):
            self._create_snap(dev_id, origin, force=force)

    def _create_snap(self, dev_id: int, origin: int, *, force: bool) -> None:
        pool = self._pool
        with pool.lock:
            volume = pool.volumes.get(origin)
            hosts = volume.active() if volume is not None and pool.gate is None else []
        thaws: list[Callable[[], None]] = []
        if not force:
            holders = [text for host in hosts for text in host.writers()]
            if holders:
                raise OSError(
                    errno.EBUSY,
                    f"thin {origin} is open for writing by {', '.join(holders)} and cannot be frozen: close or unmount "
                    "it first, suspend it, or force the message",
                )
        try:
            for host in hosts:
                thaws.append(host.freeze())
            with self._change() as metadata:
                volume = pool.volumes.get(origin)  # it may have been activated since
                if volume is not None:
                    volume.quiesce()
                self.check_present(origin)
                metadata.create_snap(dev_id, origin)
        finally:
            for thaw in reversed(thaws):
                thaw()

    def check_present(self, dev_id: int) -> None:
        """ENODATA for a device that is being deleted. The lock is held."""
        if dev_id in self._deleting:
            raise OSError(errno.ENODATA, f"thin {dev_id} is being deleted")

    def delete(self, dev_id: int) -> None:
        """EBUSY while it is active. A large one goes in parts, each of them committed."""
        pool = self._pool
        with pool.lock:
            if dev_id in pool.volumes or dev_id in self._deleting:
                raise OSError(errno.EBUSY, f"thin {dev_id} is active")
            self._deleting.add(dev_id)
        try:
            while self._delete_part(dev_id):
                pass
        finally:
            with pool.lock:
                self._deleting.remove(dev_id)
                if dev_id not in pool.volumes:
                    pool.metadata.close_thin(dev_id)

    def _delete_part(self, dev_id: int) -> bool:
        """Whether there is more of it."""
        with self._change() as metadata:
            thin = metadata.open_thin(dev_id)
            end = thin.end_of(BATCH)
            if end is None:
                metadata.delete(dev_id)
            else:
                thin.remove(0, end)
        return end is not None

    def set_transaction_id(self, old: int, new: int) -> None:
        with self._change() as metadata:
            metadata.set_transaction_id(old, new)

    def reserve_metadata_snap(self) -> None:
        with self._pool.claims.direct(None):
            self._pool.commit()
            with self._change() as metadata:
                metadata.reserve_metadata_snap()

    def release_metadata_snap(self) -> None:
        with self._change() as metadata:
            metadata.release_metadata_snap()
