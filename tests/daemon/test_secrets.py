"""Requests with the flag SECURE_DATA: wiped in the daemon when they are answered, and in none of its logs."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from support.daemon import Daemon
from userdm.abi import dm_ioctl as dm
from userdm.abi import tables
from userdm.abi.dm_ioctl import Header
from userdm.daemon.call import Caller
from userdm.daemon.ioctls import Ioctls
from userdm.daemon.state import StateFile
from userdm.mapper.registry import Mapper
from userdm.targets.error import Error

KEY = "c0ffee" * 8


def load(ioctls: Ioctls, lines: list[tuple[int, int, str, str]], flags: int = dm.SECURE_DATA) -> tuple[int, bytearray]:
    header = Header(data_size=4096, name="a", flags=flags, target_count=len(lines))
    buffer = bytearray((header.pack() + tables.pack_load(lines)).ljust(4096, b"\0"))
    number, reply, detail = ioctls.execute(dm.DM_TABLE_LOAD, buffer, Caller("/", None, force=False, gone=lambda: False))
    assert KEY.encode() not in reply
    assert "internal" not in detail or KEY not in detail
    return number, buffer


def test_a_buffer_is_wiped_whatever_becomes_of_it(tmp_path: Path) -> None:
    mapper = Mapper()
    mapper.create("a")
    ioctls = Ioctls(mapper, lambda: None)
    for lines in ([(0, 8, "error", KEY)], [(0, 8, "zero", KEY)], [(0, 8, "error", KEY), (7, 8, "error", KEY)]):
        _, buffer = load(ioctls, lines)
        assert buffer == bytes(4096)
    _, buffer = load(ioctls, [(0, 8, "error", KEY)], 0)
    assert KEY.encode() in buffer
    mapper.close()


def test_a_bug_in_a_target_tells_the_log_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Error, context: object, arguments: list[str]) -> None:
        raise RuntimeError(f"what a key: {arguments}")

    monkeypatch.setattr(Error, "__init__", broken)
    mapper = Mapper()
    mapper.create("a")
    with caplog.at_level(logging.DEBUG):
        number, buffer = load(Ioctls(mapper, lambda: None), [(0, 8, "error", KEY)])
    assert number
    assert buffer == bytes(4096)
    assert "RuntimeError" in caplog.text
    assert KEY not in caplog.text
    mapper.close()


def test_a_table_that_does_not_come_back_tells_the_log_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mapper = Mapper()
    device = mapper.create("a")
    assert load(Ioctls(mapper, lambda: None), [(0, 8, "error", KEY)])[0] == 0
    mapper.resume(device)
    StateFile(tmp_path, mapper).close()
    mapper.close()
    state = tmp_path / "state.json"
    saved = json.loads(state.read_text())
    assert saved["devices"][0]["live"]["secret"] is True, "the next daemon has to know what it is"
    saved["devices"][0]["live"]["lines"][0][1] = 0
    state.write_text(json.dumps(saved))
    again = Mapper()
    with caplog.at_level(logging.DEBUG):
        lost = StateFile(tmp_path, again).restore()
    assert "length 0" in lost["a"]
    assert "a is not brought back" in caplog.text
    assert KEY not in caplog.text
    again.close()


def test_the_state_is_for_its_owner_only(daemon: Daemon) -> None:
    daemon.userdm("daemon", "start")
    daemon.control.create("a")
    daemon.control.load("a", [(0, 8, "error", KEY)], secure=True)
    assert daemon.control.table("a", inactive=True, secure=True)[1] == [(0, 8, "error", "")]
    state = daemon.run / "state.json"
    assert KEY in state.read_text()
    assert stat.S_IMODE(state.stat().st_mode) & 0o077 == 0
    assert state.stat().st_uid == os.geteuid()
    assert KEY not in daemon.log()
