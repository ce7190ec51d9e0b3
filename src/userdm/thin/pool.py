"""A thin pool at work: one lock, its volumes, its modes, its commits. Bytes, unless blocks or sectors are said.

Follows drivers/md/dm-thin.c and Documentation/admin-guide/device-mapper/thin-provisioning.rst.

Locks. ``lock`` guards the metadata in memory and is held for microseconds, never across an fsync or a write:
a commit seals the transaction under it and writes it without, while the next transaction goes on.
Data blocks that a transaction frees are handed out again only after its commit is durable, the requests that were in
flight then have ended, and the discards that made them free were passed down.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from userdm.segment import SECTOR, Gate, Place
from userdm.storage import Storage
from userdm.storage.keep import Keep, NoKeep
from userdm.thin.commit import GroupCommit
from userdm.thin.features import Features
from userdm.thin.replay import open_metadata
from userdm.thin.volume import Volume

COMMIT_PERIOD = 1.0
"""Seconds from the first change to the commit, as COMMIT_PERIOD (HZ) of dm-thin.c."""
METADATA_BLOCK = 4096
"""Bytes."""
NO_SPACE_TIMEOUT = 60.0
"""Seconds that writes wait for space, as NO_SPACE_TIMEOUT_SECS of dm-thin.c."""

Runs = list[tuple[int, int]]


class Pool:
    """The storages and ``data`` belong to the caller and outlive the pool.

    ``data`` is what segments point at, ``data_storage`` the same device for the pool's own flushes and discards.
    """

    def __init__(
        self,
        metadata_storage: Storage,
        data: Place,
        data_storage: Storage,
        block_sectors: int,
        keep: Keep | None = None,
        key: str = "",
    ) -> None:
        """Open the metadata, format it when it is all zeros. Errors: see PoolMetadata.open.

        With ``keep``, the pool goes on where a process before us was killed, and writes down under ``key`` what a
        process after us will need (thin.redo).
        """
        self.metadata_storage = metadata_storage
        self.data = data
        self.data_storage = data_storage
        self.block_sectors = block_sectors
        self.block_bytes = block_sectors * SECTOR
        self.lock = threading.Lock()
        self._keep: Keep = keep if keep is not None else NoKeep()
        self._key = key
        self.metadata = open_metadata(metadata_storage, block_sectors, self._keep, key)
        self.features = Features()
        self.low_water_blocks = 0
        self.on_event: Callable[[], None] = lambda: None
        self.volumes: dict[int, Volume] = {}
        self.gate: Gate | None = None
        """Closed while the pool device is suspended; every volume's requests wait for it."""
        self.no_space = False
        failed = self.metadata.failed is not None
        self._read_only = self.metadata.needs_check or metadata_storage.readonly or failed
        self._space_gate = Gate()
        self._space_deadline: float | None = None
        self._low_water_told = False
        self._commits = GroupCommit(self._commit)
        self._changed_at = time.monotonic() if self.metadata.uncommitted and not failed else None
        self._passdown: Runs = []
        self._reclaim: list[tuple[Runs, Runs, list[Callable[[], bool]], Gate]] = []
        self._freed_gate = Gate()
        self._committing = False
        self._hurry = False
        self._work = threading.Condition()
        self._closing = False
        self._worker = threading.Thread(target=self._run, name="thin-pool", daemon=True)
        self._worker.start()

    # modes

    @property
    def readonly(self) -> bool:
        return self._read_only or self.features.read_only

    @property
    def mode(self) -> str:
        """As the status line says it."""
        if self.readonly:
            return "ro"
        return "out_of_data_space" if self.no_space else "rw"

    def check_writable(self) -> None:
        if self.readonly:
            raise OSError(errno.EIO, "the pool is read-only")

    def metadata_error(self, error: OSError) -> None:
        """A metadata operation failed. As the kernel does, the pool goes read-only and asks for a check."""
        if error.errno == errno.ENOSPC or self.metadata.failed:
            self._read_only = True
            self.on_event()

    def out_of_space(self) -> Gate | None:
        """No data block is to be had: what the writer waits for, or None when it gets ENOSPC. The lock is held."""
        if self._reclaim:
            return self._reclaim[-1][3]
        if self._committing or self._changed_at is not None:
            # blocks may be on their way back, and only wait for a commit
            self._hurry = True
            self._wake()
            return self._freed_gate
        if not self.no_space:
            self.no_space = True
            self._space_deadline = time.monotonic() + NO_SPACE_TIMEOUT
            self.on_event()
            self._wake()
        if self.features.error_if_no_space or self._space_deadline is None:
            return None
        return self._space_gate

    # volumes

    def open_volume(self, dev_id: int) -> Volume:
        """ENODATA for an id that the pool does not have. Each call wants its close_volume."""
        with self.lock:
            volume = self.volumes.get(dev_id)
            if volume is None:
                volume = self.volumes[dev_id] = Volume(self, self.metadata.open_thin(dev_id))
            volume.users += 1
            return volume

    def close_volume(self, volume: Volume) -> None:
        with self.lock:
            volume.users -= 1
            if volume.users == 0:
                del self.volumes[volume.metadata.dev_id]
                self.metadata.close_thin(volume.metadata.dev_id)

    # messages

    def create_thin(self, dev_id: int) -> None:
        with self.lock:
            self._check_message()
            self.metadata.create_thin(dev_id)
            self.changed()
        self.commit()

    def create_snap(self, dev_id: int, origin: int, *, force: bool = False) -> None:
        """A snapshot of ``origin``; active and not suspended, it is frozen for the moment that it takes.

        EBUSY, unless forced, when somebody has it open who cannot be frozen.
        """
        with self.lock:
            volume = self.volumes.get(origin)
            hosts = volume.active() if volume is not None else []
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
            with self.lock:
                self._check_message()
                volume = self.volumes.get(origin)  # it may have been activated since
                if volume is not None:
                    volume.quiesce()
                self.metadata.create_snap(dev_id, origin)
                self.changed()
            self.commit()
        finally:
            for thaw in reversed(thaws):
                thaw()

    def delete(self, dev_id: int) -> None:
        with self.lock:
            self._check_message()
            if dev_id in self.volumes:
                raise OSError(errno.EBUSY, f"thin {dev_id} is active")
            self.metadata.delete(dev_id)
            self.changed()
        self.commit()

    def set_transaction_id(self, old: int, new: int) -> None:
        with self.lock:
            self._check_message()
            self.metadata.set_transaction_id(old, new)
            self.changed()
        self.commit()

    def reserve_metadata_snap(self) -> None:
        self.commit()
        with self.lock:
            self._check_message()
            self.metadata.reserve_metadata_snap()
            self.changed()
        self.commit()

    def release_metadata_snap(self) -> None:
        with self.lock:
            self._check_message()
            self.metadata.release_metadata_snap()
            self.changed()
        self.commit()

    def _check_message(self) -> None:
        if self.readonly:
            raise OSError(errno.EOPNOTSUPP, "unable to service pool target messages in READ_ONLY mode")

    # space

    def resize(self, data_blocks: int) -> None:
        """Take a larger data device into use, and as much of the metadata device as there is. EINVAL to shrink."""
        with self.lock:
            have, had = self.metadata.nr_data_blocks, self.metadata.nr_metadata_blocks
            if data_blocks < have:
                raise OSError(
                    errno.EINVAL, f"pool target of {data_blocks} blocks is too small: the metadata says {have} blocks"
                )
            if not self.readonly:
                self.metadata.resize_metadata(self.metadata_storage.size // METADATA_BLOCK)
            if data_blocks > have:
                self.check_writable()
                self.metadata.resize_data(data_blocks)
                self._low_water_told = False
                self._space_again()
            grown = data_blocks > have or self.metadata.nr_metadata_blocks > had
            if grown:
                self.changed()
        if grown:
            self.commit()

    def discarded(self, freed: Runs) -> None:
        """A discard freed these blocks; the lock is held."""
        if self.features.passdown:
            self._passdown.extend(freed)
        self.changed()

    def changed(self) -> None:
        """The metadata changed; it is committed within a second. The lock is held."""
        if self._changed_at is None:
            self._changed_at = time.monotonic()
            self._wake()
        if not self._low_water_told and self.metadata.free_data_blocks <= self.low_water_blocks:
            self._low_water_told = True
            self.on_event()

    def unreserve(self, block: int, count: int) -> None:
        """Blocks that were set aside are not wanted after all. The lock is held."""
        self.metadata.unreserve_data(block, count)
        self._space_again()

    def _space_again(self) -> None:
        """There are free blocks: out of the out-of-space mode, if that is where the pool is. The lock is held."""
        if self.no_space:
            self.no_space, self._space_deadline = False, None
            self._space_gate.open()
            self._space_gate = Gate()

    # commit

    @property
    def settling(self) -> bool:
        """Whether requests may be in flight on blocks that their volume left before the last commit."""
        return bool(self._reclaim)

    def flush(self) -> None:
        """Every completed write is durable, and every mapping that reaches it. EIO when a change could not be
        committed, now or earlier, as bio_triggers_commit of dm-thin.c: it may have been the caller's."""
        if self._changed_at is None and not self._commits.running and self.metadata.failed is None:
            self.data_storage.flush()
        else:
            self._commits.run()

    def commit(self) -> None:
        """Like flush. Raises OSError when the metadata could not be written; the pool is read-only then."""
        self._commits.run()

    def _commit(self) -> None:
        with self.lock:
            self._changed_at, self._hurry = None, False
            try:
                failed = self.metadata.failed
                if failed:
                    raise OSError(errno.EIO, f"an earlier change of the metadata failed: {failed.strerror}")
                sealed = self.metadata.seal()
            except OSError:
                self._read_only = True
                self._wake_all()
                self.on_event()
                raise
            passdown, self._passdown = self._passdown, []
            self._committing = True
        done = False
        try:
            if sealed is None:
                self.data_storage.flush()
            else:
                sealed.write(self.metadata_storage, self.data_storage.flush)
            done = True
        finally:
            with self.lock:
                self._committing = False
                gate, self._freed_gate = self._freed_gate, Gate()
                if sealed is not None:
                    freed = self.metadata.finish(sealed, done)
                    self._read_only = self._read_only or not done
                    graces = [look for volume in self.volumes.values() for look in volume.grace()]
                    self._reclaim.append((freed, passdown if done else [], graces, gate))
            if sealed is None:
                gate.open()
            elif not done:
                self.on_event()
        self._wake()

    def _wake_all(self) -> None:
        """Whoever waits for space tries again. The lock is held."""
        gates = self._freed_gate, self._space_gate
        self._freed_gate, self._space_gate = Gate(), Gate()
        for gate in gates:
            gate.open()

    # the pool's own thread: commits in time, gives freed blocks back, ends the wait for space

    def _wake(self) -> None:
        with self._work:
            self._work.notify()

    def _run(self) -> None:
        while True:
            with self._work:
                if self._closing:
                    return
                self._work.wait(self._pause())
                if self._closing:
                    return
            self._give_back()
            now = time.monotonic()
            since = self._changed_at
            if since is not None and (now - since >= COMMIT_PERIOD or self._hurry):
                with suppress(OSError):  # the pool is read-only then, and says so in its status
                    self._commits.run()
            with self.lock:
                if self._space_deadline is not None and now >= self._space_deadline:
                    self._space_deadline = None
                    self._space_gate.open()
                    self._space_gate = Gate()

    def _pause(self) -> float | None:
        """Seconds until there is something to do; None when only a change could bring it."""
        if self._reclaim:
            return 0.002
        moments = [self._space_deadline] if self._space_deadline is not None else []
        since = self._changed_at
        if since is not None:
            moments.append(since if self._hurry else since + COMMIT_PERIOD)
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    def _give_back(self) -> None:
        while self._reclaim:
            freed, passdown, graces, gate = self._reclaim[0]
            if not all(look() for look in graces):
                return
            for block, count in passdown:
                with suppress(OSError):  # a discard is a hint; the block is free all the same
                    self.data_storage.discard(block * self.block_bytes, count * self.block_bytes)
            with self.lock:
                self.metadata.release_data(freed)
                del self._reclaim[0]
                if self.metadata.free_data_blocks > 0:
                    self._space_again()
            gate.open()

    # the pool device

    def suspend(self) -> None:
        """Stop every volume: their requests wait from now on; those in flight have ended when this returns."""
        with self.lock:
            if self.gate is None:
                self.gate = Gate()
            hosts = [host for volume in self.volumes.values() for host, _ in volume.hosts.values()]
        for host in hosts:
            host.fence()
        for host in hosts:
            host.drain(requests=True)

    def resume(self) -> None:
        """Go on. Who waits for space tries again: the table may bring another policy, and may wait anew."""
        with self.lock:
            self._low_water_told = False
            self._space_again()
            gate, self.gate = self.gate, None
        if gate is not None:
            gate.open()

    def close(self) -> None:
        """Commit and stop. Every volume is closed already."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._worker.join()
        try:
            if not self._read_only:
                self.commit()
            while self._reclaim:
                self._give_back()
                time.sleep(0.001)
        finally:
            with self.lock:
                self._wake_all()
            self.resume()
            if self.metadata.redo is not None:
                self.metadata.redo.close()
                self.metadata.redo = None
            self._keep.drop(self._key)

    # status, in the kernel's units

    def used(self) -> Sequence[int]:
        """(used, total) metadata blocks and (used, total) data blocks."""
        metadata = self.metadata
        return (
            metadata.nr_metadata_blocks - metadata.free_metadata_blocks,
            metadata.nr_metadata_blocks,
            metadata.nr_data_blocks - metadata.free_data_blocks,
            metadata.nr_data_blocks,
        )
