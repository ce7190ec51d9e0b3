"""dm_ioctl buffers as a hostile client would send them: right ones with a part bent, and noise."""

from __future__ import annotations

import random
import struct

from userdm.abi import dm_ioctl as dm
from userdm.abi import lists, tables
from userdm.abi.dm_ioctl import Header

NAMES = ("a", "b", "pool", "thin", "x" * 127, "a b", "\\x20", "..", "é", "control")
KINDS = ("linear", "striped", "zero", "error", "thin", "thin-pool", "crypt", "", "zeros", "x" * 15)
WORDS = (
    "m", "d", "disk", "other", "0", "1", "2", "3", "8", "128", "64", "-1", "18446744073709551615", "0x10", "1e3",
    "18446744073709551616", "/dev/mapper/pool", "/dev/mapper/a", "/dev/mapper/b", "/dev/mapper/", "/dev/mapper/nobody",
    "240:0", "240:1", "240:99999", "9999:9999999", "skip_block_zeroing", "read_only", "error_if_no_space", "ignore",
    "/nowhere/at/all", "\\", "\\ ", "\x7f", "é", "'", "1 1 1", "A" * 5000,
)  # fmt: skip
PARAMS = (
    "", "disk 0", "other 8", "d 0", "2 64 disk 0 other 0", "1 8 d 0", "m d 128 0", "m d 128 0 1 read_only",
    "/dev/mapper/pool 0", "/dev/mapper/pool 1", "/dev/mapper/pool 1 disk", "/dev/mapper/a 0", "/dev/mapper/b 3",
)  # fmt: skip
MESSAGES = (
    "create_thin 0", "create_thin 1", "create_snap 2 0", "create_snap 1 0", "delete 0", "delete 2",
    "set_transaction_id 0 1", "reserve_metadata_snap", "release_metadata_snap", "@stats_list",
    "@cancel_deferred_remove", "@", "", " ", "\\", "create_thin", "create_thin x", "create_thin 16777216",
    "create_snap 0 0 0", "@stats_create - 1",
)  # fmt: skip
NUMBERS = (0, 1, 7, 8, 39, 40, 41, 127, 128, 304, 305, 306, 311, 312, 313, 320, 352, 4096, 16384, 1 << 20, 1 << 24,
           (1 << 24) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)  # fmt: skip
SECTORS = (0, 1, 8, 16, 64, 128, 1024, (1 << 54) - 1, 1 << 54, 1 << 63, (1 << 64) - 1)


class Buffers:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def name(self) -> str:
        return self.rng.choice(NAMES[: self.rng.choice((4, 4, 4, len(NAMES)))])

    def naming(self, field: str) -> str | int:
        if field == "name":
            return self.name()
        if field == "dev":
            return dm.encode_dev((240, self.rng.choice((0, 1, 2, 5))))
        return self.rng.choice(("U", "V", "LVM-" + "x" * 64, "w" * 128))

    def params(self) -> str:
        rng = self.rng
        if rng.random() < 0.6:
            return rng.choice(PARAMS)
        return rng.choice((" ", "  ", "\t", "\n")).join(rng.choice(WORDS) for _ in range(rng.randrange(9)))

    def records(self) -> list[tuple[int, int, str, str]]:
        rng = self.rng
        records, start = [], 0
        for _ in range(rng.choice((1, 1, 1, 2, 3, 20))):
            length = rng.choice((8, 64, 128, 1024)) if rng.random() < 0.9 else rng.choice(SECTORS)
            if rng.random() < 0.05:
                start = rng.choice(SECTORS)
            records.append((start, length, rng.choice(KINDS), self.params()))
            start = (start + length) % (1 << 64)
        return records

    def message(self) -> str:
        rng = self.rng
        if rng.random() < 0.8:
            return rng.choice(MESSAGES)
        return " ".join(rng.choice((*WORDS, *MESSAGES)) for _ in range(rng.randrange(4)))

    def command(self) -> tuple[int, bytes]:
        """(command, buffer), with one or two faults in it as often as not."""
        rng = self.rng
        nr = rng.choice((*range(2, 18), 3, 3, 6, 6, 6, 6, 9, 9, 9, 9, 12, 12, 14, 14, 14))
        if rng.random() < 0.02:
            nr = rng.choice((dm.DM_VERSION, dm.DM_REMOVE_ALL))
        fields: dict[str, int | str] = {"data_size": rng.choice((16384, 16384, 312, 400, 1 << 20))}
        payload = b""
        if nr == dm.DM_TABLE_LOAD:
            records = self.records()
            payload = tables.pack_load(records)
            fields["target_count"] = len(records)
        elif nr == dm.DM_TARGET_MSG:
            payload = lists.pack_message(rng.choice((0, 0, 0, *SECTORS)), self.message())
        elif nr == dm.DM_DEV_RENAME:
            payload = lists.pack_string(rng.choice((self.name(), "", "/", "u" * 200)))
        elif nr == dm.DM_DEV_SET_GEOMETRY:
            payload = lists.pack_string(rng.choice(("16 63 8 0", "0 0 0 0", "1 2 3", "99999 256 256 1", "a b c d")))
        if nr == dm.DM_GET_TARGET_VERSION:
            fields["name"] = rng.choice(KINDS)
        else:
            for field in rng.choice((*8 * (("name",),), ("uuid",), ("dev",), ("name", "uuid"), ("dev", "name"), ())):
                fields[field] = self.naming(field)
        fields["flags"] = self.flags()
        fields["event_nr"] = rng.choice((0, 0, 1, 1 << 31, (1 << 32) - 1))
        buffer = bytearray(Header(**fields).pack() + payload)  # type: ignore[arg-type]
        while rng.random() < 0.25:
            self.bend(buffer)
        return nr if rng.random() < 0.97 else rng.choice((18, 200, (1 << 32) - 1)), bytes(buffer)

    def flags(self) -> int:
        rng = self.rng
        if rng.random() < 0.05:
            return rng.getrandbits(32)
        flags = 0
        for _ in range(rng.randrange(4)):
            flags |= 1 << rng.randrange(20)
        if rng.random() < 0.5:
            flags &= ~dm.SUSPEND
        return flags

    def bend(self, buffer: bytearray) -> None:
        """One fault: a field of the header, of a record, a byte, the end."""
        rng = self.rng
        way = rng.randrange(6)
        if way == 0:
            struct.pack_into("<I", buffer, rng.choice((0, 4, 8, 12, 16, 20, 24, 28, 32, 36)), rng.choice(NUMBERS))
        elif way == 1:
            struct.pack_into("<Q", buffer, 40, rng.choice((0, 1 << 8, rng.getrandbits(16), rng.getrandbits(64))))
        elif way == 2 and len(buffer) >= dm.HEADER_SIZE + 40:
            at = dm.HEADER_SIZE + rng.choice((0, 8))
            struct.pack_into("<Q", buffer, at, rng.choice(SECTORS))
        elif way == 3 and len(buffer) >= dm.HEADER_SIZE + 24:
            struct.pack_into("<I", buffer, dm.HEADER_SIZE + 20, rng.choice(NUMBERS))
        elif way == 4:
            for _ in range(rng.choice((1, 1, 20))):
                buffer[rng.randrange(len(buffer))] = rng.choice((0, 0xFF, rng.randrange(256)))
        else:
            at = rng.choice((0, 12, 304, 305, 312, len(buffer) - 1, rng.randrange(len(buffer))))
            del buffer[min(at, len(buffer)) :]
            if not buffer:
                buffer.append(0)
        if len(buffer) < 48:
            buffer.extend(bytes(48 - len(buffer)) if rng.random() < 0.5 else b"\xff" * (48 - len(buffer)))
