"""The registry of mapped devices and what can be done to them, in the kernel's words.

No lock is held over two devices at once but the graph's, and that one for moments only: a slow device holds up
nobody else. Follows drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from userdm.mapper.device import MappedDevice
from userdm.mapper.hooks import Exporter, NoExporter
from userdm.mapper.places import Opened, SharedStorage
from userdm.mapper.table import Line, Table, TableError, split_arguments
from userdm.segment import SECTOR
from userdm.storage import Storage
from userdm.storage.keep import Keep, NoKeep

NAME_LENGTH = 128
UUID_LENGTH = 129


class Mapper:
    """All mapped devices of one daemon, or of one program. ``folder`` is where exports make their nodes."""

    def __init__(self, exporter: Exporter | None = None, folder: Path | None = None, keep: Keep | None = None) -> None:
        self.exporter: Exporter = exporter if exporter is not None else NoExporter()
        self.folder = folder
        self.keep: Keep = keep if keep is not None else NoKeep()
        self.storages = SharedStorage()
        self.attached: dict[str, Storage] = {}
        """Storage of this program that tables may name: memory, or a wrapper that a test put around a file."""
        self.graph_lock = threading.Lock()
        self._lock = threading.Lock()
        self._names: dict[str, MappedDevice] = {}
        self._reserved: set[str] = set()

    # finding

    def devices(self) -> list[MappedDevice]:
        """Sorted by name."""
        with self._lock:
            return [device for _, device in sorted(self._names.items())]

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
        """A device without a table. EBUSY for a name, uuid or minor in use, EINVAL for a name that cannot be."""
        _check_name("name", name, NAME_LENGTH)
        if uuid:
            _check_name("uuid", uuid, UUID_LENGTH)
        device = MappedDevice(self, name, uuid)
        with self._lock:
            self._check_free(name, uuid)
            self._reserved |= {name, uuid} - {""}
        try:
            device.export = self.exporter.create(name, device, minor)
            with self._lock:
                self._names[name] = device
        finally:
            with self._lock:
                self._reserved -= {name, uuid}
        return device

    def _check_free(self, name: str, uuid: str) -> None:
        taken = name in self._names or name in self._reserved
        if taken:
            raise OSError(errno.EBUSY, f"name {name!r} is in use")
        if uuid and (uuid in self._reserved or any(device.uuid == uuid for device in self._names.values())):
            raise OSError(errno.EBUSY, f"uuid {uuid!r} is in use")

    def remove(self, device: MappedDevice, *, deferred: bool = False) -> None:
        """Take the device away. EBUSY while a table names it or somebody has it open, and nothing has changed."""
        with device.control:
            self._check_present(device)
            with self.graph_lock:
                if device.users:
                    holders = ", ".join(sorted({user.device.name for user in device.users}))
                    raise OSError(errno.EBUSY, f"{device.name} is in use by the table of {holders}")
                device.deleting = True
            try:
                device.export.remove()
            except BaseException:
                device.deleting = False
                raise
            with self._lock:
                self._names.pop(device.name, None)
            device.destroy()

    def rename(self, device: MappedDevice, new: str) -> None:
        """EBUSY for a name in use."""
        _check_name("name", new, NAME_LENGTH)
        with device.control:
            self._check_present(device)
            with self._lock:
                self._check_free(new, "")
                self._reserved.add(new)
            try:
                device.export.rename(new)
                with self._lock:
                    del self._names[device.name]
                    device.name = new
                    self._names[new] = device
            finally:
                with self._lock:
                    self._reserved.discard(new)
        device.event()

    def set_uuid(self, device: MappedDevice, uuid: str) -> None:
        """EINVAL when the device has one already, EBUSY for one in use."""
        _check_name("uuid", uuid, UUID_LENGTH)
        with device.control, self._lock:
            if device.uuid:
                raise OSError(errno.EINVAL, f"{device.name} has the uuid {device.uuid!r} already")
            self._check_free("", uuid)
            device.uuid = uuid
        device.event()

    # tables

    def load(
        self,
        device: MappedDevice,
        lines: Sequence[Line],
        *,
        readonly: bool = False,
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
            opened = Opened(self, device, root, folder, references)
            table = Table.build(lines, opened, readonly=readonly)
            try:
                _check_replacement(device, table)
            except BaseException:
                table.close()
                raise
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

    def resume(self, device: MappedDevice, *, flush: bool = True, lockfs: bool = True) -> None:
        """Swap the inactive table in, if there is one, and go on. EINVAL when there is no table at all."""
        with device.control:
            self._check_present(device)
            old: Table | None = None
            if device.inactive is not None:
                device.stop(flush=flush, lockfs=lockfs and flush)
                old = device.swap()
            if device.live is None:
                raise OSError(errno.EINVAL, f"{device.name} has no table")
            try:
                device.go()
            finally:
                if old is not None:
                    old.close()

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
        if self.devices():
            raise failure or OSError(errno.EBUSY, "devices are in use")

    def _check_present(self, device: MappedDevice) -> None:
        if device.removed:
            raise OSError(errno.ENXIO, f"no mapped device {device.name!r}")


def _check_name(what: str, value: str, limit: int) -> None:
    """The kernel's check_name, and what a folder can hold."""
    if not value or value in (".", "..") or "/" in value or "\0" in value:
        raise OSError(errno.EINVAL, f"{what} {value!r}: must not be empty, '.', '..' or hold a '/'")
    if len(value.encode(errors="surrogateescape")) >= limit:
        raise OSError(errno.EINVAL, f"{what} {value!r}: must be shorter than {limit} bytes")


def _check_replacement(device: MappedDevice, table: Table) -> None:
    """An immutable target is replaced by its own type only."""
    live = device.live
    if live is None or not live.entries:
        return
    now, new = live.entries[0].target, table.entries[0].target
    if now.immutable and now.name != new.name:
        raise TableError(errno.EINVAL, f"can't replace immutable target type {now.name} by {new.name}")
