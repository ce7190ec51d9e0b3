"""Tables on the wire: struct dm_target_spec, a string after each.

A spec's ``next`` counts from *that* spec when a table is loaded, and from the *start of the data area* when a
table or a status is read. A record here is (start, length, type, text), start and length in sectors.
"""

from __future__ import annotations

from struct import Struct

from userdm.abi.dm_ioctl import TYPE_LEN, align, c_string, cut_string, fixed_string, invalid, terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from userdm.abi.dm_ioctl import Buffer

    Record = tuple[int, int, str, str]

_SPEC = Struct("<QQiI16s")
SPEC_SIZE = _SPEC.size
_U64 = 1 << 64


def _pack(record: Record, following: int) -> bytes:
    start, length, kind, _ = record
    if not (0 <= start < _U64 and 0 <= length < _U64):
        raise invalid(f"table line {start} {length} {kind}: sectors must be from 0 to {_U64 - 1}")
    return _SPEC.pack(start, length, 0, following, fixed_string(kind, TYPE_LEN, "target type"))


def pack_load(records: Iterable[Record]) -> bytes:
    """The payload of TABLE_LOAD."""
    out = bytearray()
    for record in records:
        text = terminated(record[3], "target arguments")
        following = align(SPEC_SIZE + len(text))
        out += _pack(record, following) + text.ljust(following - SPEC_SIZE, b"\0")
    return bytes(out)


def read_load(payload: Buffer, count: int) -> Iterator[Record]:
    """The ``count`` records of a TABLE_LOAD, each decoded when it is asked for, as the kernel does it: what is wrong
    with a line is told before what is wrong with the next one's record."""
    offset = step = 0
    for number in range(1, count + 1):
        offset += step
        # a step back, or one into the spec before, would let one record be read many times
        if (number > 1 and step < SPEC_SIZE) or offset + SPEC_SIZE > len(payload):
            raise invalid(f"table line {number}: its record at byte {offset} does not fit the buffer's {len(payload)}")
        start, length, _, step, kind = _SPEC.unpack_from(payload, offset)
        text, _ = c_string(payload, offset + SPEC_SIZE, f"table line {number}")
        yield start, length, cut_string(kind), text


def unpack_load(payload: Buffer, count: int) -> list[Record]:
    return list(read_load(payload, count))


def pack_status(records: Sequence[Record], room: int) -> tuple[bytes, bool]:
    """What of the records fits in ``room`` bytes, and whether that was not all of them (the buffer is full).

    As the kernel: a buffer is full when its last byte is used, and when the padding after a record does not fit.
    """
    out = bytearray()
    used = 0
    for record in records:
        raw = terminated(record[3], "status")
        if used + SPEC_SIZE + len(raw) >= room:
            return bytes(out), True
        out += bytes(used - len(out))
        following = align(used + SPEC_SIZE + len(raw))
        if following > room:
            return bytes(out + _pack(record, 0) + raw), True
        out += _pack(record, following) + raw
        used = following
    return bytes(out), False


def unpack_status(payload: bytes, count: int) -> list[Record]:
    """The ``count`` records of a TABLE_STATUS or DEV_WAIT reply."""
    records: list[Record] = []
    offset = 0
    for number in range(1, count + 1):
        if offset + SPEC_SIZE > len(payload):
            raise invalid(f"target {number}: its record at byte {offset} does not fit the reply's {len(payload)}")
        start, length, _, following, kind = _SPEC.unpack_from(payload, offset)
        text, _ = c_string(payload, offset + SPEC_SIZE, f"target {number}")
        records.append((start, length, cut_string(kind), text))
        if following < offset + SPEC_SIZE:
            raise invalid(f"target {number}: the next record is at byte {following}, before this one's end")
        offset = following
    return records
