"""The worker dies, and nobody notices."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from support.stage import Stage

from .conftest import disk, linear

FIO = ["fio", "--name=verify", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8"]
FIO += ["--verify=crc32c", "--verify_fatal=1"]


def test_an_idle_mount(stage: Stage) -> None:
    node = linear(stage, "a")
    stage.sh("mkfs.ext4", "-q", node)
    point = stage.mount(node)
    (point / "before").write_text("before")
    keeper = stage.daemon.control.ping()
    ours = Path("/proc/self/oom_score_adj").read_text()
    scores = [Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in (keeper, stage.daemon.worker_pid)]
    assert scores == ["-1000\n", ours] or scores == [ours, ours]  # where it cannot be lowered
    with (point / "open").open("wb") as file:
        for round_ in range(3):
            old = stage.daemon.kill_worker()
            file.write(b"%d" % round_)
            os.fsync(file.fileno())
            assert stage.daemon.worker_pid != old
    assert stage.daemon.control.ping() == keeper
    status = stage.dm("daemon", "status")
    assert f"Process:           {keeper}\n" in status
    assert f"Worker:            {stage.daemon.worker_pid}, replaced 3 times\n" in status
    assert (point / "before").read_text() == "before"
    assert (point / "open").read_bytes() == b"012"
    stage.umount(point)
    stage.sh("e2fsck", "-fn", node)
    stage.dm("remove", "a")


def test_under_fio(stage: Stage) -> None:
    node = linear(stage, "a", 64)
    job = subprocess.Popen(
        [*FIO, f"--filename={node}", "--size=32m", "--time_based", "--runtime=6"],
        cwd=stage.base,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for _ in range(8):
        time.sleep(0.5)
        stage.daemon.kill_worker()
    assert job.wait() == 0, job.communicate()[0]


def test_storage_that_nobody_else_holds(stage: Stage) -> None:
    """An AUTOCLEAR loop device, a file that has no name any more."""
    backing = disk(stage, "backing", 16)
    loop = stage.sh("losetup", "--find", "--show", backing).strip()
    nameless = disk(stage, "nameless", 16)
    stage.dm("create", "a", "--table", f"0 32768 linear {loop} 0")
    stage.dm("create", "b", "--table", f"0 32768 linear {nameless} 0")
    stage.sh("losetup", "-d", loop)  # at its last close
    nameless.unlink()
    for name in "ab":
        stage.node(name).write_bytes(name.encode() * 4096)
    stage.daemon.kill_worker()
    for name in "ab":
        with stage.node(name).open("rb") as file:
            assert file.read(4096) == name.encode() * 4096
        stage.dm("remove", name)
    bound = Path(f"/sys/block/{Path(loop).name}/loop/backing_file")
    assert not bound.exists() or bound.read_text().strip() != str(backing)
