"""A daemon of a test's own: real processes, folders of its own, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from support.check import check_file
from userdm.api.control import Control
from userdm.api.errors import DaemonError
from userdm.api.start import lock_holder, wait_unlocked
from userdm.export import mountinfo

MAGIC_AT = 32
MAGIC = (27022010).to_bytes(8, "little")
"""struct thin_disk_superblock of dm-thin-metadata.c."""

SECONDS = 60.0
"""No command of a test takes longer; one that does is killed and fails."""


def missing() -> str | None:
    """What a daemon needs and this machine lacks."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse, readable and writable"
    if os.geteuid() == 0:
        if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
            return "/dev/loop-control"
    elif shutil.which("fusermount3") is None:
        return "fusermount3 (package fuse3)"
    return None


def eventually(what: Callable[[], bool]) -> None:
    """Wait until it is so, for as long as a command of a test may take."""
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.02)


class Daemon:
    """``run`` and ``nodes`` are its runtime and its mapper folder; it starts on first use."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.run = base / "run"
        self.nodes = base / "nodes"
        self.env = {
            **os.environ,
            "USERDM_RUNTIME_DIR": str(self.run),
            "USERDM_MAPPER_DIR": str(self.nodes),
            "LC_ALL": "C.UTF-8",
            # compiled once, and not beside the sources
            "PYTHONPYCACHEPREFIX": str(base / "pyc"),
        }
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self._foreground: subprocess.Popen[bytes] | None = None

    @property
    def control(self) -> Control:
        return Control(str(self.run))

    # ---- processes --------------------------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "userdm", *words]

    def userdm(
        self, *words: str, code: int | None = 0, stdin: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """One call of the command line, in /. ``code`` is the exit code that it must have, None for any."""
        done = subprocess.run(
            self.command(*words),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd="/",
            env={**self.env, **more},
            check=False,
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(self, *, pass_fds: Sequence[int] = ()) -> int:
        """Start it as the test's own child, with these descriptors; returns its pid when it answers."""
        self._foreground = subprocess.Popen(
            [sys.executable, "-m", "userdm.daemon", "--foreground"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=self.env,
            pass_fds=pass_fds,
        )
        self.wait_until_it_answers()
        return self._foreground.pid

    def wait_until_it_answers(self) -> None:
        end = time.monotonic() + SECONDS
        while True:
            try:
                self.control.ping()
                return
            except DaemonError:
                if time.monotonic() > end or (self._foreground is not None and self._foreground.poll() is not None):
                    raise AssertionError(f"the daemon does not start:\n{self.log()}") from None
            time.sleep(0.02)

    @property
    def worker_pid(self) -> int:
        """The process that serves; without root the daemon itself. Waits while there is none."""
        end = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(FileNotFoundError):
                return int((self.run / "worker").read_text())
            assert time.monotonic() < end, f"no worker serves:\n{self.log()}"
            time.sleep(0.02)

    def kill_worker(self) -> int:
        """kill -9 of the process that serves, as a crash would; its pid. Another one takes over."""
        while True:
            pid = self.worker_pid
            with contextlib.suppress(ProcessLookupError):  # dead already, and the keeper has not yet said so
                os.kill(pid, signal.SIGKILL)
                return pid
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9 of everything, as a crash would, and wait for its end."""
        pid = lock_holder(str(self.run))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.wait_for_end(pid)
        assert wait_unlocked(str(self.run), SECONDS), "the worker does not end"

    def wait_for_end(self, pid: int) -> None:
        if self._foreground is not None and self._foreground.pid == pid:
            self._foreground.wait(SECONDS)
            return
        end = time.monotonic() + SECONDS
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < end, f"process {pid} does not end"
            time.sleep(0.02)

    def log(self) -> str:
        path = self.run / "log"
        return path.read_text(errors="replace") if path.exists() else "(no log)"

    # ---- the end ----------------------------------------------------------------------------------------------

    def take_down(self) -> None:
        """End the daemon in whatever state the test left it; AssertionError when anything of it stays."""
        for mount in reversed(list(mountinfo.parse(os.getpid(), Path("/proc/self/mountinfo").read_bytes()))):
            if Path(mount.point).is_relative_to(self.base) and mount.kind != "fuse.userdm":
                subprocess.run(["umount", "-l", mount.point], check=False)
        with contextlib.suppress(OSError):
            self.control.query("stop", force=True)
        # also what a daemon left that died or hung
        self.userdm("daemon", "stop", "--kill")
        if self._foreground is not None:
            self._foreground.wait(SECONDS)
        left = [str(path) for folder in (self.nodes, self.run / "loop") if folder.exists() for path in folder.iterdir()]
        left += [name for name in ("control", "pid", "worker") if (self.run / name).exists()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        left += [line for line in mounts if str(self.base) in line]
        assert not left, f"left behind: {left}\n{self.log()}"


@contextlib.contextmanager
def running_daemon() -> Iterator[Daemon]:
    """A daemon in a temporary folder, not started yet; taken down at the end."""
    # a short path, in which a socket's name fits
    base = Path(tempfile.mkdtemp(prefix="userdm-test-"))
    daemon = Daemon(base)
    try:
        yield daemon
    finally:
        daemon.take_down()
        for metadata in pools_in(base):
            check_file(metadata)
        shutil.rmtree(base)


def pools_in(base: Path) -> list[Path]:
    """The files below the folder that hold a pool's metadata, by the magic number in its superblock."""
    found = []
    for path in base.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                file.seek(MAGIC_AT)
                if file.read(8) == MAGIC:
                    found.append(path)
    return found
