"""What the paths in a table mean: storage, opened once and shared by all tables, or another mapped device.

As dm_get_device of dm-table.c: a name is a path or major:minor, looked up in the caller's root and folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from userdm.mapper.callers import path_of
from userdm.mapper.graph import MAX_LEVELS, levels_above, levels_below
from userdm.mapper.table import escape_argument
from userdm.segment import Place
from userdm.storage import FileStorage, Storage, open_storage
from userdm.storage.below import devices_below
from userdm.storage.keep import Keep
from userdm.targets.base import Area, Target, TargetError

if TYPE_CHECKING:
    from userdm.mapper.device import MappedDevice
    from userdm.mapper.registry import Mapper

_NUMBER = re.compile(r"(\d{1,10}):(\d{1,10})", re.ASCII)
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{1,8}")
_NOT_FOUND = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENOTBLK, errno.ELOOP, errno.ENAMETOOLONG})
_Identity = tuple[int, int]
"""FileStorage.identity"""


class _Shared:
    """One storage and how many tables use it; ``lock`` is held while it is opened or closed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.storage: FileStorage | None = None
        self.key = ""
        """Under which the storage is kept."""


class SharedStorage:
    """Every open storage of a mapper by its identity: one descriptor each, however many tables name it.

    A storage that is slow to open or to close holds up nobody who wants another one.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._shared: dict[_Identity, _Shared] = {}

    def acquire(self, path: str, *, readonly: bool) -> FileStorage:
        info = os.stat(path)  # noqa: PTH116
        is_block = stat.S_ISBLK(info.st_mode)
        identity = (info.st_rdev, 0) if is_block else (info.st_dev, info.st_ino)

        def opened() -> FileStorage:
            storage = _open(path, readonly)
            note = json.dumps({"path": path, "readonly": storage.readonly})
            self._keep.put(_key(storage.identity, sequence_of(storage)), storage.fds, note)
            return storage

        storage = self._share(identity, opened)
        assert storage is not None
        if storage.readonly and not readonly:
            self.release(storage)
            raise OSError(errno.EACCES, "opened read-only by another table", path)
        return storage

    def adopt(self, identity: _Identity, sequence: int) -> FileStorage | None:
        """What a process before this one had open, without a look at any path; None when nothing is kept of it."""

        def opened() -> FileStorage | None:
            kept = self._keep.take(_key(identity, sequence))
            if kept is None:
                return None
            note = json.loads(kept.note)
            return FileStorage.adopt(note["path"], kept.fds, readonly=note["readonly"])

        return self._share(identity, opened)

    def _share(self, identity: _Identity, opened: Callable[[], FileStorage | None]) -> FileStorage | None:
        with self._lock:
            shared = self._shared.setdefault(identity, _Shared())
            shared.users += 1
        try:
            with shared.lock:
                if shared.storage is None:
                    shared.storage = opened()
                    if shared.storage is not None:
                        shared.key = _key(shared.storage.identity, sequence_of(shared.storage))
                storage = shared.storage
        except BaseException:
            self._leave(identity, shared)
            raise
        if storage is None:
            self._leave(identity, shared)
        return storage

    def users(self, storage: object) -> int:
        """How many tables name it; 0 for what is none of ours."""
        with self._lock:
            return next((shared.users for shared in self._shared.values() if shared.storage is storage), 0)

    def release(self, storage: FileStorage) -> None:
        with self._lock:
            identity, shared = next(item for item in self._shared.items() if item[1].storage is storage)
        self._leave(identity, shared)

    def _leave(self, identity: _Identity, shared: _Shared) -> None:
        with shared.lock:
            with self._lock:
                shared.users -= 1
                if shared.users:
                    return
            # who comes now waits for the lock, and opens it again when it is closed
            if shared.storage is not None:
                shared.storage.close()
                shared.storage = None
                self._keep.drop(shared.key)
            with self._lock:
                if not shared.users:
                    del self._shared[identity]


def _key(identity: _Identity, sequence: int) -> str:
    return f"storage:{identity[0]}:{identity[1]}:{sequence}"


def _open(path: str, readonly: bool) -> FileStorage:
    """A read-only table may share the descriptor of a writable one, so read-only is the second choice."""
    try:
        return open_storage(path, readonly=False)
    except OSError as error:
        if not readonly or error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        return open_storage(path, readonly=True)


class Opened:
    """What one table holds open."""

    def __init__(
        self,
        mapper: Mapper,
        device: MappedDevice,
        root: str = "/",
        folder: str | None = None,
        references: list[dict[str, Any]] | None = None,
        *,
        readonly: bool = False,
    ) -> None:
        self.mapper = mapper
        self.device = device
        self.readonly = readonly
        self._root = root
        self._folder = folder
        self.restoring = references is not None
        self._saved = {reference["param"]: reference for reference in references or []}
        self._found: dict[str, tuple[Place, dict[str, Any]]] = {}
        self._storages: list[FileStorage] = []
        self._devices: list[MappedDevice] = []

    def context(self, start: int, length: int, readonly: bool) -> LineContext:
        return LineContext(self, start, length, readonly)

    def open(self, argument: str, value: str, *, readonly: bool) -> Place:
        """See targets.base.Context.open."""
        if value in self._found:
            return self._found[value][0]
        try:
            place, reference = self._lookup(value, readonly)
        except OSError as error:
            number = errno.ENODEV if error.errno in _NOT_FOUND else error.errno
            if number == errno.ENODEV and _HEXADECIMAL.fullmatch(value):
                number = errno.ENXIO  # what is no path is a number to the kernel's name_to_dev_t
            text = f"{argument} {value!r}: {error.strerror}"
            if number == errno.ENODEV:
                text += ", must be a block device, a regular file or a mapped device"
            raise TargetError(number or errno.EINVAL, text) from error
        self._found[value] = (place, reference)
        return place

    def _lookup(self, value: str, readonly: bool) -> tuple[Place, dict[str, Any]]:
        device = self._mapped(value)
        if device is not None:
            self._hold(device)
            return device, {"param": value, "kind": "device", "name": device.name}
        if value in self.mapper.attached:
            return self.mapper.attached[value], {"param": value, "kind": "attached"}
        saved = self._saved.get(value)
        storage = None if saved is None else self.mapper.storages.adopt(tuple(saved["identity"]), saved["sequence"])
        path = self._path(value)
        if storage is None:
            storage = self.mapper.storages.acquire(path, readonly=readonly)
        self._storages.append(storage)
        if self.mapper.storages.users(storage) > 1:
            # a pool may lie on it, with volumes that are cached
            for other in self.mapper.devices():
                other.export.recache()
        identity, sequence = list(storage.identity), sequence_of(storage)
        if saved is not None and (saved["identity"] != identity or saved["sequence"] != sequence):
            raise OSError(errno.ENODEV, "another one than when the table was loaded", path)
        # through a file system on one of our own devices; a path is not looked at again when it was
        below = saved.get("below", []) if saved is not None else self._ours_below(storage)
        reference = {
            "param": value,
            "kind": "storage",
            "path": path,
            "identity": identity,
            "sequence": sequence,
            "below": below,
        }
        return storage, reference

    def _ours_below(self, storage: FileStorage) -> list[int]:
        """The minor numbers of our own devices that the storage stands on."""
        found = (self.mapper.by_number(number) for number in devices_below(storage.fds))
        return sorted(device.devno[1] for device in found if device is not None)

    def _mapped(self, value: str) -> MappedDevice | None:
        """The mapped device that the value names, if it names one."""
        saved = self._saved.get(value)
        if saved is not None:
            return self.mapper.find(name=saved["name"]) if saved["kind"] == "device" else None
        number = _device_number(value)
        if number is not None:
            device = self.mapper.by_number(number)
            if device is not None and not device.has_loaded:
                # the kernel makes the disk with the first table
                raise OSError(errno.ENXIO, f"{device.name} has never had a table")
            return device
        folder, name = os.path.split(value)
        if name and self._is_mapper_folder(folder):
            # by its name, before anything touches the path: a file that we serve must not be opened by us
            try:
                found = self.mapper.find(name=name)
            except OSError as error:
                raise OSError(errno.ENODEV, error.strerror) from error
            if not found.has_loaded:
                raise OSError(errno.ENODEV, f"{name} has never had a table")
            return found
        try:
            info = os.stat(self._path(value))  # noqa: PTH116
        except OSError:
            return None
        if not stat.S_ISBLK(info.st_mode):
            return None
        return self.mapper.by_number((os.major(info.st_rdev), os.minor(info.st_rdev)))

    def _is_mapper_folder(self, folder: str) -> bool:
        if not folder or self._root != "/":
            return False
        ours = self.mapper.folder
        if ours is None:
            return folder == "/dev/mapper"
        return folder == str(ours) or Path(folder).resolve() == ours.resolve()

    def _path(self, value: str) -> str:
        saved = self._saved.get(value)
        if saved is not None and "path" in saved:
            return str(saved["path"])
        number = _device_number(value)
        if number is not None:
            # the kernel needs no node; we find it by its name in sysfs
            link = f"/sys/dev/block/{number[0]}:{number[1]}"
            if not os.path.exists(link):  # noqa: PTH110
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            return f"/dev/{os.path.basename(os.path.realpath(link))}"  # noqa: PTH119
        if self._root != "/":
            return path_of(self._root, self._folder, value)
        if not value.startswith("/"):
            value = os.path.join(self._folder or os.getcwd(), value)  # noqa: PTH109, PTH118
        # not normpath: what ".." leads to is known where the links before it lead to
        return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))

    def _hold(self, device: MappedDevice) -> None:
        """Count the table among the device's users; EINVAL for a loop, or for too many that stand on each other, ENXIO
        for a device that is going."""
        with self.mapper.graph_lock:
            if device.deleting:
                raise OSError(errno.ENXIO, f"{device.name} is being removed")
            if any(upper is device for upper in self.device.uppers()):
                raise OSError(errno.EINVAL, f"a loop: {device.name} stands on {self.device.name}")
            levels = levels_above(self.device) + levels_below(device)
            if levels > MAX_LEVELS:
                raise OSError(errno.EINVAL, f"{levels} devices would stand on each other, allowed are {MAX_LEVELS}")
            device.users.append(self)
            self._devices.append(device)
        device.export.recache()
        if device.deferred_remove:
            try:
                # its last opener must not take it away from under us: that is up to the last table now
                device.export.stay()
            except OSError as error:
                raise OSError(errno.ENXIO, f"{device.name} is being removed") from error

    def references(self) -> list[dict[str, Any]]:
        # a device may have been renamed since
        return [
            {**reference, "name": getattr(place, "name", None)} if reference["kind"] == "device" else reference
            for place, reference in list(self._found.values())  # the state is saved while a table is being closed
        ]

    @property
    def devices(self) -> list[MappedDevice]:
        """The mapped devices that the table stands on."""
        return self._devices

    def storage(self, place: Place) -> Storage:
        """See targets.base.Context.storage."""
        if place.resolve is None:
            return place  # type: ignore[return-value]
        return next(device for device in self._devices if device is place).storage()

    def devno(self, place: Place) -> tuple[int, int] | None:
        if isinstance(place, FileStorage):
            return (os.major(place.device), os.minor(place.device)) if place.is_block else None
        number: tuple[int, int] | None = getattr(place, "devno", None)
        return number

    def describe(self, place: Place) -> str:
        number = self.devno(place)
        if number is not None:
            return f"{number[0]}:{number[1]}"
        if isinstance(place, FileStorage):
            return escape_argument(place.path)
        names = (name for name, storage in self.mapper.attached.items() if storage is place)
        return escape_argument(next(names, "?"))

    def release(self) -> None:
        while self._storages:
            self.mapper.storages.release(self._storages.pop())
        deferred = False
        with self.mapper.graph_lock:
            while self._devices:
                device = self._devices.pop()
                device.users.remove(self)
                deferred = deferred or device.deferred_remove
        self._found.clear()
        if deferred:
            self.mapper.reap_soon()


class LineContext:
    """One line's surroundings; see targets.base.Context. Sectors."""

    def __init__(self, opened: Opened, start: int, length: int, readonly: bool) -> None:
        self._opened = opened
        self.start = start
        self.length = length
        self.readonly = readonly
        self.areas: list[Area] = []
        self.storage = opened.storage
        self.describe = opened.describe
        self.keep = opened.mapper.keep
        self.restoring = opened.restoring

    @property
    def host(self) -> MappedDevice:
        return self._opened.device

    def open(self, argument: str, value: str) -> Place:
        return self._opened.open(argument, value, readonly=self.readonly)

    def live_target(self, place: Place) -> Target | None:
        table = getattr(place, "live", None)
        if table is None or len(table.entries) != 1:
            return None
        target: Target = table.entries[0].target
        return target


def _device_number(value: str) -> tuple[int, int] | None:
    """What major:minor means; EOVERFLOW for what no number of a device can hold."""
    found = _NUMBER.fullmatch(value)
    if found is None:
        return None
    major, minor = int(found[1]), int(found[2])
    if major >= 1 << 12 or minor >= 1 << 20:
        raise OSError(errno.EOVERFLOW, "must be below 4096:1048576")
    return major, minor


def sequence_of(storage: FileStorage) -> int:
    """The disk's sequence number (BLKGETDISKSEQ, kernel 5.15): another loop under the same number has another."""
    if not storage.is_block:
        return 0
    number = storage.device
    try:
        return int(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/diskseq").read_text())
    except (OSError, ValueError):
        return 0
