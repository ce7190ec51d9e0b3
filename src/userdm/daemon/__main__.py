"""python -m userdm.daemon [--foreground | --clear]: start this user's daemon, and return when it answers.

--foreground: be the daemon. --clear: no daemon may run; clear away what a dead one left.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from userdm.abi import frames, runtime
from userdm.daemon.folders import Lock, check_namespace, choose_mapper_dir, listen, make_runtime_dir
from userdm.daemon.log import last_lines, open_log

START_SECONDS = 60.0
PING_SECONDS = 3.0

log = logging.getLogger("userdm.daemon")


def answers(runtime_dir: Path) -> bool:
    """Whether a daemon says hello; ETIMEDOUT when there is one and it does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PING_SECONDS)
        try:
            frames.connect(sock, str(runtime_dir / runtime.CONTROL))
            frames.receive_greeting(sock)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, f"the daemon of {runtime_dir} does not answer") from None
        except OSError:
            return False
    return True


def take_lock(runtime_dir: Path) -> Lock | None:
    """The runtime folder's lock; None when another daemon has it and answers."""
    lock = Lock(runtime_dir)
    end = time.monotonic() + START_SECONDS
    while not lock.take():
        # it may be starting, or about to end
        if not free_the_dead(runtime_dir) and answers(runtime_dir):
            lock.close()
            return None
        if time.monotonic() > end:
            raise OSError(
                errno.EBUSY, f"another process has held {runtime_dir}/{runtime.LOCK} for {START_SECONDS:.0f} s"
            )
        time.sleep(0.05)
    return lock


def free_the_dead(runtime_dir: Path) -> bool:
    """Whether the daemon is dead, although its lock is still held: by a worker with a thread in the kernel that waits
    for an answer on one of its own devices. Nobody will give it, so it gets an error."""
    try:
        pid = int((runtime_dir / runtime.PID).read_text())
        if b"userdm.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return False
    except ValueError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH) or not (runtime_dir / runtime.PID).exists():
            return False
    from userdm.export import mount
    from userdm.export.records import Records

    for record in Records(runtime_dir).read():
        with contextlib.suppress(OSError):  # ended by itself
            mount.abort(record.connection)
    return True


def serve(runtime_dir: Path, lock: Lock, tell: Callable[[str], None], *, foreground: bool) -> int:
    """Be the daemon, until its end; the exit code. ``tell`` gets "ready" when the socket answers, or why it does not.

    As root we are the keeper, and what serves is a child. Without root a mount ends with who served it first, so there
    is nothing that a keeper could keep.
    """
    from userdm.daemon.harden import harden

    harden()
    os.umask(0o022)
    listener = listen(runtime_dir)
    if os.geteuid() == 0:
        from userdm.daemon.keeper import Keeper

        os.set_inheritable(lock.fileno(), True)
        return Keeper(runtime_dir, lock.fileno(), listener, foreground=foreground).run(tell)
    from userdm.daemon.service import Service

    open_log(runtime_dir, foreground=foreground)
    for name in (runtime.PID, runtime.WORKER):
        (runtime_dir / name).write_text(f"{os.getpid()}\n")
    service = Service(runtime_dir, choose_mapper_dir(runtime_dir), listener)
    service.start()
    tell("ready")
    service.run()
    return 0


def main(arguments: list[str]) -> int:
    unknown = [argument for argument in arguments if argument not in ("--foreground", "--clear")]
    if unknown or len(arguments) > 1:
        print(f"userdm.daemon: {' '.join(arguments)}: must be --foreground, --clear, or nothing", file=sys.stderr)
        return 2
    try:
        check_namespace()
        runtime_dir = make_runtime_dir()
        if arguments == ["--clear"]:
            return clear(runtime_dir)
        if arguments == ["--foreground"]:
            lock = take_lock(runtime_dir)
            if lock is None:
                raise OSError(errno.EBUSY, f"a daemon runs for {runtime_dir}")
            code = serve(runtime_dir, lock, tell_terminal, foreground=True)
            # a thread that is held up in a storage must not keep us
            logging.shutdown()
            os._exit(code)
        return start_in_background(runtime_dir)
    except OSError as error:
        print(f"userdm.daemon: {describe(error)}", file=sys.stderr)
        return 1


def describe(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def tell_terminal(text: str) -> None:
    if text != "ready":
        print(f"userdm.daemon: {text}", file=sys.stderr, flush=True)


def clear(runtime_dir: Path) -> int:
    """Clear what a dead daemon left; the next one brings its devices back."""
    from userdm.export.exporter import DeviceExporter

    lock = Lock(runtime_dir)
    while not lock.take():
        if not free_the_dead(runtime_dir):
            raise OSError(errno.EBUSY, f"a daemon runs for {runtime_dir}")
        time.sleep(0.05)
    with contextlib.closing(lock):
        exporter = DeviceExporter(runtime_dir, choose_mapper_dir(runtime_dir), as_root=os.geteuid() == 0)
        for line in exporter.clear_stale():
            print(line)
        for name in (runtime.CONTROL, runtime.PID, runtime.WORKER):
            (runtime_dir / name).unlink(missing_ok=True)
    return 0


def start_in_background(runtime_dir: Path) -> int:
    """Fork the daemon off, and wait until it answers; what it has to say if it does not goes to stderr."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        become_daemon(runtime_dir, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    if said == b"ready":
        return 0
    print(f"userdm.daemon: {said.decode(errors='replace') or 'the daemon died while it started'}", file=sys.stderr)
    for line in [] if said else last_lines(runtime_dir, 10):
        print(f"  {line}", file=sys.stderr)
    return 1


class Starter:
    """Whoever started us, at the other end of a pipe: told once."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, text: str) -> None:
        if self._pipe >= 0:
            with contextlib.suppress(OSError):  # he has given up
                os.write(self._pipe, text.encode(errors="replace"))
            os.close(self._pipe)
            self._pipe = -1


def become_daemon(runtime_dir: Path, ready: int) -> None:
    """In the child: leave the session, the folder and every descriptor of whoever started us. Never returns."""
    status = 1
    starter = Starter(ready)
    try:
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number != ready:
                with contextlib.suppress(OSError):  # the one that listed them is gone by now
                    os.close(number)
        lock = take_lock(runtime_dir)
        if lock is None:
            starter.tell("ready")
            status = 0
        else:
            status = serve(runtime_dir, lock, starter.tell, foreground=False)
    except BaseException as error:
        if isinstance(error, OSError):
            starter.tell(describe(error))
        open_log(runtime_dir, foreground=False)
        log.exception("the daemon ends")
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
