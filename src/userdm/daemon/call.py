"""One command under way: the request's header, which becomes the reply's, and both payloads."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from userdm.abi import dm_ioctl as dm
from userdm.abi import tables
from userdm.abi.dm_ioctl import Header
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Table


@dataclass(frozen=True)
class Caller:
    """Who asks: the paths of a table mean what they mean to him."""

    root: str
    folder: str | None
    force: bool
    gone: Callable[[], bool]
    """Whether he has hung up, or the daemon is about to end."""


class Call:
    """``size`` is the client's buffer in bytes, ``payload`` what he put at ``data_start``."""

    def __init__(self, header: Header, size: int, payload: bytes, caller: Caller) -> None:
        self.header = header
        self.payload = payload
        self.caller = caller
        self._size = size
        self._out = b""

    # ---- the request ------------------------------------------------------------------------------------------

    def has(self, flag: int) -> bool:
        return bool(self.header.flags & flag)

    def device(self, mapper: Mapper) -> MappedDevice:
        """The device that the header names by uuid, by name or by number; by two of them, or none: ENXIO."""
        header = self.header
        given = [bool(header.uuid), bool(header.name), bool(header.dev)]
        if sum(given) != 1:
            raise OSError(errno.ENXIO, "a device is named by its name, its uuid or its number: one of them")
        if header.uuid:
            return mapper.find(uuid=header.uuid)
        if header.name:
            return mapper.find(name=header.name)
        return mapper.find(devno=dm.decode_dev(header.dev))

    def table(self, device: MappedDevice) -> Table | None:
        """The live table, or the inactive one when that was asked for."""
        return device.inactive if self.has(dm.QUERY_INACTIVE) else device.live

    # ---- the reply --------------------------------------------------------------------------------------------

    def describe(self, device: MappedDevice) -> None:
        """What every command about a device answers."""
        header = self.header
        header.name, header.uuid = device.name, device.uuid
        header.dev = dm.encode_dev(device.devno)
        header.open_count = device.open_count(scan=not self.has(dm.SKIP_BDGET))
        header.event_nr = device.event_nr
        live, inactive = device.live, device.inactive
        table = inactive if self.has(dm.QUERY_INACTIVE) else live
        header.target_count = 0 if table is None else len(table.entries)
        shown = {
            dm.SUSPEND: device.suspended,
            dm.READONLY: table is not None and table.readonly,
            dm.ACTIVE_PRESENT: live is not None,
            dm.INACTIVE_PRESENT: inactive is not None,
            dm.INTERNAL_SUSPEND: False,
        }
        for flag, is_set in shown.items():
            header.flags = header.flags | flag if is_set else header.flags & ~flag
        if device.deferred_remove:
            header.flags |= dm.DEFERRED_REMOVE

    @property
    def _room(self) -> int:
        return max(0, self._size - dm.HEADER_SIZE)

    def put(self, payload: bytes) -> None:
        """Answer with the payload; when it does not fit, only say so, which is no error."""
        self.header.data_start = dm.HEADER_SIZE
        if len(payload) > self._room:
            self.header.flags |= dm.BUFFER_FULL
            return
        self._out = payload
        self.header.data_size = dm.HEADER_SIZE + len(payload)

    def put_records(self, records: Sequence[tuple[int, int, str, str]]) -> None:
        """Answer with a table's or status's records, as many as fit."""
        self.header.data_start = dm.HEADER_SIZE
        self.header.target_count = len(records)
        payload, full = tables.pack_status(records, self._room)
        if full:
            self.header.flags |= dm.BUFFER_FULL
        if payload:
            self._out = payload
            self.header.data_size = dm.HEADER_SIZE + len(payload)

    def answer(self) -> bytes:
        """What is copied back into the client's buffer."""
        return (self.header.pack() + self._out)[: self.header.data_size]
