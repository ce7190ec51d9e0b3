"""The registry of mapped devices and what can be done to them, in the kernel's words.

No lock is held over two devices at once but the graph's, and that one for moments only: a slow device holds up
nobody else. Follows drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from userdm.mapper.device import MappedDevice
from userdm.mapper.events import Events
from userdm.mapper.hooks import Exporter, NoExporter
from userdm.mapper.places import Opened, SharedStorage
from userdm.mapper.table import Line, Table, TableError, split_arguments
from userdm.segment import SECTOR
from userdm.storage import Storage
from userdm.storage.keep import Keep, NoKeep

log = logging.getLogger(__name__)

NAME_LENGTH = 128
UUID_LENGTH = 129


class Mapper:
    """All mapped devices of one daemon, or of one program. ``folder`` is where exports make their nodes."""

    def __init__(self, exporter: Exporter | None = None, folder: Path | None = None, keep: Keep | None = None) -> None:
        self.exporter: Exporter = exporter if exporter is not None else NoExporter()
        self.folder = folder
        self.keep: Keep = keep if keep is not None else NoKeep()
        self.storages = SharedStorage(self.keep)
        self.attached: dict[str, Storage] = {}
        """Storage of this program that tables may name: memory, or a wrapper that a test put around a file."""
        self.events = Events()
        self.changed: Callable[[], None] = lambda: None
        """Called before what has changed has consequences, and when devices have gone that nobody was asked about: who
        comes after us must know of it."""
        self.graph_lock = threading.Lock()
        self._lock = threading.Lock()
        self._gone = threading.Condition(self._lock)
        self._going = 0
        """Devices that have no name any more, and are not closed yet."""
        self._names: dict[str, MappedDevice] = {}
        self._reserved: set[str] = set()

    # finding

    def devices(self) -> list[MappedDevice]:
        """Sorted by the bytes of their names."""
        with self._lock:
            names = list(self._names.items())
        return [device for _, device in sorted(names, key=lambda item: os.fsencode(item[0]))]

    def by_number(self, devno: tuple[int, int]) -> MappedDevice | None:
        with self._lock:
            return next((device for device in self._names.values() if device.devno == devno), None)

    def find(
        self, *, name: str | None = None, uuid: str | None = None, devno: tuple[int, int] | None = None
    ) -> MappedDevice:
        """By exactly one of the three, as the kernel has it; ENXIO when there is no such device."""
        found: MappedDevice | None = None
        if (name is not None) + (uuid is not None) + (devno is not None) == 1:
            if devno is not None:
                found = self.by_number(devno)
            else:
                with self._lock:
                    if name is not None:
                        found = self._names.get(name)
                    else:
                        found = next((device for device in self._names.values() if uuid and device.uuid == uuid), None)
        if found is None:
            asked = name if name is not None else uuid if uuid is not None else devno
            raise OSError(errno.ENXIO, f"no mapped device {asked!r}")
        return found

    # making and removing

    def create(self, name: str, uuid: str = "", minor: int | None = None) -> MappedDevice:
        """A device without a table. EBUSY for a name or uuid in use, EINVAL for a name that cannot be.

        ENXIO for a minor in use, or one that cannot be.
        """
        _check_name("name", name, NAME_LENGTH)
        if uuid:
            _check_length("uuid", uuid, UUID_LENGTH)
        device = MappedDevice(self, name, uuid)
        with self._lock:
            if minor is not None and any(other.devno[1] == minor for other in self._names.values()):
                raise OSError(errno.ENXIO, f"minor {minor} is taken")
            self._check_free(name, uuid)
            self._reserved |= {name, uuid} - {""}
        try:
            device.export = self.exporter.create(name, device, minor)
            with self._lock:
                self._names[name] = device
        except OSError as error:
            if minor is None or error.errno not in (errno.EBUSY, errno.EINVAL):
                raise
            raise OSError(errno.ENXIO, error.strerror) from None
        finally:
            with self._lock:
                self._reserved -= {name, uuid}
        self.events.count()
        return device

    def _check_free(self, name: str, uuid: str) -> None:
        taken = name in self._names or name in self._reserved
        if taken:
            raise OSError(errno.EBUSY, f"name {name!r} is in use")
        if uuid and (uuid in self._reserved or any(device.uuid == uuid for device in self._names.values())):
            raise OSError(errno.EBUSY, f"uuid {uuid!r} is in use")

    def remove(self, device: MappedDevice, *, deferred: bool = False) -> None:
        """Take the device away. EBUSY while a table names it or somebody has it open, and nothing has changed but
        that, ``deferred``, it goes by itself as soon as neither is so."""
        with device.control:
            self._check_present(device)
            with self.graph_lock:
                if device.users:
                    device.deferred_remove |= deferred
                    holders = ", ".join(sorted({user.device.name for user in device.users}))
                    raise OSError(errno.EBUSY, f"{device.name} is in use by the table of {holders}")
                device.deleting = True
            try:
                device.export.remove(self.reap_soon if deferred or device.deferred_remove else None)
            except BaseException as error:
                with self.graph_lock:
                    device.deleting = False
                    device.deferred_remove |= deferred and getattr(error, "errno", None) == errno.EBUSY
                raise
            self._forget(device)
        self.events.count()

    def give_up(self, device: MappedDevice) -> None:
        """Take away a device that cannot be brought back; whoever has it open gets errors."""
        with device.control:
            device.export.abandon()
            self._forget(device)

    def _forget(self, device: MappedDevice) -> None:
        with self._lock:
            self._names.pop(device.name, None)
            self._going += 1
        try:
            # its storage is let go: nobody must look for it after that
            self.changed()
            device.destroy()
        finally:
            with self._gone:
                self._going -= 1
                self._gone.notify_all()

    def restored(self) -> None:
        """Every device of the process before us is back and served: what that one had cached is written down."""
        for device in self.devices():
            try:
                device.export.recache()
            except OSError as error:
                log.error("%s: what was cached: %s", device.name, error)
        for device in self.devices():
            for inactive in (False, True):
                with device.using(inactive=inactive) as table:
                    for entry in table.entries if table is not None else ():
                        entry.target.restored()

    def recover(self) -> None:
        """Bring what was taken over to what it must be: see `Export.recover`."""
        for device in self.devices():
            with device.control:
                if device.removed:
                    continue
                try:
                    later = self.reap_soon if device.deferred_remove else None
                    device.export.recover(later, suspended=device.suspended)
                except OSError as error:
                    log.error("%s: %s", device.name, error)

    def remove_all(self, *, deferred: bool = False) -> None:
        """Remove every device that is not in use, again while that makes others free."""
        progress = True
        while progress:
            progress = False
            for device in self.devices():
                try:
                    self.remove(device, deferred=deferred)
                    progress = True
                except OSError:
                    continue
        self.events.count()

    def cancel_deferred_remove(self, device: MappedDevice) -> None:
        """EBUSY when it is too late."""
        with device.control:
            if device.deferred_remove and not device.removed:
                device.export.stay()
                device.deferred_remove = False
                self.changed()
            elif device.removed:
                raise OSError(errno.EBUSY, f"{device.name} is being removed")

    def reap_soon(self) -> None:
        """Somebody let go of a device: remove what waited for it, in a thread that holds no lock of anybody's."""
        threading.Thread(target=self._reap, name="deferred remove", daemon=True).start()

    def _reap(self) -> None:
        progress, removed = True, 0
        while progress:
            progress = False
            for device in self.devices():
                if not device.deferred_remove or device.users:
                    continue
                try:
                    self.remove(device, deferred=True)
                    progress, removed = True, removed + 1
                except OSError:
                    continue  # in use again: its export says when that has ended
        if removed:
            self.changed()

    def rename(self, device: MappedDevice, new: str, *, leave_node: bool = False) -> None:
        """EBUSY for a name in use. ``leave_node``: see `Export.rename`."""
        _check_name("name", new, NAME_LENGTH)
        with device.control:
            self._check_present(device)
            with self._lock:
                self._check_free(new, "")
                self._reserved.add(new)
            try:
                device.export.rename(new, leave_node=leave_node)
                with self._lock:
                    del self._names[device.name]
                    device.name = new
                    self._names[new] = device
            finally:
                with self._lock:
                    self._reserved.discard(new)
        self._renamed(device)

    def set_uuid(self, device: MappedDevice, uuid: str) -> None:
        """EBUSY for one in use, EINVAL when the device has one already."""
        _check_length("uuid", uuid, UUID_LENGTH)
        with device.control:
            self._check_present(device)
            with self._lock:
                self._check_free("", uuid)
                if device.uuid:
                    raise OSError(errno.EINVAL, f"{device.name} has the uuid {device.uuid!r} already")
                device.uuid = uuid
        self._renamed(device)

    def _renamed(self, device: MappedDevice) -> None:
        """An event, of the device's too when it has a live table: it is the table's, in the kernel."""
        if device.live is not None:
            device.event()
        else:
            self.events.count()

    # tables

    def load(
        self,
        device: MappedDevice,
        lines: Iterable[Line],
        *,
        readonly: bool = False,
        secret: bool = False,
        root: str = "/",
        folder: str | None = None,
        references: list[dict[str, Any]] | None = None,
    ) -> None:
        """Make the lines the inactive table. TableError, and nothing changed, when they are refused.

        ``root`` and ``folder`` are the caller's, in which paths are looked up. With ``references`` (of an
        earlier table's `Table.references`) each path must be what it was then: ENODEV otherwise.
        """
        with device.control:
            self._check_present(device)
            opened = Opened(self, device, root, folder, references, readonly=readonly)
            table = Table.build(lines, opened, readonly=readonly, secret=secret)
            try:
                _check_replacement(device, table)
                if not device.has_loaded:
                    table.check_limits()
            except BaseException:
                table.close()
                raise
            device.has_loaded = True
            old, device.inactive = device.inactive, table
            if old is not None:
                old.close()

    def clear(self, device: MappedDevice) -> None:
        """Drop the inactive table."""
        with device.control:
            self._check_present(device)
            old, device.inactive = device.inactive, None
            if old is not None:
                old.close()

    def suspend(self, device: MappedDevice, *, flush: bool = True, lockfs: bool = True) -> None:
        """Requests wait from now on. With ``lockfs`` file systems are frozen until the resume, with ``flush`` all
        that was completed is durable."""
        with device.control:
            self._check_present(device)
            device.stop(flush=flush, lockfs=lockfs and flush)
            device.asleep = True

    def resume(self, device: MappedDevice, *, flush: bool = True, lockfs: bool = True) -> None:
        """Swap the inactive table in, if there is one, and go on. EINVAL for a suspended device without any table, and
        for a table whose limits cannot be: it is gone then, and the device stays suspended."""
        with device.control:
            self._check_present(device)
            if device.inactive is None and not device.suspended:
                return
            old: Table | None = None
            swaps = device.inactive is not None
            if swaps:
                device.stop(flush=flush, lockfs=lockfs and flush)
                self._check_new(device)
                old = device.swap()
            if device.live is None:
                raise OSError(errno.EINVAL, f"{device.name} has no table")
            try:
                device.asleep = False
                if swaps:
                    # what is written through the new table must not be looked for through the old one
                    self.changed()
                device.go()
            finally:
                device.asleep = device.suspended
                if old is not None:
                    old.close()

    def _check_new(self, device: MappedDevice) -> None:
        table = device.inactive
        assert table is not None
        try:
            table.check_limits()
        except OSError:
            device.inactive = None
            device.asleep = True
            table.close()
            raise

    def message(self, device: MappedDevice, sector: int, text: str, *, force: bool = False) -> str | None:
        """Send a message to the live target at ``sector``. Returns its answer, None when it has none."""
        arguments = split_arguments(text)
        if not arguments:
            raise OSError(errno.EINVAL, "message is empty")
        if arguments[0].startswith("@"):
            raise OSError(errno.EINVAL, f"message {arguments[0]!r}: the core knows no such message")
        self._check_present(device)
        with device.using() as table:
            if table is None:
                raise OSError(errno.EINVAL, f"{device.name} has no live table")
            for entry in table.entries:
                if entry.start <= sector < entry.start + entry.length:
                    return entry.target.message(arguments, force=force)
            raise OSError(errno.EINVAL, f"sector {sector}: must be from 0 to {table.size // SECTOR - 1}")

    def close(self, report: Callable[[str], None] = lambda text: None) -> None:
        """Remove every device, the topmost first. What is in use stays, and EBUSY is raised at the end."""
        failure: OSError | None = None
        progress = True
        while progress:
            progress, failure = False, None
            for device in self.devices():
                if device.users:
                    continue  # its turn comes when what stands on it is gone
                try:
                    self.remove(device)
                    progress = True
                except OSError as error:
                    failure = error
                    report(f"{device.name}: {error.strerror}")
            # one that somebody else removes is closed, too, when we return: it may have a commit to make
            with self._gone:
                self._gone.wait_for(lambda: self._going == 0)
        if self.devices():
            raise failure or OSError(errno.EBUSY, "devices are in use")

    def _check_present(self, device: MappedDevice) -> None:
        if device.removed:
            raise OSError(errno.ENXIO, f"no mapped device {device.name!r}")


def _check_name(what: str, value: str, limit: int) -> None:
    """The kernel's check_name, and what a folder can hold."""
    if value in (".", "..") or "/" in value:
        raise OSError(errno.EINVAL, f"{what} {value!r}: must not be empty, '.', '..' or hold a '/'")
    _check_length(what, value, limit)


def _check_length(what: str, value: str, limit: int) -> None:
    if not value or "\0" in value:
        raise OSError(errno.EINVAL, f"{what} {value!r}: must not be empty or hold a NUL")
    if len(value.encode(errors="surrogateescape")) >= limit:
        raise OSError(errno.EINVAL, f"{what} {value!r}: must be shorter than {limit} bytes")


def _check_replacement(device: MappedDevice, table: Table) -> None:
    """An immutable target is replaced by its own type only, or by errors."""
    live = device.live
    if live is None or not live.entries:
        return
    now, new = live.entries[0].target, table.entries[0].target
    if now.immutable and now.name != new.name and not any(entry.target.wildcard for entry in table.entries):
        raise TableError(errno.EINVAL, f"can't replace immutable target type {now.name} by {new.name}")
