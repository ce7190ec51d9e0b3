"""state.json: the devices and their tables, for the next daemon of the same boot.

Written whole after every change, under another name first and then renamed, so that a reader finds one state or the
next. Each path of a table is kept with what it was resolved to (`Table.references`): a storage that is another by
then is not taken for the old one. Not synced to a disk: it dies with the boot, as the kernel's devices do.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from userdm.abi import runtime
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line, Table

log = logging.getLogger(__name__)

VERSION = 1


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class StateFile:
    """The state file of one runtime folder."""

    def __init__(self, runtime_dir: Path, mapper: Mapper) -> None:
        self._path = runtime_dir / runtime.STATE
        self._mapper = mapper
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: dict[str, dict[str, Any]] = {}
        """By name, what `restore` has yet to bring back."""

    def save(self) -> None:
        """Write what is there now. Reads devices without their locks: one that hangs holds up nobody."""
        with self._lock:
            # whoever comes second writes what the first has changed as well
            if self._closed:
                return
            devices = list(self._waiting.values())
            devices += [
                _device(device)
                for device in self._mapper.devices()
                if not device.removed and device.name not in self._waiting
            ]
            state = {"version": VERSION, "boot_id": boot_id(), "devices": devices}
            fresh = self._path.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            fresh.touch(0o600)  # there may be keys in a table
            # not indented: only then json is fast, and a table may have a hundred thousand lines
            fresh.write_text(json.dumps(state), encoding="utf-8")
            fresh.rename(self._path)

    def close(self) -> None:
        """Write once more; from then on what happens to the devices is not the state's business."""
        try:
            self.save()
        finally:
            with self._lock:
                self._closed = True

    def read(self) -> list[dict[str, Any]]:
        """The devices of this boot's state. Another boot's is nothing; one that cannot be read is put aside."""
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if not isinstance(state, dict) or state.get("version") != VERSION:
                raise ValueError(f"must be an object of version {VERSION}")
            if state.get("boot_id") != boot_id():
                log.info("%s is of another boot: not used", self._path)
                return []
            devices = state.get("devices")
            if not isinstance(devices, list) or not all(_is_device(device) for device in devices):
                raise ValueError("holds a device that is none")
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            aside = self._path.with_suffix(".bad")
            log.error("%s: %s; put aside as %s, starting without devices", self._path, error, aside.name)
            os.replace(self._path, aside)  # noqa: PTH105
            return []
        return devices

    def restore(self) -> dict[str, str]:
        """Bring the devices back, those below before those above. Returns who did not come back, and why.

        The file goes on saying what it said of a device until that is back: a daemon that dies meanwhile loses nothing.
        """
        ahead = _in_order(self.read())
        with self._lock:
            self._waiting = {saved["name"]: saved for saved in ahead}
        lost: dict[str, str] = {}
        for saved in ahead:
            try:
                _bring_back(self._mapper, saved)
            except Exception as error:  # whatever one device's target does, the others come back
                lost[saved["name"]] = reason = getattr(error, "strerror", None) or repr(error)
                log.error("%s is not brought back: %s; it was %s", saved["name"], reason, _for_the_log(saved))
            with self._lock:
                del self._waiting[saved["name"]]
        try:
            self.save()
        except OSError as error:
            # what is in the file is what was brought back
            log.error("the state is not saved: %s", error)
        return lost


def _in_order(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those below before those above; and last those whose storage lies on a file system on one of the others, which
    may have to be served before that storage can be read."""
    by_name: dict[str, dict[str, Any]] = {saved["name"]: saved for saved in devices}
    by_minor = {saved["minor"]: saved["name"] for saved in devices}
    order: list[dict[str, Any]] = []
    last: list[dict[str, Any]] = []
    depends: dict[str, bool] = {}
    """By name, whether it, or something that it stands on, is one of the last."""

    def visit(name: str) -> bool:
        if name not in by_name:
            return False
        if name not in depends:
            depends[name] = False
            saved = by_name[name]
            tables = [table for table in (saved["live"], saved["inactive"]) if table is not None]
            for table in tables:
                for reference in table["references"]:
                    below = [by_minor[minor] for minor in _minors(reference) if minor in by_minor]
                    for other in below:
                        visit(other)
                    above = isinstance(reference.get("name"), str) and visit(reference["name"])
                    depends[name] = depends[name] or bool(below) or above
            (last if depends[name] else order).append(saved)
        return depends[name]

    for saved in devices:
        visit(saved["name"])
    return order + last


def _minors(reference: dict[str, Any]) -> list[int]:
    found = reference.get("below")
    return [minor for minor in found if isinstance(minor, int)] if isinstance(found, list) else []


def _device(device: MappedDevice) -> dict[str, Any]:
    return {
        "name": device.name,
        "uuid": device.uuid,
        "minor": device.devno[1],
        "suspended": device.asleep,
        "deferred_remove": device.deferred_remove,
        "event_nr": device.event_nr,
        "geometry": device.geometry,
        "live": _table(device.live),
        "inactive": _table(device.inactive),
    }


def _table(table: Table | None) -> dict[str, Any] | None:
    if table is None:
        return None
    return {
        "readonly": table.readonly,
        "secret": table.secret,
        "lines": [[line.start, line.length, line.type, line.params] for line in table.lines],
        "references": table.references(),
    }


def _is_device(saved: object) -> bool:
    """Whether it has the shape of what `_device` writes; the values are checked where they are used."""
    return (
        isinstance(saved, dict)
        and all(isinstance(saved.get(key), str) for key in ("name", "uuid"))
        and isinstance(saved.get("minor"), int)
        and isinstance(saved.get("suspended"), bool)
        and all(key in saved and _is_table(saved[key]) for key in ("live", "inactive"))
    )


def _is_table(saved: object) -> bool:
    return saved is None or (
        isinstance(saved, dict)
        and isinstance(saved.get("readonly"), bool)
        and isinstance(saved.get("lines"), list)
        and all(
            isinstance(line, list) and [type(value) for value in line] == [int, int, str, str]
            for line in saved["lines"]
        )
        and isinstance(saved.get("references"), list)
        and all(isinstance(reference, dict) and "param" in reference for reference in saved["references"])
    )


def _bring_back(mapper: Mapper, saved: dict[str, Any]) -> None:
    """One device as it was; OSError, and nothing of it there, when its live table cannot be had."""
    name, uuid, minor = saved["name"], saved["uuid"], saved["minor"]
    try:
        device = mapper.create(name, uuid, minor)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        device = mapper.create(name, uuid)
        log.warning("%s: number %s is taken (%s), is %d:%d now", name, minor, error.strerror, *device.devno)
    try:
        if saved["live"] is not None:
            _load(mapper, device, saved["live"])
            mapper.resume(device)
        if saved["suspended"]:
            mapper.suspend(device, flush=False, lockfs=False)
        # a removal that waits for the last close must be there when that is answered
        _set_counters(device, saved)
        device.export.serve()
    except BaseException:
        mapper.give_up(device)
        raise
    if saved["inactive"] is not None:
        try:
            _load(mapper, device, saved["inactive"])
        except OSError as error:
            log.error("%s: its inactive table is not brought back: %s", name, error.strerror)


def _set_counters(device: MappedDevice, saved: dict[str, Any]) -> None:
    """What a device has beside its tables; whoever waits for an event goes on counting from where it was."""
    device.deferred_remove = saved.get("deferred_remove") is True
    event_nr = saved.get("event_nr")
    device.event_nr = event_nr if isinstance(event_nr, int) and 0 <= event_nr < 1 << 32 else 0
    geometry = saved.get("geometry")
    if isinstance(geometry, list) and [type(value) for value in geometry] == [int, int, int, int]:
        device.geometry = (geometry[0], geometry[1], geometry[2], geometry[3])


def _for_the_log(saved: dict[str, Any]) -> str:
    """What the device was, but for secrets in its tables."""
    tables = {key: saved[key] for key in ("live", "inactive") if saved[key] is not None}
    hidden = {key: "secret" for key, table in tables.items() if table.get("secret")}
    return json.dumps({**saved, **hidden})


def _load(mapper: Mapper, device: MappedDevice, saved: dict[str, Any]) -> None:
    lines = [Line(*line) for line in saved["lines"]]
    mapper.load(
        device,
        lines,
        readonly=saved["readonly"],
        secret=saved.get("secret") is True,
        references=saved["references"],
    )
