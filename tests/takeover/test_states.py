"""The worker dies while a device is in a state that is not the ordinary one."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from support.stage import Stage
from userdm.api.errors import ControlError, DaemonError

from .conftest import disk, linear
from .load import Stressing

PAGE = 4096


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def write_page(node: Path, page: int, value: bytes) -> None:
    """One O_DIRECT write."""
    buffer = mmap.mmap(-1, PAGE)
    buffer[:] = value * PAGE
    fd = os.open(node, os.O_WRONLY | os.O_DIRECT)
    try:
        os.pwrite(fd, buffer, page * PAGE)
    finally:
        os.close(fd)


def read_page(node: Path, page: int) -> bytes:
    fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, PAGE)
    try:
        os.preadv(fd, [buffer], page * PAGE)
    finally:
        os.close(fd)
    return bytes(buffer[:1])


def begun(act: Callable[[], None]) -> Future[None]:
    """In a thread of its own, and under way."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(act)
    pool.shutdown(wait=False)
    time.sleep(0.3)
    return future


def test_a_suspended_device(stage: Stage) -> None:
    node = linear(stage, "a")
    stage.dm("suspend", "a")
    writing = begun(lambda: write_page(node, 3, b"w"))
    for _ in range(2):
        stage.daemon.kill_worker()
        assert stage.daemon.control.info("a").suspended  # type: ignore[union-attr]
        time.sleep(0.3)
        assert not writing.done(), "the gate is open"
    stage.dm("resume", "a")
    writing.result(60)
    assert read_page(node, 3) == b"w"


def test_a_suspended_file_system(stage: Stage) -> None:
    """What was frozen is thawed, and waits at the gate."""
    node = linear(stage, "a")
    stage.sh("mkfs.ext4", "-q", node)
    point = stage.mount(node)
    stage.dm("suspend", "a")
    stage.daemon.kill_worker()

    def write() -> None:
        with (point / "file").open("wb") as file:
            file.write(b"x")
            os.fsync(file.fileno())

    writing = begun(write)
    assert not writing.done()
    stage.dm("resume", "a")
    writing.result(60)
    stage.umount(point)
    stage.sh("e2fsck", "-fn", node)


def test_a_full_pool_that_queues(stage: Stage) -> None:
    metadata, data = disk(stage, "meta", 8), disk(stage, "data", 8)
    lines = {mib: f"0 {mib * 2048} thin-pool {metadata} {data} 128 0" for mib in (1, 8)}
    stage.dm("create", "pool", "--table", lines[1])
    stage.message("create_thin 0")
    node = stage.thin("v", 0, 16)
    for block in range(16):
        write_page(node, block * 16, b"a")
    writing = begun(lambda: write_page(node, 16 * 16, b"b"))
    stage.daemon.kill_worker()
    assert "out_of_data_space" in stage.dm("status", "pool") or not writing.done()
    time.sleep(0.5)
    assert not writing.done()
    stage.dm("load", "pool", "--table", lines[8])
    stage.dm("resume", "pool")
    writing.result(60)
    stage.daemon.kill_worker()
    assert read_page(node, 16 * 16) == b"b"
    assert read_page(node, 15 * 16) == b"a"


def test_devices_that_are_not_live(stage: Stage) -> None:
    backing = disk(stage, "disk", 16)
    stage.dm("create", "empty", "--notable")
    stage.dm("create", "loaded", "--notable")
    stage.dm("load", "loaded", "--table", f"0 32768 linear {backing} 0")
    stage.dm("create", "two", "--table", "0 2048 zero")
    stage.dm("load", "two", "--table", "0 4096 zero")
    stage.daemon.kill_worker()
    control = stage.daemon.control
    flags = {}
    for name in ("empty", "loaded", "two"):
        info = control.info(name)
        assert info is not None
        flags[name] = (info.live, info.inactive)
    assert flags == {"empty": (False, False), "loaded": (False, True), "two": (True, True)}
    control.resume("loaded")
    control.resume("two")
    write_page(stage.node("loaded"), 0, b"x")
    assert stage.sh("blockdev", "--getsz", stage.node("two")).strip() == "4096"
    control.load("empty", [(0, 2048, "zero", "")])
    control.resume("empty")
    assert read_page(stage.node("empty"), 0) == b"\0"


def test_a_removal_that_waits_for_the_last_close(stage: Stage) -> None:
    node = linear(stage, "a")
    with node.open("rb"):
        stage.dm("remove", "--deferred", "a")
        stage.daemon.kill_worker()
        info = stage.daemon.control.info("a")
        assert info is not None
        assert info.deferred_remove
        assert read_page(node, 1) == b"\0"
    wait_for(lambda: stage.daemon.control.info("a") is None, "the device stays")


def test_one_that_is_cancelled_after(stage: Stage) -> None:
    node = linear(stage, "a")
    with node.open("rb"):
        stage.dm("remove", "--deferred", "a")
        stage.daemon.kill_worker()
        stage.daemon.control.message("a", 0, "@cancel_deferred_remove")
    write_page(node, 0, b"x")
    info = stage.daemon.control.info("a")
    assert info is not None
    assert not info.deferred_remove


@pytest.mark.slow
def test_storage_on_a_file_system_on_our_own_device(stage: Stage) -> None:
    """A pool whose data and metadata lie on an ext4 on a device of the same daemon."""
    stop = stage.base / "stop"
    low = linear(stage, "low", 256)
    stage.sh("mkfs.ext4", "-q", low)
    under = stage.mount(low)
    for name, size in (("meta", 8), ("data", 160)):
        with (under / name).open("wb") as file:
            file.truncate(size << 20)
    stage.dm("create", "pool", "--table", f"0 {160 * 2048} thin-pool {under}/meta {under}/data 128 0")
    stage.message("create_thin 0")
    node = stage.thin("a-high", 0)  # its name comes before those below
    stage.sh("mkfs.ext4", "-q", node)
    point = stage.mount(node)
    stressing = Stressing(point / "stress", 3, stop)
    try:
        for _ in range(12):
            time.sleep(random.Random(1).random())
            stage.daemon.kill_worker()
            assert not stressing.ended()
    finally:
        stop.touch()
    assert stressing.steps() > 0
    stage.umount(point)
    stage.sh("e2fsck", "-fn", node)
    stage.dm("remove", "a-high")
    stage.dm("remove", "pool")
    stage.sh("thin_check", under / "meta")
    stage.umount(under)
    stage.sh("e2fsck", "-fn", low)


def test_a_command_that_is_cut_off(stage: Stage) -> None:
    stage.dm("daemon", "start")
    control = stage.daemon.control
    worker = stage.daemon.worker_pid
    os.kill(worker, signal.SIGSTOP)
    # it is heard, in the socket's buffer, and not answered
    looking = begun(lambda: assert_no_devices(stage))
    os.kill(worker, signal.SIGKILL)
    looking.result(60)

    linear(stage, "a")
    stop = threading.Event()
    doubts = []

    def rename() -> None:
        names = ["a", "b"]
        while not stop.is_set():
            try:
                control.rename(*names)
                names.reverse()
            except ControlError as error:
                assert error.errno in (errno.ENXIO, errno.EBUSY)
                names.reverse()  # it was done
            except DaemonError as error:
                doubts.append(str(error))

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        for _ in range(8):
            time.sleep(0.2)
            stage.daemon.kill_worker()
            wait_for(lambda: bool(control.devices()), "no devices")
    finally:
        stop.set()
        thread.join(60)
    assert all("so the command may or may not have been done" in text for text in doubts)
    ((name, _),) = control.devices()
    wait_for(lambda: [entry.name for entry in stage.daemon.nodes.iterdir()] == [name], "another node")


def assert_no_devices(stage: Stage) -> None:
    assert stage.daemon.control.devices() == []


@pytest.mark.slow
def test_windows(stage: Stage) -> None:
    """A device's whole life, with deaths at random moments of it; whoever sends a command again gets where he wants."""
    chooser = random.Random(7)
    backing = disk(stage, "disk", 16)
    control = stage.daemon.control
    stage.dm("daemon", "start")
    ended = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        while not ended.wait(chooser.random() * 0.8):
            if (stage.daemon.run / "worker").exists():
                stage.daemon.kill_worker()
                kills += 1

    def sure(act: Callable[[], object], *already: int) -> None:
        doubt = False
        while True:
            try:
                act()
                return
            except DaemonError as error:
                assert error.errno == errno.ECONNRESET, error
                doubt = True
            except ControlError as error:
                if doubt and error.errno in already:
                    return
                raise

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        for round_ in range(12):
            sure(lambda: control.create("a"), errno.EBUSY)
            sure(lambda: control.load("a", [(0, 32768, "linear", f"{backing} 0")]))
            sure(lambda: control.resume("a"))
            value = bytes([round_ + 1])
            write_page(stage.node("a"), round_, value)
            assert read_page(stage.node("a"), round_) == value
            sure(lambda: control.load("a", [(0, 16384, "linear", f"{backing} 0"), (16384, 16384, "zero", "")]))
            sure(lambda: control.resume("a"))
            assert read_page(stage.node("a"), round_) == value
            sure(lambda: control.rename("a", "b"), errno.ENXIO, errno.EBUSY)
            assert read_page(stage.node("b"), round_) == value
            sure(lambda: control.remove("b"), errno.ENXIO)
    finally:
        ended.set()
        thread.join(60)
    assert kills >= 5
    assert control.devices() == []
    with backing.open("rb") as file:
        assert [file.read(PAGE)[0] for _ in range(12)] == list(range(1, 13))
    loops = subprocess.run(["losetup", "-l", "-n"], capture_output=True, text=True).stdout
    assert str(backing) not in loops
