"""What a user without root does with a daemon of his own; run by test_user.py. The last word is "well"."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from support.check import check_file
from support.daemon import Daemon, pools_in
from support.stage import Stage


def settle(stage: Stage, name: str) -> None:
    """fuse2fs writes its last blocks after fusermount3 -u has returned: wait until it has let go."""
    for _ in range(200):
        if stage.dm("info", "-c", "--noheadings", "-o", "open", name).strip() == "0":
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} is still open")


def main(base: Path) -> None:
    # beside what the test's own wrapping may have mounted in it
    base = base / "walk"
    base.mkdir()
    stage = Stage(Daemon(base))
    try:
        stage.pool()
        stage.message("create_thin 0")
        node = stage.thin("base", 0)
        stage.sh("mkfs.ext4", "-q", node)
        point = base / "mnt"
        point.mkdir()
        stage.sh("fuse2fs", "-o", "fakeroot", node, point)
        (point / "id.txt").write_text("hello world, I am a base")
        refused = stage.message("create_snap 1 0", code=1)
        assert "Device or resource busy" in refused.splitlines()[0], refused
        assert "fuse2fs" in refused and "force" in refused, refused
        stage.dm("message", "--force", "pool", "0", "create_snap 2 0")
        stage.sh("fusermount3", "-u", point)
        settle(stage, "base")
        stage.message("create_snap 1 0")
        snap = stage.thin("snap", 1)
        stage.sh("fuse2fs", "-o", "fakeroot", snap, point)
        assert (point / "id.txt").read_text() == "hello world, I am a base"
        (point / "id.txt").write_text("I am snap1")
        stage.sh("fusermount3", "-u", point)
        settle(stage, "snap")
        stage.sh("fuse2fs", "-o", "ro,fakeroot", node, point)
        assert (point / "id.txt").read_text() == "hello world, I am a base"
        stage.sh("fusermount3", "-u", point)
        settle(stage, "base")
        for each in (node, snap):
            stage.sh("e2fsck", "-fn", each)
    finally:
        subprocess.run(["fusermount3", "-u", "-z", base / "mnt"], capture_output=True, check=False)
        stage.daemon.take_down()
    for metadata in pools_in(base):
        check_file(metadata)
    print("well")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
