"""The state file, on mappers in this process: what it keeps, and what becomes of one that is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from userdm.daemon.state import StateFile
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line


def a_stack(folder: Path) -> tuple[Mapper, StateFile]:
    """Those above come first in the order of names."""
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    mapper = Mapper()
    z = mapper.create("z", "UUID-Z")
    mapper.load(z, [Line(0, 1024, "linear", f"{disk} 0")])
    mapper.resume(z)
    m = mapper.create("m")
    mapper.load(m, [Line(0, 512, "linear", "%d:%d 0" % z.devno), Line(512, 512, "zero", "")])
    mapper.resume(m)
    mapper.load(m, [Line(0, 16, "linear", f"{disk} 16")])
    a = mapper.create("a")
    mapper.load(a, [Line(0, 100, "linear", "%d:%d 0" % m.devno)], readonly=True)
    mapper.resume(a)
    mapper.suspend(a)
    mapper.create("empty", minor=77)
    state = StateFile(folder, mapper)
    state.close()
    return mapper, state


def again(folder: Path) -> tuple[Mapper, dict[str, str]]:
    """The next daemon's mapper, and what did not come back."""
    mapper = Mapper()
    state = StateFile(folder, mapper)
    lost = state.restore()
    return mapper, lost


def test_everything_comes_back(tmp_path: Path) -> None:
    old, _ = a_stack(tmp_path)
    before = json.loads((tmp_path / "state.json").read_text())
    old.close()
    mapper, lost = again(tmp_path)
    assert lost == {}
    assert json.loads((tmp_path / "state.json").read_text()) == before
    names = [device.name for device in mapper.devices()]
    assert names == ["a", "empty", "m", "z"]
    assert mapper.find(name="a").suspended
    assert mapper.find(name="a").readonly
    assert mapper.find(name="m").inactive is not None
    assert mapper.find(name="empty").devno[1] == 77
    assert mapper.find(uuid="UUID-Z").name == "z"
    mapper.close()


def test_nothing_is_saved_after_the_end(tmp_path: Path) -> None:
    mapper, state = a_stack(tmp_path)
    before = (tmp_path / "state.json").read_text()
    mapper.close()
    state.save()
    assert (tmp_path / "state.json").read_text() == before


def test_another_storage_under_the_same_name(tmp_path: Path) -> None:
    a_stack(tmp_path)[0].close()
    (tmp_path / "disk").rename(tmp_path / "gone")
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    mapper, lost = again(tmp_path)
    assert "another one than when the table was loaded" in lost["z"]
    assert set(lost) == {"a", "m", "z"}
    assert [device.name for device in mapper.devices()] == ["empty"]


def test_an_inactive_table_that_is_lost_costs_its_device_nothing_else(tmp_path: Path) -> None:
    a_stack(tmp_path)[0].close()
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    for saved in state["devices"]:
        if saved["inactive"] is not None:
            saved["inactive"]["lines"][0][2] = "bogus"
    path.write_text(json.dumps(state))
    mapper, lost = again(tmp_path)
    assert lost == {}
    assert mapper.find(name="m").inactive is None
    assert mapper.find(name="m").live is not None
    mapper.close()


def test_a_number_that_is_taken(tmp_path: Path) -> None:
    a_stack(tmp_path)[0].close()
    mapper = Mapper()
    mapper.create("first", minor=77)
    assert StateFile(tmp_path, mapper).restore() == {}
    assert mapper.find(name="empty").devno[1] != 77
    mapper.close()


def test_another_boots_state_is_nothing(tmp_path: Path) -> None:
    a_stack(tmp_path)[0].close()
    path = tmp_path / "state.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["boot_id"], "another"))
    mapper, lost = again(tmp_path)
    assert (mapper.devices(), lost) == ([], {})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace('"lines"', '"limes"'),
        lambda text: text.replace('"name"', '"nome"', 1),
        lambda text: text.replace('"param"', '"parm"'),
        lambda text: text.replace('"minor": 77', '"minor": "77"'),
        lambda text: "\0\udcff" + text,
    ],
)
def test_damage_puts_the_file_aside(tmp_path: Path, damage: Callable[[str], str]) -> None:
    a_stack(tmp_path)[0].close()
    path = tmp_path / "state.json"
    path.write_text(damage(path.read_text()), errors="surrogateescape")
    mapper, lost = again(tmp_path)
    assert (mapper.devices(), lost) == ([], {})
    assert (tmp_path / "state.bad").exists()
    assert json.loads(path.read_text())["devices"] == []


@pytest.mark.parametrize("value", [None, -1, {"no": "sense"}, "nonsense", []])
@pytest.mark.parametrize("key", ["identity", "sequence", "path", "kind", "name"])
def test_a_reference_that_makes_no_sense_costs_its_device_only(tmp_path: Path, key: str, value: Any) -> None:
    a_stack(tmp_path)[0].close()
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    for saved in state["devices"]:
        for reference in (saved["live"] or {}).get("references", []):
            if key in reference:
                reference[key] = value
    path.write_text(json.dumps(state))
    mapper, lost = again(tmp_path)
    assert lost
    assert "empty" in [device.name for device in mapper.devices()]
