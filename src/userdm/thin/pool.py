"""A thin pool at work: one lock, its volumes, its modes, its commits. Bytes, unless blocks or sectors are said.

Follows drivers/md/dm-thin.c and Documentation/admin-guide/device-mapper/thin-provisioning.rst.

Locks. ``lock`` guards the metadata in memory and is held for microseconds, never across an fsync or a write:
a commit seals the transaction under it and writes it without, while the next transaction goes on.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from userdm.pdata.metadata_map import MAX_BLOCKS
from userdm.segment import SECTOR, Gate, Place
from userdm.storage import Storage
from userdm.storage.keep import Keep, NoKeep
from userdm.thin.claims import Claims
from userdm.thin.commit import GroupCommit
from userdm.thin.features import Features
from userdm.thin.messages import Messages
from userdm.thin.modes import Mode, Modes
from userdm.thin.reclaim import Reclaim, Runs
from userdm.thin.replay import open_metadata
from userdm.thin.sealed import SealedCommit
from userdm.thin.superblock import mark_needs_check
from userdm.thin.volume import Volume
from userdm.thin.water import LowWater, metadata_low_water

COMMIT_PERIOD = 1.0
"""Seconds from the first change to the commit, as COMMIT_PERIOD (HZ) of dm-thin.c."""
METADATA_BLOCK = 4096
"""Bytes."""


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
        *,
        may_format: bool = True,
    ) -> None:
        """Open the metadata, or format it when it is all zeros. Errors: see PoolMetadata.open. Nothing is served before
        a table is bound and the pool resumed.

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
        self.metadata = open_metadata(metadata_storage, block_sectors, self._keep, key, may_format=may_format)
        failed = self.metadata.failed is not None
        self.modes = Modes(lambda: self.metadata.needs_check or self.metadata.readonly or failed)
        self.features = Features()
        self.water = LowWater(self.metadata, self.modes)
        self.volumes: dict[int, Volume] = {}
        self.messages = Messages(self)
        self.claims = Claims(self)
        self.gate: Gate | None = Gate()
        """Closed while the pool device is suspended; every volume's requests wait for it."""
        self._commits = GroupCommit(self._commit)
        self._changed_at = time.monotonic() if self.metadata.uncommitted and not failed else None
        self._passdown: Runs = []
        self._reclaim = Reclaim(data_storage, self.block_bytes, self._released)
        self._freed_gate = Gate()
        self._committing = False
        self._hurry = False
        self._unrecorded = False
        """The metadata failed, and nobody who opens it later would know."""
        self._work = threading.Condition()
        self._closing = False
        self._worker = threading.Thread(target=self._run, name="thin-pool", daemon=True)
        self._worker.start()

    # modes

    @property
    def mode(self) -> Mode:
        return self.modes.mode

    @property
    def readonly(self) -> bool:
        """Whether the metadata may not be changed."""
        return self.modes.readonly

    def bind(self, table: object, features: Features, low_water_blocks: int, on_event: Callable[[], None]) -> None:
        """A table takes over; the first step of a resume."""
        with self.lock:
            self.modes.on_event = on_event
            self.water.data_blocks = low_water_blocks
            self.water.metadata_blocks = metadata_low_water(self.device_metadata_blocks)
            self.features = features
            self.modes.bind(table, features)

    def write_down(self) -> None:
        """What the kernel caches of the volumes is written to them. The lock is not held."""
        with self.lock:
            hosts = [host for volume in self.volumes.values() for host, _ in volume.hosts.values()]
        for host in hosts:
            host.write_down()

    def check_writable(self) -> None:
        if self.readonly:
            raise OSError(errno.EIO, "the pool is read-only")

    def metadata_error(self, error: OSError) -> None:
        """A metadata operation failed. Without room for it nothing has changed; anything else ends the transaction,
        as metadata_operation_failed of dm-thin.c. The lock is held."""
        if self.metadata.failed is not None:
            self._ask_for_check()
            self._unrecorded = True
            self.modes.set(Mode.READ_ONLY)
            self._wake()
        elif error.errno == errno.ENOSPC and not self.readonly:
            self.modes.set(Mode.OUT_OF_METADATA_SPACE)

    def _fail(self) -> None:
        """The metadata cannot be changed any more: READ_ONLY, or FAIL when they cannot even be read."""
        with self.lock:
            self._unrecorded = False
            self._ask_for_check()
        mode = Mode.READ_ONLY
        try:
            mark_needs_check(self.metadata_storage)
        except OSError:
            mode = Mode.FAIL
        with self.lock:
            if mode is Mode.FAIL:
                self._fail_volumes()
            self.modes.set(mode)
            self._wake_all()

    def _ask_for_check(self) -> None:
        with suppress(OSError):  # no room in the redo log, which says already that the metadata failed
            self.metadata.set_needs_check()

    def _fail_volumes(self) -> None:
        self.modes.set(Mode.FAIL)
        for volume in self.volumes.values():
            volume.forget()

    def reserve(self, wanted: int) -> tuple[int, int] | Gate | None:
        """New data blocks (first, how many), or what to wait for, or None: ENOSPC. As alloc_data_block of dm-thin.c.
        The lock is held."""
        if self.mode is Mode.WRITE:
            self.water.check_data(wanted)
            try:
                return self.metadata.reserve_data(wanted)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        return self._out_of_space()

    def _out_of_space(self) -> Gate | None:
        """No data block is to be had: what the writer waits for, or None when it gets ENOSPC."""
        if self.mode is Mode.OUT_OF_DATA_SPACE:
            return None if self.modes.error_if_no_space else self.modes.space_gate
        if self._reclaim:
            return self._reclaim.last_gate
        if self._committing or self._changed_at is not None:
            # blocks may be on their way back, and only wait for a commit
            self._hurry = True
            self._wake()
            return self._freed_gate
        self.modes.set(Mode.OUT_OF_DATA_SPACE)
        self._wake()
        return None if self.modes.error_if_no_space else self.modes.space_gate

    # volumes

    def open_volume(self, dev_id: int) -> Volume:
        """ENODATA for an id that the pool does not have. Each call wants its close_volume."""
        with self.lock:
            self.messages.check_present(dev_id)
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

    # space

    @property
    def device_metadata_blocks(self) -> int:
        """Of the metadata device as it is now, as many as can be used."""
        return min(self.metadata_storage.size // METADATA_BLOCK, MAX_BLOCKS)

    def resize(self, data_blocks: int) -> None:
        """Take a larger data device into use, and as much of the metadata device as there is. EINVAL to shrink.

        What must be checked, or may not be changed, does not grow.
        """
        metadata_blocks = self.device_metadata_blocks
        with self.lock:
            if self.mode is Mode.FAIL:
                return
            have, had = self.metadata.nr_data_blocks, self.metadata.nr_metadata_blocks
            for what, now, expected in (
                ("pool target", data_blocks, have),
                ("metadata device", metadata_blocks, had),
            ):
                if now < expected:
                    raise OSError(errno.EINVAL, f"{what} ({now} blocks) too small: expected {expected}")
            if metadata_blocks > had and self.mode is Mode.OUT_OF_METADATA_SPACE:
                self.modes.set(Mode.WRITE)
            if self.readonly:
                return
            try:
                # the metadata first, for what the data's own bitmaps want
                self.metadata.resize_metadata(metadata_blocks)
                self.metadata.resize_data(data_blocks)
            except OSError as error:
                self.metadata_error(error)
                raise
            if data_blocks == have and metadata_blocks == had:
                return
            self._space_again()
            self.changed()
        with suppress(OSError):  # the mode says what became of it
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
        self.water.check_metadata()

    def unreserve(self, block: int, count: int) -> None:
        """Blocks that were set aside are not wanted after all. The lock is held."""
        self.metadata.unreserve_data(block, count)
        self._space_again()

    def _space_again(self) -> None:
        """Out of the out-of-space mode, if that is where the pool is and there are free blocks. The lock is held."""
        if self.mode is Mode.OUT_OF_DATA_SPACE and self.metadata.free_data_blocks > 0:
            self.modes.set(Mode.WRITE)

    def _released(self, freed: Runs) -> None:
        with self.lock:
            self.metadata.release_data(freed)
            self._reclaim.forget_first()
            self._space_again()

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
        sound = False
        try:
            with self.lock:
                self._changed_at, self._hurry = None, False
                failed = self.metadata.failed
                if failed:
                    raise OSError(errno.EIO, f"an earlier change of the metadata failed: {failed.strerror}")
                sealed = self.metadata.seal()
                passdown, self._passdown = self._passdown, []
                self._committing = True
                sound = sealed is None
            try:
                if sealed is None:
                    self.data_storage.flush()
                else:
                    sealed.write(self.metadata_storage, self.data_storage.flush)
                sound = True
            finally:
                self._committed(sealed, passdown, done=sound)
        finally:
            if not sound and self.mode < Mode.READ_ONLY:
                self._fail()
            self._wake()

    def _committed(self, sealed: SealedCommit | None, passdown: Runs, *, done: bool) -> None:
        with self.lock:
            self._committing = False
            gate, self._freed_gate = self._freed_gate, Gate()
            if sealed is not None:
                freed = self.metadata.finish(sealed, done)
                graces = [look for volume in self.volumes.values() for look in volume.grace()]
                self._reclaim.add(freed, passdown if done else [], graces, gate)
            if done:
                self.water.check_metadata()
                if not self.readonly and self.metadata.free_metadata_blocks == 0:
                    self.modes.set(Mode.OUT_OF_METADATA_SPACE)
                self._space_again()
        if sealed is None:
            gate.open()

    def _wake_all(self) -> None:
        """Whoever waits for space tries again. The lock is held."""
        gate, self._freed_gate = self._freed_gate, Gate()
        gate.open()
        self.modes.ask_again()

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
            self._reclaim.give_back()
            if self._unrecorded:
                self._fail()
            now = time.monotonic()
            since = self._changed_at
            if since is not None and (now - since >= COMMIT_PERIOD or self._hurry):
                with suppress(OSError):  # the pool is read-only then, and says so in its status
                    self._commits.run()
            with self.lock:
                self.modes.tick(now)

    def _pause(self) -> float | None:
        """Seconds until there is something to do; None when only a change could bring it."""
        if self._reclaim:
            return 0.002
        moments = [self.modes.deadline] if self.modes.deadline is not None else []
        since = self._changed_at
        if since is not None:
            moments.append(since if self._hurry else since + COMMIT_PERIOD)
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    # the pool device

    def suspend(self) -> None:
        """Stop every volume: their requests wait from now on; those in flight have ended when this returns."""
        self.claims.paused = True
        self.claims.settle()
        with self.lock:
            if self.gate is None:
                self.gate = Gate()
            self.modes.deadline = None
            hosts = [host for volume in self.volumes.values() for host, _ in volume.hosts.values()]
        for host in hosts:
            host.fence()
        for host in hosts:
            host.drain(requests=True)

    def resume(self) -> None:
        """Go on. Who waits for space tries again: the table may bring another policy, and may wait anew."""
        with self.lock:
            self.water.told = False
            self.modes.set(self.mode)  # who waits for space waits the whole time again
            self.modes.ask_again()
            self._wake()
            gate, self.gate = self.gate, None
            self.claims.paused = False
        if gate is not None:
            gate.open()

    def close(self) -> None:
        """Commit and stop. A volume that is still open (an error table took the pool's place) fails from now on."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._worker.join()
        try:
            if self.mode is Mode.FAIL:
                pass  # nobody knows what is on disk
            elif self.metadata.failed is not None:
                with suppress(OSError):
                    mark_needs_check(self.metadata_storage)
            elif not self.metadata.readonly:
                self.commit()
            while self._reclaim:
                self._reclaim.give_back()
                time.sleep(0.001)
        finally:
            with self.lock:
                self.modes.on_event = lambda: None
                if self.volumes:
                    self._fail_volumes()
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
