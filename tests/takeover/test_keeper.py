"""The keeper itself: what may come to it, and what it must not die of."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import site
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import userdm
from support.daemon import SECONDS
from support.stage import Stage

from .conftest import linear


def test_more_descriptors_than_select_knows(stage: Stage) -> None:
    """A few hundred devices are enough; the keeper died with its worker then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("missing: a limit of 4096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        keeper = stage.daemon.start(pass_fds=many)
    finally:
        for fd in many:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stage.dm("create", "a", "--table", "0 8 zero")
    node = os.open(stage.node("a"), os.O_RDONLY)
    try:
        stage.daemon.kill_worker()
        assert stage.daemon.control.ping() == keeper
        assert os.pread(node, 4096, 0) == bytes(4096)
    finally:
        os.close(node)


def test_a_worker_that_cannot_be_started_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is missing while the worker dies: it is being upgraded. Whoever has a device open waits."""
    daemon = stage.daemon
    link = daemon.base / "python"
    link.symlink_to(sys.executable)
    paths = [str(Path(userdm.__file__).parent.parent), *site.getsitepackages()]
    daemon.env["PYTHONPATH"] = ":".join(paths)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(link))
        keeper = daemon.start()
    stage.dm("create", "a", "--table", "0 8 zero")
    node = os.open(stage.node("a"), os.O_RDONLY | os.O_DIRECT)
    try:
        link.unlink()
        os.kill(daemon.worker_pid, signal.SIGKILL)
        end = time.monotonic() + SECONDS
        while "no worker can be started" not in daemon.log():
            assert time.monotonic() < end, daemon.log()
            assert Path(f"/proc/{keeper}").exists(), daemon.log()
            time.sleep(0.02)
        link.symlink_to(sys.executable)
        with mmap.mmap(-1, 4096) as aligned:
            assert os.preadv(node, [aligned], 0) == 4096
        assert daemon.control.ping() == keeper
    finally:
        os.close(node)


def test_a_worker_that_dies_while_it_ends(stage: Stage) -> None:
    """By then the socket has no name any more, so that nobody comes: the next worker must be found all the same."""
    daemon = stage.daemon
    keeper = daemon.start()
    stage.dm("create", "a", "--table", "0 8 zero")
    worker = daemon.worker_pid
    # the end waits ten seconds for a request that is under way
    silent = daemon.control.connect()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(daemon.control.query, "stop")
        while (daemon.run / "control").exists():
            assert not asked.done()
        os.kill(worker, signal.SIGKILL)
        assert isinstance(asked.exception(SECONDS), OSError)
    silent.close()
    end = time.monotonic() + SECONDS
    while not (daemon.run / "control").exists():
        assert time.monotonic() < end, daemon.log()
        time.sleep(0.02)
    assert daemon.control.ping() == keeper
    assert [name for name, _ in daemon.control.devices()] == ["a"]


def test_an_upgrade_while_what_others_stand_on_is_suspended(stage: Stage) -> None:
    """It ended in the middle: the worker took no requests any more, and did not leave."""
    daemon = stage.daemon
    low = linear(stage, "low")
    stage.dm("create", "top", "--table", f"0 2048 linear {low} 0")
    stage.dm("suspend", "low")
    stage.dm("suspend", "top")
    stage.dm("resume", "top")
    before = daemon.worker_pid
    stage.dm("daemon", "upgrade")
    assert daemon.worker_pid != before
    assert daemon.control.status("low")[0].suspended
    stage.dm("resume", "low")
    assert "Traceback" not in daemon.log()


def test_a_full_runtime_folder(stage: Stage) -> None:
    """What cannot be written down keeps nobody from taking over, nor from ending: an end got stuck half way."""
    daemon = stage.daemon
    daemon.run.mkdir()
    stage.sh("mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", daemon.run)
    try:
        keeper = daemon.start()
        stage.dm("create", "a", "--table", "0 8 zero")
        worker = daemon.worker_pid
        node = os.open(stage.node("a"), os.O_RDONLY | os.O_DIRECT)
        try:
            with (daemon.run / "fill").open("wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(512))
            os.kill(worker, signal.SIGKILL)
            with mmap.mmap(-1, 4096) as aligned:
                assert os.preadv(node, [aligned], 0) == 4096
        finally:
            os.close(node)
        assert daemon.control.ping() == keeper
        assert [name for name, _ in daemon.control.devices()] == ["a"]
        stage.dm("daemon", "stop")
        daemon.wait_for_end(keeper)
    finally:
        stage.sh("umount", "-l", daemon.run)
