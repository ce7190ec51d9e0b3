"""`userdm daemon upgrade`: other code serves, and nobody notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import userdm
from support.daemon import Daemon
from support.stage import Stage

from .conftest import linear
from .load import Stressing, Verifying


def test_under_load(stage: Stage) -> None:
    stop = stage.base / "stop"
    stage.pool()
    stage.message("create_thin 0")
    node = stage.thin("v", 0)
    stage.sh("mkfs.ext4", "-q", node)
    point = stage.mount(node)
    stressing = Stressing(point / "stress", 1, stop)
    verifying = Verifying(point / "fio", 4, stop)
    verifying.start()
    try:
        for round_ in range(5):
            before = stage.daemon.worker_pid
            said = stage.dm("daemon", "upgrade")
            after = stage.daemon.worker_pid
            version = userdm.__version__
            assert said == f"{version}, worker {before}, is replaced by {version}, worker {after}\n"
            assert after != before
            assert not Path(f"/proc/{before}").exists()
            time.sleep(0.5)
            stage.message(f"create_snap {round_ + 1} 0")
    finally:
        stop.touch()
    verifying.join(120)
    assert not verifying.is_alive()
    assert verifying.failure is None
    assert stressing.steps() > 0
    stage.umount(point)
    stage.sh("e2fsck", "-fn", node)
    assert ", replaced 5 times\n" in stage.dm("daemon", "status")


def installed(daemon: Daemon) -> Path:
    """A copy of the code that the daemon runs, to be changed."""
    place = daemon.base / "site"
    shutil.copytree(Path(userdm.__file__).parent, place / "userdm", ignore=shutil.ignore_patterns("__pycache__"))
    daemon.env["PYTHONPATH"] = str(place)
    return place / "userdm"


def test_new_code_takes_over_and_broken_code_does_not(stage: Stage) -> None:
    code = installed(stage.daemon)
    node = linear(stage, "a")
    stage.sh("mkfs.ext4", "-q", node)
    point = stage.mount(node)
    (point / "file").write_text("x")
    old = stage.daemon.worker_pid
    module = code / "daemon" / "service.py"
    good = module.read_text()

    module.write_text(good + "\nthis is no Python\n")
    said = stage.dm("daemon", "upgrade", code=1)
    assert "SyntaxError" in said
    assert "the new worker does not start" in said
    assert stage.daemon.worker_pid == old
    (point / "file").write_text("y")
    os.sync()

    module.write_text(good)
    init = code / "__init__.py"
    init.write_text(init.read_text().replace(f'"{userdm.__version__}"', '"99.1"'))
    assert f"{userdm.__version__}, worker {old}, is replaced by 99.1, worker " in stage.dm("daemon", "upgrade")
    assert "Version:           99.1\n" in stage.dm("daemon", "status")
    assert (point / "file").read_text() == "y"
    stage.umount(point)
    stage.sh("e2fsck", "-fn", node)


def test_whoever_waits_for_an_event_goes_on_waiting(stage: Stage) -> None:
    linear(stage, "a")
    waiting = subprocess.Popen(
        stage.daemon.command("wait", "a", "0"), env=stage.daemon.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    time.sleep(0.5)
    stage.dm("daemon", "upgrade")
    stage.daemon.kill_worker()
    stage.dm("ls")
    assert waiting.poll() is None
    stage.dm("rename", "a", "b")
    assert waiting.wait(60) == 0, waiting.communicate()
    waiting.communicate()


def test_one_upgrade_at_a_time(stage: Stage) -> None:
    stage.dm("daemon", "start")
    code = [*stage.daemon.command("daemon", "upgrade")]
    several = [
        subprocess.Popen(code, env=stage.daemon.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    said = [each.communicate(timeout=60)[0] for each in several]
    good = [each.returncode == 0 for each in several]
    assert any(good), said
    for text, fine in zip(said, good, strict=True):
        assert fine or "another upgrade is under way" in text or "may or may not have been done" in text, said
    assert sys.executable and stage.dm("ls") == "No devices found\n"
