"""remove --deferred: a device goes with its last opener, or with the last table that names it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon, eventually
from support.stage import Stage

ZERO = [(0, 2048, "zero", "")]
ROOT = os.geteuid() == 0


def make(daemon: Daemon, name: str, lines: list[tuple[int, int, str, str]] = ZERO) -> Path:
    daemon.control.create(name)
    daemon.control.load(name, lines)
    daemon.control.resume(name)
    return daemon.nodes / name


def gone(daemon: Daemon, name: str) -> Callable[[], bool]:
    return lambda: daemon.control.info(name) is None and not os.path.lexists(daemon.nodes / name)


def is_deferred(daemon: Daemon, name: str) -> bool:
    info = daemon.control.info(name)
    assert info is not None
    return info.deferred_remove


@pytest.fixture(autouse=True)
def started(daemon: Daemon) -> None:
    daemon.userdm("daemon", "start")


def test_a_device_that_nobody_has_goes_at_once(daemon: Daemon) -> None:
    make(daemon, "a")
    assert not daemon.control.remove("a", deferred=True).deferred_remove
    assert daemon.control.info("a") is None


def test_the_last_opener_takes_it_along(daemon: Daemon) -> None:
    node = make(daemon, "a")
    with node.open("rb") as first, node.open("rb") as second:
        with pytest.raises(OSError) as caught:
            daemon.control.remove("a")
        assert caught.value.errno == errno.EBUSY
        assert daemon.control.remove("a", deferred=True).deferred_remove
        assert is_deferred(daemon, "a")
        # a second one, plain or deferred, changes nothing
        with pytest.raises(OSError) as caught:
            daemon.control.remove("a")
        assert caught.value.errno == errno.EBUSY
        assert daemon.control.remove("a", deferred=True).deferred_remove
        assert first.read(4096) == bytes(4096)
        first.close()
        time.sleep(0.5)
        assert is_deferred(daemon, "a")
        assert second.read(4096) == bytes(4096)
        with node.open("rb") as third:
            second.close()
            assert third.read(4096) == bytes(4096), "it may be opened again meanwhile"
            assert is_deferred(daemon, "a")
    eventually(gone(daemon, "a"))
    make(daemon, "a")


def test_it_can_be_cancelled(daemon: Daemon) -> None:
    node = make(daemon, "a")
    daemon.control.message("a", 0, "@cancel_deferred_remove")
    with node.open("rb"):
        daemon.control.remove("a", deferred=True)
        daemon.control.message("a", 0, "@Cancel_Deferred_Remove")
        assert not is_deferred(daemon, "a")
        daemon.control.message("a", 0, "@cancel_deferred_remove")
        with pytest.raises(OSError) as caught:
            daemon.control.message("a", 0, "@cancel_deferred_remove now")
        assert caught.value.errno == errno.EINVAL
    time.sleep(0.5)
    with node.open("rb") as file:
        assert file.read(4096) == bytes(4096)
    assert daemon.control.info("a") is not None
    # and marked again
    with node.open("rb"):
        daemon.control.remove("a", deferred=True)
    eventually(gone(daemon, "a"))


def test_the_last_table_takes_it_along(daemon: Daemon) -> None:
    low = make(daemon, "low")
    make(daemon, "top", [(0, 8, "linear", f"{low} 0")])
    daemon.control.create("other")
    daemon.control.load("other", [(0, 8, "linear", f"{low} 0")])
    assert daemon.control.remove("low", deferred=True).deferred_remove
    daemon.control.remove("top")
    time.sleep(0.3)
    assert is_deferred(daemon, "low"), "an inactive table holds it as well"
    daemon.control.clear("other")
    eventually(gone(daemon, "low"))


def test_openers_and_tables_together(daemon: Daemon) -> None:
    low = make(daemon, "low")
    file = low.open("rb")
    daemon.control.remove("low", deferred=True)
    # a table that comes after the mark holds it, too
    make(daemon, "top", [(0, 8, "linear", f"{low} 0")])
    file.close()
    time.sleep(0.5)
    assert is_deferred(daemon, "low")
    with low.open("rb") as file:
        assert file.read(4096) == bytes(4096)
        daemon.control.remove("top")
        time.sleep(0.5)
        assert is_deferred(daemon, "low")
        assert file.read(4096) == bytes(4096)
    eventually(gone(daemon, "low"))


def test_it_is_renamed_and_reloaded_as_any_other(daemon: Daemon) -> None:
    if not ROOT:
        pytest.skip("needs root: a file that is open cannot be renamed")
    node = make(daemon, "a")
    with node.open("rb") as file:
        daemon.control.remove("a", deferred=True)
        daemon.control.rename("a", "b")
        daemon.control.load("b", [(0, 4096, "zero", "")])
        daemon.control.resume("b")
        assert is_deferred(daemon, "b")
        assert file.seek(0, os.SEEK_END) == 4096 * 512
    eventually(gone(daemon, "b"))


def test_remove_all_marks_what_it_must_leave(daemon: Daemon) -> None:
    make(daemon, "free")
    held, marked = make(daemon, "held"), make(daemon, "marked")
    with held.open("rb") as file:
        with marked.open("rb"):
            daemon.control.remove_all()
            assert [entry.name for entry in daemon.control.names()] == ["held", "marked"]
            assert not is_deferred(daemon, "held")
            daemon.control.message("held", 0, "@cancel_deferred_remove")
            daemon.control.remove("marked", deferred=True)
        eventually(gone(daemon, "marked"))
        daemon.control.remove_all(deferred=True)
        assert is_deferred(daemon, "held")
        file.close()
    eventually(gone(daemon, "held"))


def test_a_request_that_waits_holds_the_device(daemon: Daemon) -> None:
    """Suspended, with a reader in it: marked without waiting for him, and gone when he is through."""
    node = make(daemon, "a")
    daemon.control.suspend("a", lockfs=False)
    reader = Stage(daemon)
    pid = os.fork()
    if pid == 0:
        fd = os.open(node, os.O_RDONLY | (os.O_DIRECT if ROOT else 0))
        import mmap

        os._exit(0 if os.readv(fd, [mmap.mmap(-1, 4096)]) == 4096 else 1)
    try:
        eventually(lambda: _waits(pid))
        assert daemon.control.remove("a", deferred=True).deferred_remove
        daemon.control.resume("a")
        assert os.waitpid(pid, 0)[1] == 0
        pid = 0
        eventually(gone(daemon, "a"))
    finally:
        reader.close()
        if pid:
            daemon.control.resume("a")
            os.waitpid(pid, 0)


def _waits(pid: int) -> bool:
    stack = Path(f"/proc/{pid}/status").read_text()
    return "State:\tD" in stack or "State:\tS" in stack and Path(f"/proc/{pid}/wchan").read_text() not in ("0", "")


def test_the_mark_outlives_the_daemon(daemon: Daemon) -> None:
    node = make(daemon, "low")
    make(daemon, "top", [(0, 8, "linear", f"{node} 0")])
    daemon.control.remove("low", deferred=True)
    daemon.userdm("daemon", "stop")
    daemon.userdm("daemon", "start")
    assert is_deferred(daemon, "low")
    daemon.control.remove("top")
    eventually(gone(daemon, "low"))


def test_a_mounted_file_system_goes_with_its_umount(daemon: Daemon) -> None:
    if not ROOT:
        pytest.skip("needs root: mounts")
    stage = Stage(daemon)
    disk = daemon.base / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    node = make(daemon, "fs", [(0, 65536, "linear", f"{disk} 0")])
    try:
        stage.sh("mkfs.ext4", "-q", node)
        point = stage.mount(node)
        assert daemon.control.remove("fs", deferred=True).deferred_remove
        (point / "late").write_bytes(b"x" * 100_000)
        stage.umount(point)
        eventually(gone(daemon, "fs"))
        stage.sh("e2fsck", "-fn", disk)
    finally:
        stage.close()


@pytest.mark.parametrize("wait", [False, True])
def test_the_last_close_may_come_while_nobody_serves(daemon: Daemon, wait: bool) -> None:
    if not ROOT:
        pytest.skip("needs root: a worker that can be replaced")
    node = make(daemon, "a")
    with node.open("rb"):
        daemon.control.remove("a", deferred=True)
        pid = daemon.kill_worker()
        if wait:
            eventually(lambda: daemon.worker_pid != pid)
            assert is_deferred(daemon, "a")
    eventually(gone(daemon, "a"))


def test_a_mark_is_taken_back_after_a_takeover(daemon: Daemon) -> None:
    if not ROOT:
        pytest.skip("needs root: a worker that can be replaced")
    node, other = make(daemon, "a"), make(daemon, "b")
    with node.open("rb") as file, other.open("rb"):
        daemon.control.remove("a", deferred=True)
        daemon.control.remove("b", deferred=True)
        daemon.control.message("b", 0, "@cancel_deferred_remove")
        pid = daemon.kill_worker()
        eventually(lambda: daemon.worker_pid != pid)
        daemon.control.message("a", 0, "@cancel_deferred_remove")
        assert file.read(4096) == bytes(4096)
    time.sleep(0.5)
    for name in "ab":
        assert not is_deferred(daemon, name)
        with (daemon.nodes / name).open("rb") as file:
            assert file.read(4096) == bytes(4096)
