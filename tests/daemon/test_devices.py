"""What a device looks like from outside: its limits, read-only or not, its nodes; and loop devices of others."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import SECONDS, Daemon, eventually
from userdm.abi import dm_ioctl as dm
from userdm.abi import lists
from userdm.abi.dm_ioctl import Header
from userdm.api.control import WE_MAKE_NO_NODES, Device
from userdm.api.errors import ControlError

BLKROSET = 0x125D
BLKDISCARD = 0x1277
ZERO = [(0, 2048, "zero", "")]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices")


@pytest.fixture(autouse=True)
def started(daemon: Daemon) -> None:
    daemon.userdm("daemon", "start")


def make(daemon: Daemon, name: str, lines: list[tuple[int, int, str, str]], *, readonly: bool = False) -> Path:
    daemon.control.create(name)
    reload(daemon, name, lines, readonly=readonly)
    return daemon.nodes / name


def reload(daemon: Daemon, name: str, lines: list[tuple[int, int, str, str]], *, readonly: bool = False) -> None:
    daemon.control.load(name, lines, readonly=readonly)
    daemon.control.resume(name)


def queue(node: Path, name: str) -> str:
    return Path(f"/sys/block/{node.resolve().name}/queue/{name}").read_text().strip()


def fails(number: int, act: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        act()
    assert caught.value.errno == number, caught.value


@pytest.fixture
def loop(daemon: Daemon) -> Iterator[Callable[..., str]]:
    """Makes loop devices as other people do."""
    made: list[str] = []

    def attach(*options: str, size: int = 1 << 20) -> str:
        path = daemon.base / f"file{len(made)}"
        with path.open("wb") as file:
            file.truncate(size)
        command = ["losetup", *options, "-f", "--show", str(path)]
        made.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        return made[-1]

    yield attach
    daemon.control.remove_all()
    for device in made:
        subprocess.run(["losetup", "-d", device], check=True)


def test_the_logical_block_is_the_tables(daemon: Daemon, loop: Callable[..., str]) -> None:
    disk = loop("-b", "4096")
    node = make(daemon, "d", [(0, 8, "linear", f"{disk} 0")])
    assert queue(node, "logical_block_size") == "4096"
    top = make(daemon, "top", [(0, 8, "linear", f"{node} 0")])
    assert queue(top, "logical_block_size") == "4096"
    fails(errno.EINVAL, lambda: make(daemon, "off", [(0, 4, "linear", f"{node} 0")]))
    daemon.control.remove("top")
    reload(daemon, "d", [(0, 8, "zero", "")])
    eventually(lambda: queue(node, "logical_block_size") == "512")
    reload(daemon, "d", [(0, 16, "linear", f"{disk} 0")])
    eventually(lambda: queue(node, "logical_block_size") == "4096")


def test_a_device_in_use_keeps_its_limits_and_goes_on(daemon: Daemon, loop: Callable[..., str]) -> None:
    disk = loop("-b", "4096")
    node = make(daemon, "d", [(0, 16, "zero", "")])
    fd = os.open(node, os.O_RDONLY | os.O_EXCL)
    try:
        reload(daemon, "d", [(0, 16, "linear", f"{disk} 0")])
        assert os.pread(fd, 4096, 0) == bytes(4096)
    finally:
        os.close(fd)


def test_discards_are_taken_where_they_lead_to_something(daemon: Daemon, loop: Callable[..., str]) -> None:
    disk = loop()

    def discard(node: Path) -> None:
        with node.open("r+b") as file:
            fcntl.ioctl(file, BLKDISCARD, struct.pack("=QQ", 0, 4096))

    zero = make(daemon, "zero", ZERO)
    fails(errno.EOPNOTSUPP, lambda: discard(zero))
    mixed = make(daemon, "mixed", [(0, 8, "linear", f"{disk} 0"), (8, 8, "zero", "")])
    fails(errno.EOPNOTSUPP, lambda: discard(mixed))
    plain = make(daemon, "plain", [(0, 8, "linear", f"{disk} 8")])
    with plain.open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)
        os.fsync(file)
    discard(plain)
    assert plain.read_bytes() == bytes(4096)
    assert queue(plain, "discard_granularity") == queue(Path(disk), "discard_granularity")
    # zeros can be written all the same
    subprocess.run(["blkdiscard", "-z", mixed], check=True)


def test_read_only_by_its_table_and_by_hand(daemon: Daemon, loop: Callable[..., str]) -> None:
    disk = loop()
    lines = [(0, 8, "linear", f"{disk} 0")]
    node = make(daemon, "r", lines, readonly=True)

    def readonly() -> bool:
        info = daemon.control.info("r")
        assert info is not None
        return info.readonly

    def set_readonly(value: int) -> None:
        with node.open("rb") as file:
            fcntl.ioctl(file, BLKROSET, struct.pack("=i", value))

    def write() -> None:
        with node.open("r+b", buffering=0) as file:
            file.write(b"x" * 4096)

    assert readonly()
    fails(errno.EPERM, write)
    daemon.control.load("r", lines)
    assert readonly(), "the live table's"
    inactive = daemon.control.info("r", inactive=True)
    assert inactive is not None and not inactive.readonly
    daemon.control.resume("r")
    assert not readonly()
    write()
    set_readonly(1)
    assert readonly()
    fails(errno.EPERM, write)
    daemon.control.suspend("r")
    daemon.control.resume("r")
    assert readonly()
    reload(daemon, "r", lines)
    assert readonly(), "what was set by hand stays, as on the kernel"
    set_readonly(0)
    assert not readonly()
    reload(daemon, "r", lines, readonly=True)
    fails(errno.EPERM, write)


def test_storage_that_is_read_only(daemon: Daemon, loop: Callable[..., str]) -> None:
    """As on the kernel: a table may be for writing, and it is the write that fails."""
    disk = loop("-r")
    node = make(daemon, "r", [(0, 8, "linear", f"{disk} 0")])
    info = daemon.control.info("r")
    assert info is not None and not info.readonly
    assert node.read_bytes() == bytes(4096)

    def write() -> None:
        fd = os.open(node, os.O_WRONLY)
        try:
            os.write(fd, b"x" * 4096)
            os.fsync(fd)
        finally:
            os.close(fd)

    fails(errno.EIO, write)


def test_a_node_is_a_disks_node(daemon: Daemon) -> None:
    node = make(daemon, "d", ZERO)
    info = node.stat()
    assert info.st_mode & 0o7777 == 0o660
    assert info.st_gid == subprocess_gid("disk")
    daemon.control.rename("d", "e")
    assert not node.is_symlink()
    assert (daemon.nodes / "e").is_block_device()


def subprocess_gid(group: str) -> int:
    for line in Path("/etc/group").read_text().splitlines():
        name, _, gid, *_ = line.split(":")
        if name == group:
            return int(gid)
    return 0


@pytest.mark.parametrize(
    ("event_nr", "moved"), [(WE_MAKE_NO_NODES, True), (0x1234, True), (0, False), (0x40 << 16, False)]
)
def test_who_moves_the_node_of_a_renamed_device(daemon: Daemon, event_nr: int, moved: bool) -> None:
    """libdevmapper without udev renames the node itself: one that has been moved already it would lose."""
    node, other = make(daemon, "old", ZERO), daemon.nodes / "new"
    header = Header(name="old", event_nr=event_nr)
    daemon.control.ioctl(dm.DM_DEV_RENAME, header, b"new\0")
    assert (node.is_symlink(), other.is_symlink()) == (not moved, moved)
    if not moved:
        if event_nr:
            node.rename(other)  # the client does it
        eventually(lambda: other.is_symlink() and not node.is_symlink())
    assert other.is_block_device()
    daemon.control.remove("new")
    assert not other.is_symlink()


def test_a_rename_that_nobody_finished_leaves_no_node(daemon: Daemon) -> None:
    node = make(daemon, "old", ZERO)
    daemon.control.ioctl(dm.DM_DEV_RENAME, Header(name="old"), b"new\0")
    daemon.control.ioctl(dm.DM_DEV_RENAME, Header(name="new"), b"newer\0")
    daemon.control.remove("newer")
    time.sleep(1.5)
    assert not node.is_symlink()
    assert not any(daemon.nodes.iterdir())


def test_loop_devices_of_others(daemon: Daemon, loop: Callable[..., str]) -> None:
    disk = loop(size=3 << 20)
    info = Path(disk).stat()
    number = Device(devno=(os.major(info.st_rdev), os.minor(info.st_rdev)))
    assert daemon.control.deps(number)[1] == []
    _, status = daemon.control.status(number)
    assert status == [(0, 6144, "linear", "")]
    header, payload = daemon.control.ioctl(dm.DM_TABLE_DEPS, Header(dev=dm.encode_dev((7, info.st_rdev & 0xFF))))
    assert (header.name, header.uuid) == ("", "")
    assert header.flags & dm.EXISTS
    assert lists.unpack_deps(payload) == []
    assert daemon.control.info(number) is None
    for act in (daemon.control.remove, daemon.control.suspend, daemon.control.clear):
        fails(errno.ENXIO, lambda act=act: act(number))  # type: ignore[misc]
    unbound = Device(devno=(7, 99999))
    fails(errno.ENXIO, lambda: daemon.control.deps(unbound))
    fails(errno.ENXIO, lambda: daemon.control.status(unbound))
    # our own are asked about by number as any other
    make(daemon, "d", ZERO)
    own = daemon.control.info("d")
    assert own is not None
    assert daemon.control.status(Device(devno=own.devno))[0].name == "d"


def test_a_poll_for_events(daemon: Daemon) -> None:
    control = daemon.control
    make(daemon, "d", ZERO)

    def readable(sock: object) -> bool:
        return bool(select.select([sock], [], [], 0)[0])

    for act in (
        lambda: control.rename("d", "e"),
        lambda: control.create("other"),
        lambda: control.remove("other"),
        lambda: control.set_uuid("e", "U"),
        control.remove_all,
    ):
        armed = control.arm_poll()
        try:
            time.sleep(0.3)
            assert not readable(armed)
            control.names()
            act()
            eventually(lambda armed=armed: readable(armed))  # type: ignore[misc]
        finally:
            armed.close()
    armed = control.arm_poll()
    daemon.userdm("daemon", "stop")
    eventually(lambda: readable(armed))
    armed.close()


def test_a_removal_wakes_who_waits(daemon: Daemon) -> None:
    make(daemon, "d", ZERO)
    seen: list[object] = []

    def wait() -> None:
        try:
            seen.append(daemon.control.wait("d", 0).event_nr)
        except ControlError as error:
            seen.append(error.errno)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    assert seen == []
    daemon.control.remove("d")
    thread.join(SECONDS)
    assert seen == [1]


def test_a_logical_volume_has_the_name_that_lvm_looks_for(daemon: Daemon) -> None:
    daemon.userdm("daemon", "stop")
    daemon.nodes = daemon.base / "dev" / "mapper"
    daemon.env["USERDM_MAPPER_DIR"] = str(daemon.nodes)
    daemon.userdm("daemon", "start")
    control, dev = daemon.control, daemon.base / "dev"
    uuid = "LVM-" + "x" * 64
    for number, name in enumerate(("my--vg-my--lv", "my--vg-other")):
        control.create(name, uuid[:-1] + str(number))
        reload(daemon, name, ZERO)
    link = dev / "my-vg" / "my-lv"
    assert link.is_block_device()
    assert link.resolve() == (daemon.nodes / "my--vg-my--lv").resolve()
    control.rename("my--vg-my--lv", "my--vg-new")
    assert not link.is_symlink()
    assert (dev / "my-vg" / "new").is_block_device()
    control.remove("my--vg-new")
    control.remove("my--vg-other")
    assert not (dev / "my-vg").exists()
    # not for what serves another volume, and not for other people's names
    for name, other in (
        ("vg-lv", uuid + "-tpool"),
        ("vg-lv2", "CRYPT-x"),
        ("vg-lv-x", uuid),
        ("vg--lv", "LVM-" + "y" * 64),
    ):
        control.create(name, other)
        reload(daemon, name, ZERO)
    assert [path.name for path in dev.iterdir()] == ["mapper"]
    # nor over what is somebody's
    (dev / "taken").mkdir()
    (dev / "taken" / "file").write_text("mine")
    control.create("taken-file", "LVM-" + "z" * 64)
    reload(daemon, "taken-file", ZERO)
    assert (dev / "taken" / "file").read_text() == "mine"
    control.remove_all()
    assert (dev / "taken" / "file").read_text() == "mine"


def test_a_device_below_a_suspended_one_can_be_suspended(daemon: Daemon) -> None:
    """Nobody writes down what is cached above a device that stands still: that would wait for its resume."""
    control = daemon.control
    disk = daemon.base / "disk"
    with disk.open("wb") as storage:
        storage.truncate(1 << 20)
    low = make(daemon, "low", [(0, 2048, "linear", f"{disk} 0")])
    mid = make(daemon, "mid", [(0, 1024, "linear", f"{low} 0")])
    top = make(daemon, "top", [(0, 512, "linear", f"{mid} 0")])
    control.suspend("mid", lockfs=False)
    with top.open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)  # into the page cache, dirty
        done = threading.Event()

        def stop_and_go() -> None:
            control.suspend("low")
            control.resume("low")
            done.set()

        thread = threading.Thread(target=stop_and_go)
        thread.start()
        try:
            assert done.wait(SECONDS)
        finally:
            control.resume("mid")
            thread.join(SECONDS)
        os.fsync(file)
    assert disk.read_bytes()[:4096] == b"x" * 4096


def test_what_is_inherited_was_opened_once(daemon: Daemon) -> None:
    node = make(daemon, "d", ZERO)

    def count() -> int:
        info = daemon.control.info("d")
        assert info is not None
        return info.open_count

    with node.open("rb") as first, node.open("rb"):
        child = subprocess.Popen(["sleep", "60"], pass_fds=[first.fileno()])
        try:
            assert count() == 2
            first.close()
            assert count() == 2, "the child has it still"
        finally:
            child.kill()
            child.wait()
        assert count() == 1
    assert count() == 0
