"""The ioctl interface against the kernel's: the same buffers to both, and every byte of the answers compared.

Random commands, right and wrong, from a fixed seed. Left out: DEFERRED_REMOVE of what is in use (its time is the
kernel's business), waits for an event that does not come, and what a list of targets holds.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import oracle
from userdm.abi import dm_ioctl as dm
from userdm.abi import lists, tables
from userdm.abi.dm_ioctl import Header
from userdm.daemon.call import Caller
from userdm.daemon.ioctls import Ioctls
from userdm.mapper.hooks import NoExporter
from userdm.mapper.registry import Mapper

COMMANDS = 2500
BUFFER = 4096
RECORD = struct.Struct("<6I")
MAJOR = 253
"""The kernel's device mapper under the oracle."""
BASE = 60
"""A minor that tables stand on."""

NAMES = ("a", "b", "c", "base", "", "x/y", "n" * 127)
UUIDS = ("", "", "", "U", "V", "with/slash", "w" * 128)
FLAGS = (
    dm.READONLY, dm.SUSPEND, dm.EXISTS, dm.PERSISTENT_DEV, dm.STATUS_TABLE, dm.INACTIVE_PRESENT, dm.BUFFER_FULL,
    dm.SKIP_BDGET, dm.SKIP_LOCKFS, dm.NOFLUSH, dm.QUERY_INACTIVE, dm.UUID, dm.SECURE_DATA, dm.DATA_OUT, 1 << 27,
)  # fmt: skip
LINES = (
    ("zero", ""), ("zero", ""), ("error", ""), ("error", "x"), ("linear", f"{MAJOR}:{BASE} 0"),
    ("linear", f"{MAJOR}:{BASE} 8"), ("zero", "x"), ("linear", f"{MAJOR}:{BASE}"), ("linear", "/nope 0"),
    ("nought", ""), ("linear", f"{MAJOR}:{BASE} 1000"), ("", ""), ("x" * 15, ""),
)  # fmt: skip
MESSAGES = ("", " ", "hello", "@cancel_deferred_remove", "@CANCEL_deferred_remove x", "@bogus", "@stats_list", "\\")
GEOMETRIES = ("1 2 3 4", " 10\t1  2 20", "10 1 2 21", "65536 1 1 0", "1 256 1 0", "1 1 256 0", "1 1 1", "1 1 1 0 ",
              "1 1 1 0 9", "a b c d", "", "-1 1 1 0")  # fmt: skip
WEIGHTS = {
    dm.DM_VERSION: 1, dm.DM_REMOVE_ALL: 1, dm.DM_LIST_DEVICES: 8, dm.DM_DEV_CREATE: 16, dm.DM_DEV_REMOVE: 6,
    dm.DM_DEV_RENAME: 8, dm.DM_DEV_SUSPEND: 16, dm.DM_DEV_STATUS: 8, dm.DM_DEV_WAIT: 4, dm.DM_TABLE_LOAD: 24,
    dm.DM_TABLE_CLEAR: 2, dm.DM_TABLE_DEPS: 6, dm.DM_TABLE_STATUS: 12, dm.DM_TARGET_MSG: 6, dm.DM_DEV_SET_GEOMETRY: 4,
    dm.DM_DEV_ARM_POLL: 1, dm.DM_GET_TARGET_VERSION: 2, 18: 1,
}  # fmt: skip


class Commands:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        yield dm.DM_LIST_DEVICES, whole(Header(data_size=BUFFER))
        yield from self.base()
        for _ in range(COMMANDS):
            nr = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            yield nr, self.buffer(nr)
            if nr == dm.DM_REMOVE_ALL:
                yield from self.base()

    def base(self) -> Iterator[tuple[int, bytes]]:
        number = dm.encode_dev((MAJOR, BASE))
        header = Header(data_size=BUFFER, name="base", uuid="B", flags=dm.PERSISTENT_DEV, dev=number)
        yield dm.DM_DEV_CREATE, whole(header)
        table = tables.pack_load([(0, 64, "zero", "")])
        yield dm.DM_TABLE_LOAD, whole(Header(data_size=BUFFER, name="base", target_count=1), table)
        yield dm.DM_DEV_SUSPEND, whole(Header(data_size=BUFFER, name="base"))

    def buffer(self, nr: int) -> bytes:
        rng = self.rng
        header = Header(version=(4, rng.choice((0, 0, 27, 47)), 0), data_size=rng.choice((BUFFER, BUFFER, 2048)))
        name, uuid, dev = rng.choice(NAMES), rng.choice(UUIDS), dm.encode_dev((MAJOR, rng.choice((0, 1, 2, BASE, 70))))
        if nr == dm.DM_DEV_CREATE:
            header.name, header.uuid = name, uuid
            header.dev = dm.encode_dev((MAJOR, rng.choice((0, 1, 2, 70)))) if rng.random() < 0.3 else 0
        elif rng.random() < 0.75:
            header.name = name or "a"
        else:
            naming = rng.choice(("name", "uuid", "dev", "nothing", "all"))
            header.name = name if naming in ("name", "all") else ""
            header.uuid = uuid if naming in ("uuid", "all") else ""
            header.dev = dev if naming in ("dev", "all") else 0
        if nr in (dm.DM_DEV_REMOVE, dm.DM_DEV_RENAME) and "base" in (header.name, self.named(header.dev)):
            header.name, header.dev = "b", 0
        for flag in FLAGS:
            header.flags |= flag if rng.random() < 0.12 else 0
        if rng.random() < 0.5:
            header.flags &= dm.SUSPEND
        header.event_nr = rng.choice((0, 1, 2, 0x12345678)) if nr != dm.DM_DEV_WAIT else 0xFFFFFFFF
        header.open_count, header.target_count = rng.choice((0, 7)), rng.choice((0, 0, 9))
        payload = self.payload(nr, header)
        if rng.random() < 0.08:
            self.bend(nr, header, payload)
        return whole(header, payload)

    @staticmethod
    def named(dev: int) -> str:
        return "base" if dev == dm.encode_dev((MAJOR, BASE)) else ""

    def payload(self, nr: int, header: Header) -> bytes:
        rng = self.rng
        if nr == dm.DM_TABLE_LOAD:
            records, start = [], 0
            for _ in range(rng.choice((1, 1, 2, 3))):
                kind, params = rng.choice(LINES[: rng.choice((6, len(LINES)))])
                if "base" in (header.name, self.named(header.dev)):
                    kind, params = "zero", ""  # the kernel lets a device stand on itself
                length = rng.choice((8, 8, 16, 64, 0)) if rng.random() < 0.9 else 1 << 55
                records.append((start if rng.random() < 0.95 else start + 1, length, kind, params))
                start += length
            header.target_count = len(records) if rng.random() < 0.93 else rng.choice((0, 1, 5))
            return tables.pack_load(records)
        if nr == dm.DM_DEV_RENAME:
            return lists.pack_string(rng.choice((*NAMES, *UUIDS, "d", "W", "z" * 200)))
        if nr == dm.DM_TARGET_MSG:
            text = rng.choice(MESSAGES)
            # the kernel answers an empty list of statistics with what is in the buffer: the sector
            return lists.pack_message(0 if "stats" in text else rng.choice((0, 8, 1 << 40)), text)
        if nr == dm.DM_DEV_SET_GEOMETRY:
            return lists.pack_string(rng.choice(GEOMETRIES))
        if nr == dm.DM_GET_TARGET_VERSION:
            header.name, header.uuid = rng.choice(("zero", "linear", "nought", "")), ""
        if nr in (dm.DM_TABLE_STATUS, dm.DM_LIST_DEVICES, dm.DM_TABLE_DEPS) and rng.random() < 0.7:
            header.data_size = rng.randrange(305, 640)
        return b""

    def bend(self, nr: int, header: Header, payload: bytes) -> None:
        rng = self.rng
        match rng.randrange(4):
            case 0:
                header.version = rng.choice(((3, 0, 0), (4, 48, 0), (5, 0, 0), (0, 0, 0)))
            case 1:
                # REMOVE_ALL and SET_GEOMETRY, and all that take no payload, do not look at where it begins
                header.data_start = rng.choice((0, 304, 305, 313, header.data_size - 1, header.data_size, 1 << 31))
                if nr == dm.DM_TABLE_LOAD and header.data_start < 305:
                    header.data_start = 320  # the kernel takes a table from inside of the header
            case 2:
                header.data_size = rng.choice((0, 304, (1 << 30) + 1, (1 << 32) - 1))
            case 3:
                header.data_size = rng.randrange(305, 305 + len(payload) + 16)


def whole(header: Header, payload: bytes = b"") -> bytes:
    return (header.pack() + payload).ljust(BUFFER, b"\0")


def kernels_answers(folder: Path, commands: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("missing: gcc")
    program, disk = folder / "replay", folder / "disk"
    source = Path(__file__).with_name("replay.c")
    options = ["-O1", "-static", "-nostdlib", "-fno-stack-protector", "-fno-builtin"]
    subprocess.run([compiler, *options, "-o", program, source], check=True)
    program.write_bytes(program.read_bytes().ljust(1 << 16, b"\0"))
    raw = b"".join(RECORD.pack(1, nr, len(buffer), 0, 0, 0) + buffer for nr, buffer in commands) + bytes(RECORD.size)
    disk.write_bytes(raw + bytes(-len(raw) % 65536))
    script = "cat /dev/vdc >/tmp/replay; chmod +x /tmp/replay; /tmp/replay /dev/vdb"
    oracle.run(script, [disk, program])
    raw = disk.read_bytes()
    found, at = [], 0
    for nr, buffer in commands:
        _, number, size, answer, _, _ = RECORD.unpack_from(raw, at)
        at += RECORD.size
        assert (number, size) == (nr, len(buffer))
        found.append((answer, raw[at : at + size]))
        at += size
    return found


class Ours:
    def __init__(self) -> None:
        exporter = NoExporter()
        exporter.MAJOR = MAJOR
        self.mapper = Mapper(exporter)
        self.ioctls = Ioctls(self.mapper, lambda: None)
        self.detail = ""

    def __call__(self, nr: int, buffer: bytes) -> tuple[int, bytes]:
        """What a client sees, who has his buffer and gets the answer put over it."""
        header = Header.unpack(buffer)
        sent = bytearray(buffer[: max(dm.DATA_OFFSET, min(header.data_size, len(buffer)))])
        number, reply, self.detail = self.ioctls.execute(nr, sent, Caller("/", None, force=False, gone=lambda: False))
        if header.flags & dm.SECURE_DATA and nr not in (dm.DM_VERSION, 18) and number_is_after_the_copy(header):
            # the client's library wipes his copy, as the kernel would
            buffer = bytes(header.data_size) + buffer[header.data_size :]
            reply = b"" if number else reply
        return number, reply + buffer[len(reply) :]


def number_is_after_the_copy(header: Header) -> bool:
    return header.version[0] == 4 and header.version[1] <= 47 and 305 <= header.data_size <= 1 << 30


def comparable(nr: int, answer: tuple[int, bytes]) -> tuple[int, bytes]:
    number, buffer = answer
    if number or nr not in (dm.DM_DEV_REMOVE, dm.DM_DEV_RENAME, dm.DM_DEV_SUSPEND):
        return answer
    # there is no uevent
    flags = int.from_bytes(buffer[28:32], "little") & ~dm.UEVENT_GENERATED
    return number, buffer[:28] + flags.to_bytes(4, "little") + buffer[32:]


def test_every_answer_is_the_kernels(tmp_path: Path) -> None:
    commands = list(Commands(seed=1))
    expected = kernels_answers(tmp_path, commands)
    ours = Ours()
    for index, ((nr, buffer), theirs) in enumerate(zip(commands, expected, strict=True)):
        mine = ours(nr, buffer)
        if comparable(nr, mine) != comparable(nr, theirs):
            raise AssertionError(difference(index, nr, buffer, mine, theirs, ours.detail))
    assert sum(answer == 0 for answer, _ in expected) > COMMANDS // 4, "most commands only failed"
    ours.mapper.close()


def difference(
    index: int, nr: int, buffer: bytes, mine: tuple[int, bytes], theirs: tuple[int, bytes], detail: str
) -> str:
    where = [at for at in range(len(buffer)) if mine[1][at] != theirs[1][at]]
    lines = [f"command {index}, ioctl {nr}: errno {mine[0]} ({detail}), the kernel's {theirs[0]}"]
    lines += [f"bytes {where[:20]} differ", f"asked  {Header.unpack(buffer)!r}", f"payload {buffer[305:420]!r}"]
    lines += [f"ours   {Header.unpack(mine[1])!r}", f"theirs {Header.unpack(theirs[1])!r}"]
    lines += [f"ours   {mine[1][305:450]!r}", f"theirs {theirs[1][305:450]!r}"]
    return "\n".join(lines)
