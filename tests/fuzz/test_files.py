"""What the daemon reads of its own after a crash: state.json and the records of its loop devices, bent."""

from __future__ import annotations

import errno
import json
import logging
import random
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from support import budget
from userdm.abi import runtime
from userdm.daemon.state import StateFile
from userdm.export.records import Record, Records
from userdm.mapper import places
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import FileStorage, open_storage

VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 1 << 64, 1.5, "", "a", "/", "..", "x" * 300, "\0", "\udc80", [], {}, [[]], [1, 2],
    {"param": 1}, {"param": "x", "kind": "device"}, "storage", "device", "attached", [0, 8, "zero", ""], 1e308,
)  # fmt: skip


def slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from slots(value[key])


def bend(value: Any, rng: random.Random) -> None:
    """One fault in a JSON value."""
    container, key = rng.choice(list(slots(value)))
    way = rng.randrange(4)
    if way == 0:
        del container[key]
    elif way == 1 and isinstance(container, list):
        container.insert(key, deepcopy(container[key]))
    elif way == 2:
        container[key] = deepcopy(rng.choice([slot[0][slot[1]] for slot in slots(value)]))
    else:
        container[key] = deepcopy(rng.choice(VALUES))


def bent_text(value: Any, rng: random.Random) -> bytes:
    value = deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 5))):
        bend(value, rng)
        if not list(slots(value)):
            break
    raw = bytearray(json.dumps(value).encode()) if rng.random() < 0.98 else bytearray(b"[" * 100_000)
    if rng.random() < 0.1:
        for _ in range(rng.randrange(1, 5)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    if rng.random() < 0.05:
        del raw[rng.randrange(len(raw)) :]
    return bytes(raw)


def fill(mapper: Mapper, folder: Path) -> None:
    for name, size in (("m", 1 << 20), ("d", 8 << 20), ("disk", 1 << 20)):
        (folder / name).write_bytes(b"")
        with (folder / name).open("r+b") as file:
            file.truncate(size)
    for name, uuid, params in (
        ("a", "U", f"0 64 linear {folder}/disk 0"),
        ("b", "", "0 8 zero"),
        ("pool", "", f"0 16384 thin-pool {folder}/m {folder}/d 128 0"),
        ("thin", "V", "0 1024 thin /dev/mapper/pool 0"),
        ("over", "", "0 8 linear /dev/mapper/a 0"),
    ):
        device = mapper.create(name, uuid)
        if name == "thin":
            mapper.message(mapper.find(name="pool"), 0, "create_thin 0")
        start, length, kind, *rest = params.split(" ", 3)
        mapper.load(device, [Line(int(start), int(length), kind, " ".join(rest))])
        mapper.resume(device)
    mapper.load(mapper.find(name="b"), [Line(0, 8, "error", "")])
    mapper.suspend(mapper.find(name="over"))


@pytest.fixture(scope="module")
def saved() -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder with storage in it, and the state of devices on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mapper = Mapper()
        fill(mapper, folder)
        state = StateFile(folder, mapper)
        state.close()
        read = json.loads((folder / runtime.STATE).read_text())
        mapper.resume(mapper.find(name="over"))
        mapper.close()
        yield folder, read


def test_the_state_as_it_was_saved(saved: tuple[Path, dict[str, Any]]) -> None:
    folder, state = saved
    (folder / runtime.STATE).write_text(json.dumps(state))
    mapper = Mapper()
    assert StateFile(folder, mapper).restore() == {}
    assert [device.name for device in mapper.devices()] == ["a", "b", "over", "pool", "thin"]
    mapper.resume(mapper.find(name="over"))
    mapper.close()


def test_a_bent_state_brings_back_what_it_can(
    saved: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, state = saved
    caplog.set_level(logging.CRITICAL)

    def only_there(path: str, *, readonly: bool = False) -> FileStorage:
        if not Path(path).is_relative_to(folder):
            raise OSError(errno.ENOENT, "outside of the test", path)
        return open_storage(path, readonly=readonly)

    monkeypatch.setattr(places, "open_storage", only_there)
    came_back = [0]

    def example(rng: random.Random) -> None:
        (folder / runtime.STATE).write_bytes(bent_text(state, rng))
        mapper = Mapper()
        file = StateFile(folder, mapper)
        lost = file.restore()
        assert all(isinstance(name, str) and why for name, why in lost.items())
        came_back[0] += len(mapper.devices())
        # what was made of it is written down whole, for the next one
        again = StateFile(folder, Mapper()).read()
        assert [each["name"] for each in again] == [device.name for device in mapper.devices()]
        for device in mapper.devices():
            if device.suspended and device.live is not None:
                mapper.resume(device)
        mapper.close()
        assert mapper.storages._shared == {}

    budget.run(150, example)
    assert budget.one_seed() or came_back[0]


def test_bent_records_are_passed_over(tmp_path: Path) -> None:
    records = Records(tmp_path)
    good = Record(index=1, connection=2, diskseq=3)

    def example(rng: random.Random) -> None:
        records.write(good)
        path = tmp_path / "loop" / "4"
        path.write_bytes(bent_text({"index": 4, "connection": 5, "diskseq": 6}, rng))
        for record in records.read():
            assert record == good or (record.index == 4 and type(record.connection) is type(record.diskseq) is int)
        assert good in list(records.read())

    budget.run(300, example)


def test_a_record_that_nests_for_ever(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(Record(index=1, connection=2, diskseq=3))
    (tmp_path / "loop" / "0").write_text("[" * 100_000)
    assert [record.index for record in records.read()] == [1]
