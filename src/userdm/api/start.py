"""Starting the daemon on first use, and ending one that hangs. Imported only when one of these is needed."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from userdm.abi import runtime
from userdm.api import unit
from userdm.api.errors import DaemonError

KILL_SECONDS = 10.0
SETTLE_SECONDS = 2.0


def _daemon(runtime_dir: str, *arguments: str, in_unit: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the daemon's program. In /, since Python looks for modules in the folder that it is started in."""
    environment = dict(os.environ)
    if "PYTHONPATH" in environment:
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(folder) for folder in folders)  # noqa: PTH100
    if environment.get("USERDM_MAPPER_DIR"):
        environment["USERDM_MAPPER_DIR"] = os.path.abspath(environment["USERDM_MAPPER_DIR"])  # noqa: PTH100
    if runtime_dir != runtime.runtime_dir() or environment.get("USERDM_RUNTIME_DIR"):
        environment["USERDM_RUNTIME_DIR"] = runtime_dir
    command = [sys.executable, "-m", "userdm.daemon", *arguments]
    if in_unit:
        command = unit.command(command, environment, runtime_dir)
    return subprocess.run(
        command,
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def start_daemon(runtime_dir: str) -> None:
    """Returns when the daemon answers; DaemonError with its last words when it does not start."""
    try:
        result = _daemon(runtime_dir, in_unit=unit.wanted())
    except FileNotFoundError:
        raise DaemonError(errno.ENODEV, "the daemon does not start: under systemd it needs systemd-run") from None
    if result.returncode != 0:
        raise DaemonError(errno.ENODEV, f"the daemon does not start: {result.stderr.strip()}")


def _locked(runtime_dir: str) -> int | None:
    """The lock's inode when a daemon holds the runtime folder."""
    try:
        fd = os.open(f"{runtime_dir}/{runtime.LOCK}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def lock_holder(runtime_dir: str) -> int | None:
    """The process that holds the runtime folder's lock and is a daemon; None when nobody holds it.

    EPERM when it is held by something that is no daemon of ours: that must not be killed.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        inode = _locked(runtime_dir)
        if inode is None:
            return None
        path = Path(runtime_dir, runtime.PID)
        text = path.read_text(encoding="ascii", errors="replace").strip() if path.exists() else ""
        pid = int(text) if text.isdigit() else 0
        if pid and inode in _flocks(pid) and _is_daemon(pid):
            return pid
        # one that has just begun has not written its number yet, one that just ends has no command line any more
        if time.monotonic() > end:
            raise DaemonError(errno.EPERM, f"{runtime_dir}/{runtime.LOCK} is held, and not by the {text!r} of {path}")
        time.sleep(0.02)


def _flocks(pid: int) -> set[int]:
    """Inodes that the process holds an flock on: 1: FLOCK ADVISORY WRITE pid major:minor:inode start end."""
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[4] == str(pid):
            found.add(int(words[5].rpartition(":")[2]))
    return found


def _is_daemon(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"userdm.daemon" in words


def wait_end(pid: int, seconds: float) -> bool:
    """Wait for the process to be gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(int(seconds * 1000)))
    finally:
        os.close(fd)


def kill_daemon(runtime_dir: str) -> tuple[int | None, list[str]]:
    """End the daemon of the runtime folder, whatever state it is in, and clear what it leaves behind.

    Returns its pid (None when there was none) and a line for each thing that was cleared. What was written and not
    flushed may be lost, as when a machine loses power; the next daemon brings the devices back.
    """
    pid = lock_holder(runtime_dir)
    if pid is not None:
        fd = os.pidfd_open(pid)
        try:
            # looked at again now that the number cannot become another process's
            if lock_holder(runtime_dir) == pid:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
        if not wait_end(pid, KILL_SECONDS):
            raise DaemonError(errno.EBUSY, f"pid {pid} was killed and is not gone after {KILL_SECONDS:.0f} s")
    result = _daemon(runtime_dir, "--clear")
    if result.returncode != 0:
        raise DaemonError(errno.EBUSY, result.stderr.strip())
    return pid, result.stdout.splitlines()


def wait_unlocked(runtime_dir: str, seconds: float) -> bool:
    """Wait until no daemon holds the runtime folder."""
    end = time.monotonic() + seconds
    while _locked(runtime_dir) is not None:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
