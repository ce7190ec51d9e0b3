"""On a kernel with a device mapper of its own: ours beside it, in another folder, and one pool for both in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import guest, oracle

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> oracle.Said:
    """What the script's machine printed: key -> lines. One boot for all tests."""
    disk = tmp_path_factory.mktemp("guest") / "python.img"
    guest.image(disk)
    script = guest.START.replace("DISK", "/dev/vdb") + (Path(__file__).parent / "own_dm.sh").read_text()
    return oracle.said(script, [disk])


def test_each_has_its_own_folder_and_names(said: oracle.Said) -> None:
    assert said["folder"] == ["own"]
    assert said["kernel-folder"] == ["control"]
    assert said["ls"] == ["own\t(7:16384)"]
    assert [line.split()[0] for line in said["kernel-ls"]] == ["own"]


def test_what_the_kernel_tidies_up_is_its_own(said: oracle.Said) -> None:
    assert said["kernel-remove"] == []
    assert said["after-remove"] == ["own\t(7:16384)"]
    assert said["after-remove-node"] == ["own"]


def test_a_pool_has_one_of_them_at_a_time(said: oracle.Said) -> None:
    assert "Device or resource busy" in said["kernel-busy"][0]
    assert said["busy"][0].endswith("failed: Device or resource busy")


def test_a_pool_goes_from_one_to_the_other_and_back(said: oracle.Said) -> None:
    assert said["kernel-read"] == ["one"]
    assert said["read"] == ["one", "two"]
    assert said["status"][0].split()[:4] == ["0", "524288", "thin-pool", "0"]
    assert said["check"] == []


def test_nothing_is_left(said: oracle.Said) -> None:
    assert said["stop"] == ["stopped; the next start brings 0 devices back"]
    assert said["left"] == []


def test_udev_does_not_get_in_the_way(said: oracle.Said) -> None:
    """Nothing that we remove is busy because udev looks at it; and it does look."""
    assert said["udev"] == 4 * ["two"]
    assert "disk/by-diskseq/" in said["udev-knows"][0]
    assert said["udev-stop"] == ["stopped; the next start brings 0 devices back"]
    assert said["udev-left"] == ["ls: /dev/loop16*: No such file or directory"]
