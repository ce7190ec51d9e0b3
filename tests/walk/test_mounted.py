"""Snapshots of volumes that are mounted and being written: what the kernel's document warns of is safe here."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from support.stage import Stage


class Writer(threading.Thread):
    """Writes numbered files into a folder, each fsynced before it counts as written."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.written = 0
        self.stop = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop:
                with (self.folder / f"f{self.written % 400}").open("wb") as file:
                    file.write(b"%d\n" % self.written * 500)
                    file.flush()
                    if self.written % 5 == 0:
                        subprocess.run(["sync", "-f", self.folder], check=True)
                self.written += 1
        except BaseException as error:
            self.error = error


def check_snapshot(stage: Stage, node: Path, written: int) -> None:
    """A file system that was frozen: clean as it stands, no journal to replay, with every file that was written."""
    state = stage.sh("dumpe2fs", "-h", node)
    assert "needs_recovery" not in state, "a frozen file system has an empty journal"
    stage.sh("e2fsck", "-fn", node)
    point = stage.mount(node, "-o", "ro")
    for number in range(max(0, written - 300), written):
        got = (point / f"f{number % 400}").read_bytes()
        first = got.split(b"\n", 1)[0]
        assert got == first + b"\n" + got[len(first) + 1 :] and int(first) >= number, f"f{number % 400}: {first!r}"
        assert len(got) >= 500
    stage.umount(point)


def test_snapshots_of_a_mounted_volume(stage: Stage) -> None:
    stage.pool(size=512)
    stage.message("create_thin 0")
    base = stage.thin("base", 0)
    stage.sh("mkfs.ext4", "-q", base)
    writer = Writer(stage.mount(base))
    writer.start()
    try:
        for dev_id in range(1, 9):
            written = writer.written
            stage.message(f"create_snap {dev_id} 0")
            snap = stage.thin(f"s{dev_id}", dev_id)
            check_snapshot(stage, snap, written)
            stage.dm("remove", f"s{dev_id}")
    finally:
        writer.stop = True
        writer.join()
    assert writer.error is None and writer.written > 50
    stage.umount(stage.mounts[0])
    stage.sh("e2fsck", "-fn", base)


def test_a_file_system_on_a_device_above(stage: Stage) -> None:
    """The origin carries a linear device, and that the file system."""
    stage.pool()
    stage.message("create_thin 0")
    base = stage.thin("base", 0)
    stage.dm("create", "above", "--table", f"0 {100 * 2048} linear {base} 2048")
    above = stage.node("above")
    stage.sh("mkfs.ext4", "-q", above)
    point = stage.mount(above)
    (point / "id.txt").write_text("unsynced")
    stage.message("create_snap 1 0")
    snap = stage.thin("snap", 1)
    stage.dm("create", "above-snap", "--table", f"0 {100 * 2048} linear {snap} 2048")
    again = stage.mount(stage.node("above-snap"), "-o", "ro")
    assert (again / "id.txt").read_text() == "unsynced"
    (point / "id.txt").write_text("changed")
    subprocess.run(["sync", "-f", point], check=True)
    assert (again / "id.txt").read_text() == "unsynced"


def test_a_message_that_fails_thaws(stage: Stage) -> None:
    stage.pool()
    stage.message("create_thin 0")
    base = stage.thin("base", 0)
    stage.sh("mkfs.ext4", "-q", base)
    point = stage.mount(base)
    assert "File exists" in stage.message("create_snap 0 0", code=1)
    stage.sh("sh", "-c", f"echo alive > {point}/x && sync -f {point}", timeout=20)


def test_suspend_freezes_and_resume_thaws(stage: Stage) -> None:
    stage.pool()
    stage.message("create_thin 0")
    base = stage.thin("base", 0)
    stage.sh("mkfs.ext4", "-q", base)
    point = stage.mount(base)
    (point / "before").write_text("x")
    stage.dm("suspend", "base")
    assert "SUSPENDED" in stage.dm("info", "base")
    stage.message("create_snap 1 0")
    writer = subprocess.Popen(["sh", "-c", f"echo y > {point}/after"])
    try:
        writer.wait(0.5)
        raise AssertionError("a write to a frozen file system waits")
    except subprocess.TimeoutExpired:
        pass
    stage.dm("resume", "base")
    assert writer.wait(20) == 0
    snap = stage.mount(stage.thin("snap", 1), "-o", "ro")
    assert sorted(path.name for path in snap.iterdir()) == ["before", "lost+found"]
