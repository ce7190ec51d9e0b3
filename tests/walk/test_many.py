"""Many rounds leave nothing behind, and a device that waits holds up no other."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

from support.stage import Stage


class Footprint:
    """What a daemon holds: descriptors, threads, memory (KiB), loop devices; and the machine's mounts."""

    def __init__(self, pid: int) -> None:
        self.descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        self.threads = int(status["Threads"])
        self.memory = int(status["VmRSS"].split()[0])
        self.mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())


def test_two_hundred_rounds_leak_nothing(stage: Stage) -> None:
    """create, mkfs once, then: snapshot, create, mount, write, umount, remove, delete."""
    pid = stage.daemon.start()
    stage.pool(size=512)
    stage.message("create_thin 0")
    base = stage.thin("base", 0, 64)
    stage.sh("mkfs.ext4", "-q", base)
    marks: dict[int, Footprint] = {}
    for round_ in range(200):
        if round_ in (20, 199):
            marks[round_] = Footprint(pid)
        stage.message("create_snap 1 0")
        snap = stage.thin("snap", 1, 64)
        point = stage.mount(snap)
        (point / "file").write_bytes(os.urandom(100_000))
        stage.umount(point)
        # udev, where it runs, may still be looking at the device
        stage.dm("remove", "--retry", "snap")
        stage.message("delete 1")
    first, last = marks[20], marks[199]
    assert last.descriptors <= first.descriptors
    assert last.threads <= first.threads
    assert last.mounts <= first.mounts
    assert last.memory < first.memory * 1.2 + 4096, (first.memory, last.memory)
    mapped = int(stage.dm("status", "base").split()[3]) // 128
    assert int(stage.dm("status", "pool").split()[5].split("/")[0]) == mapped, "every block of the snapshots is free"


def test_a_suspended_pool_holds_up_no_other(stage: Stage) -> None:
    stage.pool("slow")
    stage.pool("quick")
    for pool in ("slow", "quick"):
        stage.message("create_thin 0", pool)
        stage.thin(f"{pool}-0", 0, 64, pool)
    stage.dm("suspend", "slow")
    stuck = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={stage.node('slow-0')}", "bs=1M", "count=32", "oflag=direct"],
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.3)
    begin = time.monotonic()
    stage.sh("dd", "if=/dev/zero", f"of={stage.node('quick-0')}", "bs=1M", "count=32", "oflag=direct", "conv=fsync")
    stage.message("create_snap 1 0", "quick")
    stage.dm("info")
    stage.dm("table")
    assert stuck.poll() is None
    assert time.monotonic() - begin < 30
    stage.dm("resume", "slow")
    assert stuck.wait(60) == 0


def test_commands_in_parallel(stage: Stage) -> None:
    """A hundred snapshots by eight clients at once: each is made, and none twice."""
    stage.pool()
    stage.message("create_thin 0")
    stage.thin("base", 0, 16)
    failures: list[str] = []
    ids = iter(range(1, 101))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                dev_id = next(ids, None)
            if dev_id is None:
                return
            done = stage.daemon.userdm("message", "pool", "0", f"create_snap {dev_id} 0", code=None)
            if done.returncode:
                failures.append(done.stderr)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert not failures
    assert "File exists" in stage.message("create_snap 57 0", code=1)
