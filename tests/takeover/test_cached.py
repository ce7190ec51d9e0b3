"""The worker dies while its devices are cached: what is dirty lives in the kernel, and goes to the next one."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator

import pytest

from support.cached import CachedStage, Stomper, cached_stage

from .conftest import missing_for_takeover
from .test_killed import FIO

KILLS = 20


@pytest.fixture
def cached() -> Iterator[CachedStage]:
    if (what := missing_for_takeover()) is not None:
        pytest.skip(f"missing: {what}")
    with cached_stage() as made:
        yield made


def test_under_fio(cached: CachedStage) -> None:
    cached.big_pool()
    node = cached.volume(size=128)
    cached.until_cached("thin")
    words = f"--filename={node} --size=64m --time_based --runtime=600 --fsync=512"
    job = subprocess.Popen(
        [*FIO, *words.split()], cwd=cached.base, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    chance = random.Random(6)
    for kill in range(KILLS):
        if kill % 4:
            cached.until_cached("thin")
        time.sleep(chance.random() / 2)
        assert job.poll() is None, job.communicate()[0]
        cached.daemon.kill_worker()
        if kill % 5 == 2:
            cached.dm("suspend", "thin")
            cached.dm("resume", "thin")
    job.terminate()
    assert node.is_block_device()
    said = job.communicate()[0]
    assert "err= 0" in said, said
    assert "bad" not in said, said


def test_a_writer_and_snapshots(cached: CachedStage) -> None:
    cached.big_pool()
    node = cached.volume(size=16)
    cached.until_cached("thin")
    writer = Stomper(node, 512, stride=3)
    writer.start()
    ranges = []
    for number in range(1, 7):
        cached.until_cached("thin")
        writer.until(writer.completed + 300)
        cached.daemon.kill_worker()
        low = writer.completed
        cached.message(f"create_snap {number} 0")
        ranges.append((low, writer.completed + 1))
    last = writer.stop()
    cached.daemon.kill_worker()
    writer.check(node, last, last)
    for number, (low, high) in enumerate(ranges, 1):
        writer.check(cached.thin(f"snap{number}", number, size=16), low, high)


def test_what_it_had_promised_is_kept(cached: CachedStage) -> None:
    """A worker dies with much that is dirty; meanwhile another volume, not cached, wants the whole pool."""
    cached.big_pool(size=256, features="error_if_no_space")
    one, two = cached.volume("one", 0, size=128), cached.volume("two", 1, size=256)
    cached.until_cached("one")
    mine, theirs = Stomper(one, 1000, stride=16), Stomper(two, 4096, stride=16)
    mine.start()
    mine.until(1000)
    theirs.start()
    for _ in range(3):
        theirs.until(theirs.completed + 100)
        old = cached.daemon.kill_worker()
        while cached.daemon.worker_pid == old:
            time.sleep(0.01)
    theirs.join(60)
    assert theirs.error is not None
    last = mine.stop()
    cached.sh("dd", "if=/dev/null", f"of={one}", "conv=notrunc,fsync", "status=none")
    mine.check(one, last, last)


def test_an_upgrade_under_a_writer(cached: CachedStage) -> None:
    cached.big_pool()
    node = cached.volume(size=16)
    writer = Stomper(node, 512, stride=3)
    writer.start()
    for _ in range(3):
        cached.until_cached("thin")
        writer.until(writer.completed + 300)
        cached.dm("daemon", "upgrade")
    last = writer.stop()
    writer.check(node, last, last)
    cached.until_cached("thin")
