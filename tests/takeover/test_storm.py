"""Two hundred deaths of the worker, under everything that volumes are for."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from support.stage import Stage

from .load import Changing, Killing, Stressing, Verifying

KILLS = 200
SECONDS = 360.0


def volume(stage: Stage, pool: str, name: str, size: int = 128) -> Path:
    """An ext4 on the volume 0 of a new pool; its mount point."""
    stage.pool(pool, 512)
    stage.message("create_thin 0", pool)
    node = stage.thin(name, 0, size, pool)
    stage.sh("mkfs.ext4", "-q", node)
    return stage.mount(node)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_two_hundred_deaths(stage: Stage, seed: int) -> None:
    stop = stage.base / "stop"
    points = [volume(stage, "p0", "v0"), volume(stage, "p1", "v1")]
    stressing = [Stressing(point / "stress", seed + at, stop) for at, point in enumerate(points)]
    verifying = Verifying(points[1] / "fio", 8, stop)
    changing = Changing(stage, {"v0": "p0", "v1": "p1"}, points, seed, stop)
    killing = Killing(stage, seed)
    began = time.monotonic()
    verifying.start()
    changing.start()
    kills = 0
    try:
        while kills < KILLS and not any(each.ended() for each in stressing):
            assert changing.failure is None, f"{changing.failure!r}\n{stage.daemon.log()[-4000:]}"
            assert verifying.failure is None, verifying.failure
            killing.one()
            kills += 1
        took = time.monotonic() - began
    finally:
        stop.touch()
    verifying.join(120)
    changing.join(120)
    assert not verifying.is_alive()
    assert not changing.is_alive()
    steps = [each.steps() for each in stressing]
    print(f"{kills} deaths ({killing.starting} before it served) in {took:.0f} s; {steps} steps, {verifying.rounds} ")
    print(f"rounds of fio, {changing.done}, {changing.doubts} in doubt")
    assert changing.failure is None, f"{changing.failure!r}\n{stage.daemon.log()[-4000:]}"
    assert verifying.failure is None, verifying.failure
    assert kills == KILLS
    assert killing.starting > 0
    assert all(steps)
    stage.sh("sync")
    for point in points:
        stage.umount(point)
    for name in ("v0", "v1", *sorted(changing.snapshots)):
        done = subprocess.run(["e2fsck", "-fn", stage.node(name)], capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert stage.dm("table").count("\n") == 4 + len(changing.snapshots)
