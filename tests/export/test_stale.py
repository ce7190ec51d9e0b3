"""A process dies with live exports; another one clears up after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from userdm.export import holders
from userdm.export.exporter import DeviceExporter

from .backends import memory, sh, wait_for
from .conftest import unmount_under

pytestmark = pytest.mark.root

DAEMON = """
import sys
from pathlib import Path
from export.backends import free_minor, memory
from userdm.export.exporter import DeviceExporter
base = Path(sys.argv[1])
exporter = DeviceExporter(base / "run", base / "mapper", as_root=True)
for number, name in enumerate(("one", "two")):
    exporter.create(name, memory(), free_minor() + number).activate(name, False)
exporter.create("reserved", memory(), free_minor() + 2)
print(*(export.devno[1] for export in exporter._exports.values()), flush=True)
sys.stdin.read()
"""


@contextmanager
def daemon(base: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        assert process.stdout is not None
        yield process, [int(word) for word in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait(20)
        unmount_under(base)
        DeviceExporter(base / "run", base / "mapper", as_root=True).clear_stale()


def gone(minors: list[int]) -> bool:
    return not any(Path(f"/sys/block/loop{minor}").exists() for minor in minors)


def test_everything_is_cleared(tmp_path: Path) -> None:
    with daemon(tmp_path) as (process, minors):
        process.kill()
        process.wait(10)
        fresh = DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True)
        lines = fresh.clear_stale()
        assert len(lines) == 3
        assert gone(minors)
        assert not list((tmp_path / "mapper").iterdir())
        assert fresh.clear_stale() == []
        # and the names and numbers are free again
        export = fresh.create("one", memory(), minors[0])
        export.activate("one", False)
        fresh.close()


def test_one_that_is_still_mounted_goes_with_its_mount(tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    with daemon(tmp_path) as (process, minors):
        sh("mkfs.ext4", "-q", tmp_path / "mapper/one")
        sh("mount", tmp_path / "mapper/one", point)
        (point / "dirty").write_text("never written down")
        process.kill()
        process.wait(10)
        fresh = DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True)
        started = time.monotonic()
        lines = fresh.clear_stale()
        assert time.monotonic() - started < 5
        assert [line for line in lines if "in use" in line] == [
            f"/dev/loop{minors[0]} is dead and still in use; it goes when it is unmounted and closed"
        ]
        assert gone(minors[1:])
        sh("umount", point, timeout=20)
        assert len(fresh.clear_stale()) == 1
        assert gone(minors)


def test_dirty_pages_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """The daemon dies with an opener that wrote and did not sync."""
    with daemon(tmp_path) as (process, minors):
        node = os.open(tmp_path / "mapper/one", os.O_RDWR)
        os.pwrite(node, bytes(8 << 20), 0)
        process.kill()
        process.wait(10)
        os.close(node)
        DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True).clear_stale()
        assert gone(minors)


def test_a_hung_daemon_does_not_hang_the_cleaner(tmp_path: Path) -> None:
    """Stopped, not dead: its connections are there and nobody answers; readers wait until they are aborted."""
    with daemon(tmp_path) as (process, minors):
        process.send_signal(signal.SIGSTOP)
        reader = subprocess.Popen(
            ["dd", f"if={tmp_path / 'mapper/one'}", "of=/dev/null", "count=1"], stderr=subprocess.DEVNULL
        )
        time.sleep(0.2)
        assert reader.poll() is None
        started = time.monotonic()
        DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True).clear_stale()
        assert time.monotonic() - started < 5
        assert reader.wait(5) != 0
        process.kill()
        process.wait(10)
        DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True).clear_stale()
        assert gone(minors)


def test_what_is_somebody_elses_stays(tmp_path: Path) -> None:
    """A number that was given to another loop device in the meantime, and links that lead elsewhere."""
    with daemon(tmp_path) as (process, minors):
        (tmp_path / "mapper/elsewhere").symlink_to("/dev/null")
        process.kill()
        process.wait(10)
        record = tmp_path / f"run/loop/{minors[0]}"
        kept = record.read_text()
        DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True).clear_stale()
        record.write_text(kept)
        image = tmp_path / "image"
        image.write_bytes(bytes(1 << 20))
        sh("losetup", f"/dev/loop{minors[0]}", image)
        try:
            lines = DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True).clear_stale()
            assert lines == [f"/dev/loop{minors[0]} belongs to somebody else by now"]
            assert (f"loop{minors[0]}", str(image)) in list(holders.loops_bound())
            assert (tmp_path / "mapper/elsewhere").is_symlink()
        finally:
            sh("losetup", "-d", f"/dev/loop{minors[0]}")
            remove(minors[0])


def remove(index: int) -> None:
    from userdm.export.loop import delete

    wait_for(lambda: not Path(f"/sys/block/loop{index}/loop/backing_file").exists(), "the loop device is unbound")
    delete(index)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"index": 1}', '{"index": "x", "connection": 0, "diskseq": 0}', "\0"]
)
def test_a_record_that_is_none_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "run/loop").mkdir(parents=True)
    (tmp_path / "run/loop/1").write_text(text)
    assert DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True).clear_stale() == []
