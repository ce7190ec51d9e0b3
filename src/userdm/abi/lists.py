"""The other payloads: names, dependencies, versions of targets, messages, a single string."""

from __future__ import annotations

from struct import Struct

from userdm.abi.dm_ioctl import align, c_string, invalid, terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from userdm.abi.dm_ioctl import Buffer

_NAME = Struct("<QI")
_NAME_EXTRA = Struct("<II")
_DEPS = Struct("<II")
_VERSIONS = Struct("<I3I")
_SECTOR = Struct("<Q")
VERSION_SIZE = _VERSIONS.size
_U64 = 1 << 64

NAME_HAS_UUID = 1
NAME_HAS_NO_UUID = 2


class Name:
    """One entry of LIST_DEVICES; ``uuid`` is None when the request did not ask for it."""

    __slots__ = ("dev", "name", "event_nr", "uuid")

    def __init__(self, dev: int, name: str, event_nr: int = 0, uuid: str | None = None) -> None:
        self.dev = dev
        self.name = name
        self.event_nr = event_nr
        self.uuid = uuid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and all(getattr(self, key) == getattr(other, key) for key in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.dev, self.name))

    def __repr__(self) -> str:
        return f"Name(dev={self.dev:#x}, name={self.name!r}, event_nr={self.event_nr}, uuid={self.uuid!r})"


def pack_names(names: Sequence[Name]) -> bytes:
    """The payload of a LIST_DEVICES reply; of an empty list, nothing (the buffer's zeros say so)."""
    out = bytearray()
    for number, name in enumerate(names, 1):
        record = bytearray(_NAME.size) + terminated(name.name, "name")
        record += bytes(align(len(record)) - len(record))
        flags = 0 if name.uuid is None else NAME_HAS_UUID if name.uuid else NAME_HAS_NO_UUID
        record += _NAME_EXTRA.pack(name.event_nr, flags)
        if name.uuid:
            record += terminated(name.uuid, "uuid")
            record += bytes(align(len(record)) - len(record))
        _NAME.pack_into(record, 0, name.dev, len(record) if number < len(names) else 0)
        out += record
    return bytes(out)


def unpack_names(payload: bytes) -> list[Name]:
    """The names in a LIST_DEVICES reply."""
    names: list[Name] = []
    offset = 0
    while offset + _NAME.size <= len(payload):
        dev, step = _NAME.unpack_from(payload, offset)
        if dev == 0:
            break
        name, end = c_string(payload, offset + _NAME.size, f"name {len(names) + 1}")
        end = offset + align(end - offset)
        if end + _NAME_EXTRA.size > len(payload):
            raise invalid(f"name {name!r}: its event number lies outside of the reply's {len(payload)} bytes")
        event_nr, flags = _NAME_EXTRA.unpack_from(payload, end)
        uuid = "" if flags & NAME_HAS_NO_UUID else None
        if flags & NAME_HAS_UUID:
            uuid, _ = c_string(payload, end + _NAME_EXTRA.size, f"uuid of {name!r}")
        names.append(Name(dev, name, event_nr, uuid))
        if step == 0:
            break
        if step < _NAME.size:
            raise invalid(f"name {name!r}: the next entry is {step} bytes on, inside of this one")
        offset += step
    return names


def pack_deps(devs: Sequence[int]) -> bytes:
    """The payload of a TABLE_DEPS reply: encoded device numbers."""
    return _DEPS.pack(len(devs), 0) + b"".join(_SECTOR.pack(dev) for dev in devs)


def unpack_deps(payload: bytes) -> list[int]:
    if len(payload) < _DEPS.size:
        raise invalid(f"dependencies: {len(payload)} bytes, {_DEPS.size} are needed")
    count, _ = _DEPS.unpack_from(payload)
    if _DEPS.size + count * _SECTOR.size > len(payload):
        raise invalid(f"dependencies: {count} do not fit the reply's {len(payload)} bytes")
    return [_SECTOR.unpack_from(payload, _DEPS.size + index * _SECTOR.size)[0] for index in range(count)]


def pack_versions(versions: Iterable[tuple[str, tuple[int, int, int]]]) -> bytes:
    """The payload of a LIST_VERSIONS or GET_TARGET_VERSION reply: (target type, version) pairs."""
    records: list[bytearray] = []
    for name, version in versions:
        record = bytearray(_VERSIONS.pack(0, *version)) + terminated(name, "target type")
        records.append(record + bytes(align(len(record)) - len(record)))
    for record in records[:-1]:
        record[:4] = len(record).to_bytes(4, "little")
    return b"".join(records)


def unpack_versions(payload: bytes) -> list[tuple[str, tuple[int, int, int]]]:
    found: list[tuple[str, tuple[int, int, int]]] = []
    offset = 0
    while payload:
        if offset + _VERSIONS.size > len(payload):
            raise invalid(f"versions: a record at byte {offset} does not fit the reply's {len(payload)}")
        step, major, minor, patch = _VERSIONS.unpack_from(payload, offset)
        name, _ = c_string(payload, offset + _VERSIONS.size, "target type")
        found.append((name, (major, minor, patch)))
        if step == 0:
            break
        if step < _VERSIONS.size:
            raise invalid(f"target {name!r}: the next record is {step} bytes on, inside of this one")
        offset += step
    return found


def pack_message(sector: int, text: str) -> bytes:
    """The payload of TARGET_MSG; ``sector`` picks the target, text is not split or unescaped."""
    if not 0 <= sector < _U64:
        raise invalid(f"sector {sector}: must be from 0 to {_U64 - 1}")
    return _SECTOR.pack(sector) + terminated(text, "message")


def unpack_message(payload: Buffer) -> tuple[int, str]:
    if len(payload) < _SECTOR.size:
        raise invalid(f"message: {len(payload)} bytes, {_SECTOR.size} are needed")
    (sector,) = _SECTOR.unpack_from(payload)
    text, _ = c_string(payload, _SECTOR.size, "message")
    return sector, text


def pack_string(text: str) -> bytes:
    """The new name or uuid of DEV_RENAME, the type of GET_TARGET_VERSION, the output of a message."""
    return terminated(text, "string")


def unpack_string(payload: Buffer, what: str) -> str:
    return c_string(payload, 0, what)[0]
