"""One command under way: the request's header, which becomes the reply's, and both payloads."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from userdm.abi import dm_ioctl as dm
from userdm.abi import lists, tables
from userdm.abi.dm_ioctl import Header
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper


@dataclass(frozen=True)
class Caller:
    """Who asks: the paths of a table mean what they mean to him."""

    root: str
    folder: str | None
    force: bool
    gone: Callable[[], bool]
    """Whether he has hung up, or the daemon is about to end."""


class Call:
    """``size`` is the client's buffer in bytes, ``payload`` what he put at ``data_start``; ``secret``: and it is
    nobody else's business, so it gets into no log, and is wiped when the command has ended."""

    def __init__(self, header: Header, size: int, payload: bytearray, caller: Caller, *, secret: bool) -> None:
        self.header = header
        self.payload = payload
        self.caller = caller
        self.secret = secret
        self._size = size
        self._out = b""

    # ---- the request ------------------------------------------------------------------------------------------

    def has(self, flag: int) -> bool:
        return bool(self.header.flags & flag)

    def find(self, mapper: Mapper) -> MappedDevice:
        """The device that the header names by uuid, by name or by number; by two of them, or none: ENXIO.

        Its name and its uuid are in the answer from then on, whatever the command does.
        """
        header = self.header
        given = [bool(header.uuid), bool(header.name), bool(header.dev)]
        if sum(given) != 1:
            raise OSError(errno.ENXIO, "a device is named by its name, its uuid or its number: one of them")
        if header.uuid:
            device = mapper.find(uuid=header.uuid)
        elif header.name:
            device = mapper.find(name=header.name)
        else:
            device = mapper.find(devno=dm.decode_dev(header.dev))
        header.name, header.uuid = device.name, device.uuid
        self.set_flag(dm.INACTIVE_PRESENT, device.inactive is not None)
        return device

    def string(self, what: str) -> str:
        """The one string of the payload."""
        return lists.unpack_string(self.payload, what)

    # ---- the reply --------------------------------------------------------------------------------------------

    def set_flag(self, flag: int, is_set: bool) -> None:
        self.header.flags = self.header.flags | flag if is_set else self.header.flags & ~flag

    def describe(self, device: MappedDevice) -> None:
        """The state that nearly every command about a device answers (the kernel's __dev_status)."""
        header = self.header
        header.dev = dm.encode_dev(device.devno)
        header.open_count = device.open_count(scan=not self.has(dm.SKIP_BDGET))
        header.event_nr = device.event_nr
        live, inactive = device.live, device.inactive
        table = inactive if self.has(dm.QUERY_INACTIVE) else live
        header.target_count = 0 if table is None else table.count
        self.set_flag(dm.SUSPEND, device.suspended)
        readonly = table is not None and (table.readonly if table is inactive else device.shown_readonly)
        self.set_flag(dm.READONLY, readonly)
        self.set_flag(dm.ACTIVE_PRESENT, live is not None)
        self.set_flag(dm.INTERNAL_SUSPEND, False)
        if device.deferred_remove:
            header.flags |= dm.DEFERRED_REMOVE

    @property
    def _room(self) -> int:
        return max(0, self._size - dm.HEADER_SIZE)

    def begin_answer(self) -> None:
        """Say where in the client's buffer an answer is, also when there is none."""
        self.header.data_start = min(dm.HEADER_SIZE, self._size)

    def put(self, payload: bytes, *, at_least: int = 0) -> None:
        """Answer with the payload; when it does not fit, or there is not ``at_least`` so much room, only say so,
        which is no error."""
        self.begin_answer()
        if len(payload) > self._room or self._room < at_least:
            self.header.flags |= dm.BUFFER_FULL
            return
        self._out = payload
        self.header.data_size = dm.HEADER_SIZE + len(payload)

    def put_string(self, text: str) -> None:
        """Answer with a string; a last byte that is used means, as in a status, that it may have been cut off."""
        raw = lists.pack_string(text)
        self.put(raw, at_least=len(raw) + 1)

    def put_records(self, records: Sequence[tuple[int, int, str, str]]) -> None:
        """Answer with a table's or status's records, as many as fit."""
        self.begin_answer()
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
