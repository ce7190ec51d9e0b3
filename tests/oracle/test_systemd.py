"""Under systemd: a unit of its own, that ends after the last unmount. The real systemd, in the oracle's machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import guest, oracle

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> oracle.Said:
    """One boot for all tests."""
    disk = tmp_path_factory.mktemp("guest") / "python.img"
    guest.image(disk)
    systemd = oracle.systemd(disk.with_name("systemd.img"))
    return oracle.said((Path(__file__).parent / "systemd.sh").read_text(), [disk, systemd])


def test_whoever_starts_it_it_is_a_unit_of_its_own(said: oracle.Said) -> None:
    assert said["group"] == 2 * ["/system.slice/userdm.service"]
    assert said["state"] == ["MainPID=" + said["keeper"][0], "ActiveState=active"]


def test_in_use_it_does_not_stop(said: oracle.Said) -> None:
    assert any("may be requested by dependency only" in line for line in said["refused"])
    assert any("vol is open 1 time (mounted on /mnt/vol)" in line for line in said["in-use"])


def test_at_shutdown_it_ends_after_the_last_unmount(said: oracle.Said) -> None:
    assert said["left"] == ["ls: /dev/loop16*: No such file or directory"]
    assert said["check"] == []
    assert said["clean"][0].startswith("/dev/mapper/vol: clean"), said["log"]
    assert said["read"] == ["unsynced"]
