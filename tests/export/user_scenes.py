"""Scenes of test_user.py, each run in a process without root: python user_scenes.py SCENE FOLDER."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from export.backends import Awkward, failing_at, memory, raises, sh, wait_for
from userdm.export.exporter import DeviceExporter
from userdm.mapper.hooks import Export


def exporter(base: Path) -> DeviceExporter:
    return DeviceExporter(base / "run", base / "mapper", as_root=False)


def a_file_system(base: Path) -> None:
    made = exporter(base)
    export = made.create("vol", memory(), None)
    assert export.devno == (240, 0)
    export.activate("vol", False)
    path = base / "mapper/vol"
    assert path.is_file()
    assert path.stat().st_size == 32 << 20
    sh("mkfs.ext4", "-q", path)
    sh("e2fsck", "-fn", path)
    sh("debugfs", "-w", "-R", "write /etc/passwd passwd", path)
    assert "passwd" in sh("debugfs", "-R", "ls", path)
    made.close()
    assert not path.exists()


def any_bytes(base: Path) -> None:
    backend = Awkward(1 << 20)
    made = exporter(base)
    made.create("vol", backend, None).activate("vol", False)
    path = base / "mapper/vol"
    with path.open("r+b", buffering=0) as file:
        file.seek(4094)
        file.write(b"across")
        assert os.pread(file.fileno(), 6, 4094) == b"across"
        assert len(os.pread(file.fileno(), 100, (1 << 20) - 7)) == 7
        assert os.pwrite(file.fileno(), b"0123456789", (1 << 20) - 4) == 4
        with raises(errno.ENOSPC):
            os.pwrite(file.fileno(), b"x", 1 << 20)
        with raises(errno.EINVAL):
            os.ftruncate(file.fileno(), 5)
        os.fsync(file.fileno())
        assert backend.calls[-1][0] == "flush"
    sh("fallocate", "--punch-hole", "-o", "4096", "-l", "8192", path)
    sh("fallocate", "--zero-range", "--keep-size", "-o", "0", "-l", "4096", path)
    assert [call for call in backend.calls if call[0] in ("discard", "zero")] == [
        ("discard", 4096, 8192),
        ("zero", 0, 4096),
    ]
    # what dd and the shell do to a disk does not shorten it
    sh("sh", "-c", f"echo over > {path}")
    assert path.stat().st_size == 1 << 20
    assert path.read_bytes()[:6] == b"over\n\0"
    path.chmod(0o644)
    os.utime(path)
    sh("sh", "-c", f"dd if={path} iflag=direct bs=64k of=/dev/null")
    made.close()


def errors(base: Path) -> None:
    backend = Awkward()
    made = exporter(base)
    made.create("vol", backend, None).activate("vol", False)
    with (base / "mapper/vol").open("r+b", buffering=0) as file:
        for number in (errno.EIO, errno.ENOSPC):
            backend.errors = {what: failing_at(range(1), number) for what in ("write", "read")}
            with raises(number):
                os.pwrite(file.fileno(), b"x", 0)
            with raises(number):
                os.pread(file.fileno(), 1, 0)
        backend.errors = {}
        assert os.pwrite(file.fileno(), b"x", 0) == 1
    made.close()


def readonly(base: Path) -> None:
    backend = Awkward()
    backend.readonly = True
    made = exporter(base)
    made.create("vol", backend, None).activate("vol", True)
    path = base / "mapper/vol"
    with raises(errno.EACCES), path.open("r+b"):
        pass
    assert path.read_bytes()[:4] == bytes(4)
    made.close()


def openers(base: Path) -> None:
    made = exporter(base)
    export = made.create("vol", memory(), None)
    export.activate("vol", False)
    path = base / "mapper/vol"
    assert export.open_count() == 0
    with path.open("rb"):
        assert export.open_count() == 1
        assert export.writers() == []
    # the opener ends, and a child of it has the file still: what fuse2fs does
    script = f"import os, sys; fd = os.open({str(path)!r}, os.O_RDWR)\nif os.fork(): os._exit(0)\nsys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert holder.wait(10) == 0
    (writer,) = export.writers()
    assert "python" in writer
    assert export.open_count() == 1
    with raises(errno.EBUSY):
        export.remove()
    with raises(errno.EBUSY):
        export.rename("new")
    assert path.stat().st_size == 32 << 20
    assert holder.stdin is not None
    holder.stdin.close()
    wait_for(lambda: export.open_count() == 0, "the child ended")
    assert export.writers() == []
    export.rename("new")
    assert [entry.name for entry in (base / "mapper").iterdir()] == ["new"]
    assert (base / "mapper/new").stat().st_size == 32 << 20
    export.activate("new", False)
    export.remove()
    assert list((base / "mapper").iterdir()) == []
    assert made.create("again", memory(), 7).devno == (240, 7)
    with raises(errno.EBUSY):
        made.create("taken", memory(), 7)
    made.close()


def the_end(base: Path) -> None:
    """With an opener, and with a request that waits."""
    backend = Awkward()
    made = exporter(base)
    made.create("vol", backend, None).activate("vol", False)
    path = base / "mapper/vol"
    held = os.open(path, os.O_RDONLY)
    backend.close_gate()
    reader = subprocess.Popen(["dd", f"if={path}", "of=/dev/null", "count=1"], stderr=subprocess.DEVNULL)
    wait_for(lambda: bool(backend.calls), "the read was tried")
    started = time.monotonic()
    made.close()
    assert time.monotonic() - started < 5
    assert reader.wait(5) != 0
    with raises(errno.ENOTCONN):
        os.pread(held, 1, 0)
    os.close(held)
    assert list((base / "mapper").iterdir()) == []


def stale(base: Path) -> None:
    """A daemon killed, and one that only hangs, with openers."""
    script = f"""
import sys
from pathlib import Path
sys.argv = ["", "", ""]
from export.user_scenes import exporter, memory
made = exporter(Path({str(base)!r}))
for name in ("one", "two words"):
    made.create(name, memory(), None).activate(name, False)
print("up", flush=True)
sys.stdin.read()
"""
    for signal in (9, 19):
        daemon = started([sys.executable, "-c", script])
        (base / "mapper/somebody's").write_text("stays")
        opener = started(["sh", "-c", f"exec 3<{base / 'mapper/one'} && echo up && read line"])
        daemon.send_signal(signal)
        if signal == 9:
            daemon.wait(10)
        fresh = exporter(base)
        began = time.monotonic()
        assert len(fresh.clear_stale()) == 2
        assert time.monotonic() - began < 5
        assert [entry.name for entry in (base / "mapper").iterdir()] == ["somebody's"]
        assert fresh.clear_stale() == []
        daemon.kill()
        daemon.wait(10)
        opener.kill()
        opener.wait(10)


def started(command: list[str]) -> subprocess.Popen[str]:
    """A process that has said that it is up."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def fifty_rounds(base: Path) -> None:
    made = exporter(base)

    def state() -> tuple[int, int, int]:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(mounts)

    def closed(export: Export) -> bool:
        return export.open_count() == 0

    before = state()
    for _ in range(50):
        export = made.create("vol", memory(1 << 20), None)
        export.activate("vol", False)
        (base / "mapper/vol").open("r+b").close()
        wait_for(partial(closed, export), "closed")
        export.remove()
    assert state() == before


SCENES: dict[str, Callable[[Path], None]] = {
    scene.__name__: scene
    for scene in (a_file_system, any_bytes, errors, readonly, openers, the_end, stale, fifty_rounds)
}

if __name__ == "__main__":
    SCENES[sys.argv[1]](Path(sys.argv[2]))
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert not left, left
    print("well")
