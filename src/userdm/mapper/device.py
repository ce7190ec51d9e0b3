"""A mapped device: a name, a number, a live and an inactive table, and the gate that suspend closes.

Offsets and lengths in bytes. As a `Place` it is a layer, as a `Backend` it is what an export serves, as a `Host`
what a pool revokes from. Follows drivers/md/dm.c.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from userdm.dataplane import Parked
from userdm.dataplane.plane import DEFAULT_GRANULE, BlockingWorker, Plane, PlaneWorker
from userdm.mapper.caching import Caching
from userdm.mapper.hooks import Export
from userdm.mapper.table import Table
from userdm.segment import SECTOR, Direct, Fail, Gate, Intent, Segment, Wait

if TYPE_CHECKING:
    from userdm.mapper.places import Opened
    from userdm.mapper.registry import Mapper


class MappedDevice:
    """Made by `Mapper.create`. ``control`` serialises what changes the device; serving takes no lock."""

    def __init__(self, mapper: Mapper, name: str, uuid: str) -> None:
        self.mapper = mapper
        self.name = name
        self.uuid = uuid
        self.control = threading.RLock()
        self.live: Table | None = None
        self.inactive: Table | None = None
        self.has_loaded = False
        """A table has been loaded once: from then on its limits are checked when it becomes live."""
        self.block_size = SECTOR
        """Bytes of its logical block, as it was when its table became live."""
        self.discards = False
        """Whether it takes discards, as it was then."""
        self.gate: Gate | None = None
        self.asleep = False
        """Suspended by a command that has ended, and so after a takeover; a suspend inside of a resume is not."""
        self.removed = False
        self.deleting = False
        """No table may name it any more; under the mapper's graph lock."""
        self.deferred_remove = False
        self.event_nr = 0
        self.geometry: tuple[int, int, int, int] | None = None
        """Cylinders, heads, sectors, start: as given, and lost with the size; a loop device cannot show it."""
        self.users: list[Opened] = []
        """The tables that name this device, live or inactive; under the mapper's graph lock."""
        self.thaw: Callable[[], None] | None = None
        self.export: Export
        self._events = threading.Condition()
        self._waiters = 0
        self._swapped = False
        """The export does not know the live table yet."""
        self.plane = Plane(self)
        self.caching = Caching(self)
        self._storage: DeviceStorage | None = None
        self._unflushed: OSError | None = None
        """Why a suspend could not make durable what was written before it."""
        self._told_failures = 0
        """Of the failed flushes of the storage below, how many the device has told its users of."""

    # what it is

    @property
    def devno(self) -> tuple[int, int]:
        return self.export.devno

    @property
    def size(self) -> int:
        return self.live.size if self.live is not None else 0

    @property
    def readonly(self) -> bool:
        return self.live is not None and self.live.readonly

    @property
    def shown_readonly(self) -> bool:
        """By its table, or because somebody has made the device so (BLKROSET)."""
        return self.readonly or self.export.readonly

    @property
    def suspended(self) -> bool:
        return self.gate is not None

    @property
    def granularity(self) -> int:
        return self.live.discard_granularity if self.live is not None else 512

    def open_count(self, *, scan: bool = True) -> int:
        """The devices whose tables name it, and with ``scan`` everybody else who has it open or mounted.

        As the kernel: a device opens what its tables stand on once for reading and once for writing.
        """
        with self.mapper.graph_lock:
            devices = len({(id(user.device), user.readonly) for user in self.users})
        return devices + (self.export.open_count() if scan else 0)

    # serving

    def worker(self) -> PlaneWorker:
        return self.plane.worker()

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        gate = self.gate
        if gate is not None:
            return [Wait(length, gate)]
        # a request from a device above is not waited for by a swap of tables: it must not find its table in pieces
        thread = threading.get_ident()
        while (table := self.live) is not None:
            table.inside[thread] = None
            try:
                if self.live is table:
                    return self._ask(table, offset, length, intent)
            finally:
                table.inside.pop(thread, None)
        return [Fail(length, errno.EIO)]

    def _ask(self, table: Table, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        if offset < 0 or offset + length > table.size:
            return [Fail(length, errno.EIO)]
        if not table.readonly:
            return table.resolve(offset, length, intent)
        if intent is not Intent.READ:
            return [Fail(length, errno.EROFS)]
        segments = table.resolve(offset, length, intent)
        for segment in segments:
            if isinstance(segment, Direct):
                segment.writable = False
        return segments

    @contextmanager
    def using(self, *, inactive: bool = False) -> Iterator[Table | None]:
        """The live table, or the inactive one, which is not closed meanwhile."""
        table = self.inactive if inactive else self.live
        while table is not None and not table.hold():
            table = self.inactive if inactive else self.live
        try:
            yield table
        finally:
            if table is not None:
                table.let_go()

    def flush(self) -> None:
        with self.plane.flushing():
            gate = self.gate
            if gate is not None:
                raise Parked(gate)
            failure, self._unflushed = self._unflushed, None
            if failure is not None:
                raise OSError(failure.errno, failure.strerror) from failure
            if self.live is not None:
                self._flush_table(self.live)

    def _flush_table(self, table: Table) -> None:
        """Flush; EIO also when the storage told another device of a failure that may have cost our bytes."""
        try:
            table.flush()
        except OSError:
            self._told_failures = table.failed_flushes
            raise
        failures = table.failed_flushes
        if failures != self._told_failures:
            self._told_failures = failures
            raise OSError(errno.EIO, "a flush of the storage has failed since the device was last flushed")

    @property
    def failed_flushes(self) -> int:
        """See Table.failed_flushes."""
        return self.live.failed_flushes if self.live is not None else 0

    def storage(self) -> DeviceStorage:
        """The device as storage, for a table above that reads and writes it by itself (a pool's metadata).

        One for the device's life: a pool goes on using it when the table that opened the pool was replaced.
        """
        if self._storage is None:
            self._storage = DeviceStorage(self)
        return self._storage

    # the graph

    def above(self) -> list[MappedDevice]:
        """This device and every one whose table leads down to it, the topmost first."""
        with self.mapper.graph_lock:
            return self.uppers()

    def uppers(self, *, awake: bool = False) -> list[MappedDevice]:
        """The same, with tables that are still being loaded; ``awake``: but for those that can reach this device only
        through a suspended one, and that one. Under the mapper's graph lock."""
        order: list[MappedDevice] = []
        seen: set[int] = set()
        stack: list[tuple[MappedDevice, bool]] = [(self, False)]
        while stack:
            device, done = stack.pop()
            if done:
                order.append(device)
            elif id(device) not in seen:
                seen.add(id(device))
                stack.append((device, True))
                uppers = (user.device for user in device.users)
                stack.extend((upper, False) for upper in uppers if not (awake and upper.suspended))
        return order

    # what a pool below asks of it (thin.host.Host)

    def revoke(self, offset: int, length: int) -> None:
        self.plane.revoke(offset, length)
        if not self.users:
            return
        with self.mapper.graph_lock:
            uppers = [user.device for user in self.users]
        for upper in uppers:
            table = upper.live
            for low, size in table.above(self, offset, length) if table is not None else []:
                upper.revoke(low, size)

    def fence(self) -> None:
        for device in self.above():
            device.plane.fence()

    def drain(self, *, requests: bool) -> None:
        # A request above may itself wait for this device, in a target that reads it: metadata, a commit. It holds no
        # mapping while it does, and asks again when it comes out.
        for device in self.above():
            device.plane.drain(requests=requests and device is self)

    def grace(self) -> Callable[[], bool]:
        looks = [device.plane.grace() for device in self.above()]
        return lambda: all(look() for look in looks)

    @property
    def adopted(self) -> bool:
        return self.caching.adopted

    def write_down(self) -> None:
        with suppress(OSError):  # it is for whoever wrote
            self.export.write_down()

    def writers(self) -> list[str]:
        return [text for device in self.above() for text in device.export.writers()]

    def freeze(self) -> Callable[[], None]:
        with self.mapper.graph_lock:
            # what is suspended stands still already: it would wait there for its own resume
            devices = self.uppers(awake=True)
        return self.mapper.exporter.freeze([device.export for device in devices])

    # events

    def event(self) -> None:
        with self._events:
            self.event_nr = (self.event_nr + 1) & 0xFFFFFFFF
            self._events.notify_all()
        self.mapper.events.count()

    @contextmanager
    def waited(self, seen: int, cancelled: Callable[[], bool]) -> Iterator[int]:
        """Wait until the event counter is not ``seen`` (or ``cancelled`` says so); gives the counter.

        A removal is an event of the live table's: the tables are not closed until the body has ended.
        """
        with self._events:
            self._waiters += 1
        try:
            with self._events:
                while self.event_nr == seen and not self.removed and not cancelled():
                    self._events.wait(0.2)
                now = self.event_nr
            yield now
        finally:
            with self._events:
                self._waiters -= 1
                self._events.notify_all()

    # tables; the caller holds ``control``

    def stop(self, *, flush: bool, lockfs: bool) -> None:
        """Suspend: freeze, close the gate, let what is in flight end, flush."""
        if self.gate is not None:
            return
        table = self.live
        targets = [entry.target for entry in table.entries] if table is not None else []
        self.caching.paused = True
        try:
            self.export.recache()
            thaw = self.freeze() if lockfs and table is not None else None
        except BaseException:
            self.caching.paused = False
            raise
        try:
            for target in targets:
                target.presuspend()
            self.gate = Gate()
            self.fence()
            self.drain(requests=True)
            self._settle(table, flush=flush)
        except BaseException:
            self._open_gate()
            for target in targets:
                target.resume()
            if thaw is not None:
                thaw()
            raise
        self.thaw = thaw

    def _settle(self, table: Table | None, *, flush: bool) -> None:
        """Flush what is suspended. An error does not keep a broken table from being replaced, as it does not on
        the kernel; it is for whoever wrote, and the next flush tells it."""
        steps = [entry.target.postsuspend for entry in table.entries] if table is not None else []
        if table is not None and flush and not table.readonly:
            steps.insert(0, lambda: self._flush_table(table))
        for step in steps:
            try:
                step()
            except Parked:
                continue  # what it stands on is suspended: that was flushed then, as far as it was wanted
            except OSError as error:
                self._unflushed = error

    def swap(self) -> Table | None:
        """Make the inactive table the live one; returns the old one, to be closed. Suspended already."""
        old, self.live, self.inactive = self.live, self.inactive, None
        self._swapped = True
        self.block_size = SECTOR if self.live is None else self.live.block_size
        if old is None or self.live is None or old.size != self.live.size:
            self.geometry = None
        self._told_failures = self.failed_flushes
        for device in self.above():
            device.plane.fence(None if device.live is None else device.live.granule)
        return old

    def go(self) -> None:
        """Resume: tell the targets, open the gate, thaw. OSError from a target leaves the device suspended."""
        table = self.live
        assert table is not None
        for entry in table.entries:
            entry.target.preresume()
        for entry in table.entries:
            entry.target.resume()
        self.discards = table.discards
        self.export.activate(self.name, table.readonly if self._swapped else None, self.uuid)
        self._swapped = False
        self._open_gate()
        self.export.settle()
        thaw, self.thaw = self.thaw, None
        if thaw is not None:
            thaw()

    def set_geometry(self, cylinders: int, heads: int, sectors: int, start: int) -> None:
        """EINVAL for what struct hd_geometry cannot hold, and for a start beyond it."""
        if cylinders > 65535 or heads > 255 or sectors > 255:
            raise OSError(errno.EINVAL, f"geometry {cylinders} {heads} {sectors}: must be at most 65535, 255 and 255")
        if start > cylinders * heads * sectors:
            raise OSError(errno.EINVAL, f"start {start}: must be at most {cylinders * heads * sectors}")
        self.geometry = (cylinders, heads, sectors, start)

    def _open_gate(self) -> None:
        self.caching.paused = False
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.open()

    def destroy(self) -> None:
        """The device is gone from the registry: close its tables. The first error is raised when all is closed."""
        if self.live is not None:
            self.event()
        with self._events:
            self.removed = True
            self._events.notify_all()
            self._events.wait_for(lambda: self._waiters == 0)
        if self.thaw is not None:
            self.thaw()
        failure: OSError | None = None
        tables, self.live, self.inactive = (self.live, self.inactive), None, None
        self.plane.fence(DEFAULT_GRANULE)
        self.plane.drain(requests=True)
        for table in tables:
            try:
                if table is not None:
                    table.close()
            except OSError as error:
                failure = failure or error
        self._open_gate()
        if failure is not None:
            raise failure


class DeviceStorage(BlockingWorker):
    """A mapped device as storage for a target's own bytes; one call at a time, waits while the device is suspended."""

    resolve: None = None

    def __init__(self, device: MappedDevice) -> None:
        super().__init__(device.worker())
        self._device = device
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def readonly(self) -> bool:
        return self._device.readonly

    def read(self, offset: int, view: memoryview) -> None:
        with self._lock:
            super().read(offset, view)

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        with self._lock:
            super().write(offset, view)

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            super().discard(offset, length)

    def zero(self, offset: int, length: int) -> None:
        with self._lock:
            super().zero(offset, length)

    def flush(self) -> None:
        while True:
            try:
                return self._device.flush()
            except Parked as parked:
                parked.gate.wait()
