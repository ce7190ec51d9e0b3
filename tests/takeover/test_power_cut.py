"""Keeper and worker die together: for the volumes that is a power cut."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.check import check_file
from support.stage import Stage

ROUNDS = 50
WRITER = """
import os, random, sys
folder, seed = sys.argv[1], int(sys.argv[2])
chooser = random.Random(seed)
for count in range(10**9):
    name = f"{seed}-{count % 40}"
    data = chooser.randbytes(16) * chooser.randrange(1, 8000)
    fd = os.open(f"{folder}/{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(f"{folder}/{name}.new", f"{folder}/{name}")
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    print(name, count, len(data), data[:16].hex(), flush=True)
"""


class Writer(threading.Thread):
    """Remembers of each file what was in it when its fsync, and that of its folder, returned."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        self.durable: dict[str, tuple[int, str]] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.start()

    def run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            name, _, length, begin = line.split()
            self.durable[name] = int(length), begin
        self._process.wait()

    def check(self, folder: Path, seed: int) -> None:
        """A file may be newer than what was told, by one write."""
        newer = 0
        for name, (length, begin) in self.durable.items():
            data = (folder / name).read_bytes()
            assert data == data[:16] * (len(data) // 16), f"{name} is not one write's"
            newer += (len(data), data[:16].hex()) != (length, begin)
        assert newer <= 1, f"{newer} of {len(self.durable)} files are not what was fsynced"


@pytest.mark.slow
def test_what_was_fsynced_is_there(stage: Stage) -> None:
    chooser = random.Random(5)
    stage.pool()
    stage.message("create_thin 0")
    node = stage.thin("v", 0)
    stage.sh("mkfs.ext4", "-q", node)
    files = 0
    for round_ in range(ROUNDS):
        point = stage.mount(node)
        writer = Writer(point, round_)
        time.sleep(chooser.random() * 0.6)
        if round_ % 5 == 4:
            stage.message(f"create_snap {round_} 0")
        if round_ % 3 == 0:
            stage.daemon.kill_worker()  # the next one may be on its way
            time.sleep(chooser.random() * 0.5)
        stage.daemon.kill()
        writer.join(60)
        assert not writer.is_alive()
        subprocess.run(["umount", "-l", point], check=True)
        stage.mounts.remove(point)
        check_file(stage.base / "pool.meta")
        stage.dm("daemon", "start")
        point = stage.mount(node)  # and the journal is replayed
        writer.check(point, round_)
        files += len(writer.durable)
        for path in point.glob("*-*"):
            path.unlink()
        stage.umount(point)
        stage.sh("e2fsck", "-fn", node)
    assert files > ROUNDS
    status = stage.dm("status", "pool")
    assert " rw " in status and "needs_check" not in status
