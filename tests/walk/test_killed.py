"""kill -9 of the daemon in the middle of writes: what was made durable is there after the restart."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support.stage import Stage

PAGE = 4096


class Durable(threading.Thread):
    """Writes numbered pages to a block device, and remembers of each what was in the last flush that returned."""

    def __init__(self, node: Path, pages: int, seed: int) -> None:
        super().__init__()
        self.node = node
        self.pages = pages
        self.random = random.Random(seed)
        self.flushed: dict[int, int] = {}
        self.later: dict[int, list[int]] = {}
        self.count = 0

    def run(self) -> None:
        buffer = mmap.mmap(-1, PAGE)  # O_DIRECT wants it aligned
        fd = os.open(self.node, os.O_RDWR | os.O_DIRECT)
        try:
            while True:
                self.count += 1
                page = self.random.randrange(self.pages)
                buffer[:] = self.count.to_bytes(8, "little") * (PAGE // 8)
                self.later.setdefault(page, []).append(self.count)
                os.pwrite(fd, buffer, page * PAGE)
                if self.count % 7 == 0:
                    os.fsync(fd)
                    self.flushed.update({page: values[-1] for page, values in self.later.items()})
                    self.later.clear()
        except OSError:
            pass  # the daemon is dead
        finally:
            os.close(fd)

    def check(self, node: Path) -> None:
        with node.open("rb") as file:
            for page in range(self.pages):
                allowed = {self.flushed.get(page, 0), *self.later.get(page, [])}
                got = file.read(PAGE)
                values = {int.from_bytes(got[at : at + 8], "little") for at in range(0, PAGE, 8)}
                # a sector is atomic, a page of eight is not
                assert values <= allowed, f"page {page}: {sorted(values)[:3]}, flushed {self.flushed.get(page)}"


def test_what_was_flushed_is_there(stage: Stage) -> None:
    """Several lives of one pool, with snapshots between and under the writes."""
    stage.pool()
    stage.message("create_thin 0")
    stage.message("create_thin 1")
    next_id = 2
    for round_ in range(4):
        writers = []
        for name, dev_id in (("a", 0), ("b", 1)):
            if round_ == 0:
                stage.thin(name, dev_id, 16)
            # a clean slate for what a page may hold
            stage.sh("blkdiscard", stage.node(name))
            writers.append(Durable(stage.node(name), 16 << 20 >> 12, round_))
        for writer in writers:
            writer.start()
        time.sleep(0.5)
        stage.message(f"create_snap {next_id} {round_ % 2}")
        next_id += 1
        time.sleep(0.5)
        stage.daemon.kill()
        for writer in writers:
            writer.join(60)
            assert not writer.is_alive()
            assert writer.flushed, "something was flushed"
        stage.dm("daemon", "start")
        for writer, name in zip(writers, "ab", strict=True):
            writer.check(stage.node(name))
    pool = stage.dm("status", "pool")
    assert " rw " in pool and "needs_check" not in pool


def test_fio_verifies_what_it_wrote_before_the_kill(stage: Stage) -> None:
    """Each write of fio's is durable when it completes (sync=1); it remembers how far it came, and verifies that."""
    if shutil.which("fio") is None:
        pytest.skip("missing: fio")
    stage.pool()
    stage.message("create_thin 0")
    node = stage.thin("base", 0, 64)
    job = [
        "fio", "--name=killed", f"--filename={node}", "--direct=1", "--sync=1", "--rw=randwrite", "--bs=4k",
        "--size=64m", "--verify=crc32c", "--ioengine=psync", f"--aux-path={stage.base}", "--randseed=7",
    ]  # fmt: skip
    writing = subprocess.Popen(
        [*job, "--do_verify=0", "--verify_state_save=1"],
        cwd=stage.base,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(2)
    assert writing.poll() is None
    stage.daemon.kill()
    assert writing.wait(60) != 0, "fio saw the error"
    assert list(stage.base.glob("*verify*.state")), "fio left how far it came"
    stage.dm("daemon", "start")
    stage.sh(*job, "--verify_only=1", "--verify_state_load=1", "--verify_fatal=1")


def test_a_mounted_file_system_recovers(stage: Stage) -> None:
    stage.pool()
    stage.message("create_thin 0")
    base = stage.thin("base", 0)
    stage.sh("mkfs.ext4", "-q", base)
    point = stage.mount(base)
    (point / "durable").write_text("fsynced")
    stage.sh("sync", "-f", point)
    stage.daemon.kill()
    subprocess.run(["umount", "-l", point], check=True)
    stage.mounts.remove(point)
    stage.dm("daemon", "start")
    point = stage.mount(base)
    assert (point / "durable").read_text() == "fsynced"
    stage.umount(point)
    stage.sh("e2fsck", "-fn", base)
