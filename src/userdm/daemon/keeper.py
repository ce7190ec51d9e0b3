"""The keeper: it holds what must outlive the worker, starts it, and starts the next one when it dies. Contract 5.

Small on purpose, single-threaded, and it touches no device: what it holds are descriptors under keys, the listening
control socket and the runtime folder's lock. Everything that can go wrong with storage goes wrong in the worker.

A worker is a fresh program, so that it runs the code that is installed when it starts. It says "loaded" when it has
imported everything, and then waits for its turn: "go", which comes when there is no other worker. Then it asks for what
is kept, one thing after the other, brings the devices back, and says "ready". From there on it puts and drops.

A worker that is killed may not be able to end: one of its threads sits in the kernel and waits for an answer on a
device that the worker itself served, and that only the next one can give. So with "loaded" comes a descriptor of a
thread that does nothing at all; when that is gone, the next worker starts, and is told which processes before it are
not quite gone yet (`userdm.daemon.predecessors`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from userdm.abi import runtime
from userdm.daemon.folders import listen
from userdm.daemon.harden import set_oom_score
from userdm.daemon.packets import Message, pair, readable, receive, send

LONGEST_PAUSE = 5.0
"""Seconds between two workers that die before they are ready."""
LOOK_SECONDS = 0.5
"""How long a dead first thread may go unnoticed where the kernel does not tell."""
END_SECONDS = 0.2
"""How long the rest of a worker may take to end after its idle thread, before it counts as held up."""
LAST_WORDS = 4000


class Worker:
    """A process that was started, until it is reaped."""

    def __init__(self, pid: int, sock: socket.socket, stderr: int, asker: socket.socket | None) -> None:
        self.pid = pid
        self.sock = sock
        self.asker = asker
        """Who waits for it to be loaded: the worker that it is to replace."""
        self.loaded = False
        self.ready = False
        self.leaving = False
        self.failure: str | None = None
        self.idle_thread = -1
        """A pidfd; there from "loaded" on, where the kernel has such for threads."""
        self._stderr = stderr

    def last_words(self) -> str:
        """Why it did not start, as far as it could say so."""
        if self.failure is not None:
            return self.failure
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, LAST_WORDS, max(0, size - LAST_WORDS)).decode(errors="replace")
        return text.strip() or "the worker died while it started"

    def close(self) -> None:
        self.sock.close()
        for fd in (self.idle_thread, self._stderr):
            if fd >= 0:
                os.close(fd)
        if self.asker is not None:
            self.asker.close()


class Keeper:
    """``lock`` is the descriptor that holds the runtime folder's lock; each worker has it too, so that nobody else's
    daemon starts before the last of them is gone."""

    def __init__(self, runtime_dir: Path, lock: int, listener: socket.socket, *, foreground: bool) -> None:
        self._runtime_dir = runtime_dir
        self._lock = lock
        self._listener = listener
        self._foreground = foreground
        self._kept: dict[str, tuple[list[int], str]] = {}
        self._current: Worker | None = None
        self._next: Worker | None = None
        self._held_up: list[Worker] = []
        """Dead, and not gone."""
        self._dying_until: float | None = None
        self._replaced = 0
        self._pause = 0.0
        self._start_at: float | None = 0.0
        self._terminate = False
        self._started = False
        self._over: str | None = None
        """Why this is the end: empty after a bye."""
        self._oom_score = set_oom_score(-1000)
        """The worker's: that may be killed."""
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        (runtime_dir / runtime.PID).write_text(f"{os.getpid()}\n")

    def run(self, tell: Callable[[str], None]) -> int:
        """Keep, until a worker says bye: 0; or until the first one fails: 1. ``tell`` gets "ready", or why not."""
        signal.set_wakeup_fd(self._wake_write)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._poll.register(self._wake_read, select.POLLIN)
        while self._over is None or self._current is not None:
            self._start_if_due()
            for fd, _ in self._poll.poll(self._timeout()):
                self._woken(fd)
            self._reap()
            self._look_at_first_thread()
            if not self._started and self._current is not None and self._current.ready:
                self._started = True
                tell("ready")
        if not self._started:
            tell(self._over)
        for name in (runtime.CONTROL, runtime.PID, runtime.WORKER):
            (self._runtime_dir / name).unlink(missing_ok=True)
        return 1 if self._over else 0

    def _woken(self, fd: int) -> None:
        if fd == self._wake_read:
            self._signalled(os.read(self._wake_read, 256))
            return
        for worker in filter(None, (self._current, self._next)):
            if fd == worker.sock.fileno():
                self._hear(worker)
            elif fd == worker.idle_thread:
                self._dies(worker)

    def _look_at_first_thread(self) -> None:
        """Since 6.15 the kernel tells of the first thread's end only when all others have ended, too: then a worker
        with a thread that is held up would be waited for by its successor, for whom that thread waits."""
        worker = self._current
        if worker is None or self._dying_until is not None:
            return
        with contextlib.suppress(OSError), open(f"/proc/{worker.pid}/stat", encoding="utf-8", errors="replace") as file:
            if file.read().rpartition(")")[2].split()[0] in "ZX":
                self._dies(worker)

    def _timeout(self) -> float | None:
        moments = [moment for moment in (self._start_at, self._dying_until) if moment is not None]
        if self._current is not None and self._dying_until is None:
            moments.append(time.monotonic() + LOOK_SECONDS)
        return max(0.0, (min(moments) - time.monotonic()) * 1000 + 1) if moments else None

    # ---- workers come and go ------------------------------------------------------------------------------------

    def _start_if_due(self) -> None:
        now = time.monotonic()
        if self._dying_until is not None and now >= self._dying_until and self._current is not None:
            self._say(f"worker {self._current.pid} is dead and held up in the kernel, the next one takes over")
            self._bury(self._current, gone=False)
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            if self._next is None:
                self._try_to_start(now)

    def _try_to_start(self, now: float) -> None:
        try:
            self._next = self._spawn(None)
        except OSError as error:
            # it is just being upgraded, or there is no memory: that will be over, and what we hold would be lost
            self._say(f"no worker can be started: {error}")
            if not self._started:
                self._over = f"no worker can be started: {error}"
            self._pause = min(LONGEST_PAUSE, self._pause * 2 + 0.1)
            self._start_at = now + self._pause

    def _spawn(self, asker: socket.socket | None) -> Worker:
        ours, its = pair()
        words = -1
        with its:
            try:
                words = os.memfd_create("stderr", os.MFD_CLOEXEC)
                os.set_inheritable(its.fileno(), True)
                command = [sys.executable, "-m", "userdm.daemon.worker"]
                command += [str(its.fileno()), str(self._lock), str(os.getpid())]
                actions = [(os.POSIX_SPAWN_DUP2, words, 2)]
                pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
            except OSError:
                ours.close()
                if words >= 0:
                    os.close(words)
                raise
        worker = Worker(pid, ours, words, asker)
        self._poll.register(worker.sock, select.POLLIN)
        return worker

    def _dies(self, worker: Worker) -> None:
        """The idle thread is gone. The others follow at once, unless one is held up."""
        self._poll.unregister(worker.idle_thread)
        if worker is self._current and self._dying_until is None:
            self._dying_until = time.monotonic() + END_SECONDS

    def _reap(self) -> None:
        for worker in [self._current, self._next, *self._held_up]:
            if worker is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid == 0:
                continue
            if worker in self._held_up:
                self._held_up.remove(worker)
                worker.close()
                continue
            code = os.waitstatus_to_exitcode(status)
            how = "" if code == 0 else f" by signal {-code}" if code < 0 else f" with exit code {code}"
            if not worker.leaving and self._over is None:
                self._say(f"worker {worker.pid} ended{how}")
            self._bury(worker, gone=True)

    def _bury(self, worker: Worker, *, gone: bool) -> None:
        while readable(worker.sock) and self._hear(worker):
            pass  # what it said before it died
        for fd in (worker.sock.fileno(), worker.idle_thread):
            with contextlib.suppress(KeyError, ValueError):
                self._poll.unregister(fd)
        if worker is self._next:
            self._next = None
            if worker.asker is not None:
                self._answer(worker, worker.last_words())
        else:
            self._current, self._dying_until = None, None
            (self._runtime_dir / runtime.WORKER).unlink(missing_ok=True)
        if self._over is None and self._current is None:
            self._succeed(worker)
        if gone:
            worker.close()
        else:
            self._held_up.append(worker)

    def _succeed(self, worker: Worker) -> None:
        """Nobody serves: somebody must, unless it was the first that failed."""
        if not worker.ready and not worker.leaving:
            if not self._started:
                self._over = worker.last_words()
                return
            self._say(f"worker {worker.pid} did not start: {worker.last_words()}")
        if self._next is not None:
            self._let_go_on()
            return
        self._pause = 0.0 if worker.ready else min(LONGEST_PAUSE, self._pause * 2 + 0.1)
        self._start_at = time.monotonic() + self._pause

    def _let_go_on(self) -> None:
        """The loaded worker's turn, when there is no other."""
        worker = self._next
        if worker is None or not worker.loaded or self._current is not None:
            return
        self._next, self._current = None, worker
        if not (self._runtime_dir / runtime.CONTROL).exists():
            # the one before died while it was ending, and had taken the name away by then
            try:
                fresh = listen(self._runtime_dir)
            except OSError as error:
                # the devices matter more than that somebody finds us
                self._say(f"there is no control socket: {error.strerror}")
            else:
                self._listener.close()
                self._listener = fresh
        before = [each.pid for each in self._held_up]
        go: Message = {"foreground": self._foreground, "before": before, "replaced": self._replaced}
        go["oom_score"] = self._oom_score
        self._replaced += 1
        with contextlib.suppress(OSError):  # it died: that is seen elsewhere
            send(worker.sock, go, [self._listener.fileno(), 2])

    # ---- what a worker says -------------------------------------------------------------------------------------

    def _hear(self, worker: Worker) -> bool:
        """One packet; False when there are no more."""
        received = receive(worker.sock)
        if received is None:
            with contextlib.suppress(KeyError):
                self._poll.unregister(worker.sock)
            return False
        message, fds = received
        for verb, value in message.items():
            if verb in self._VERBS:
                self._VERBS[verb](self, worker, value, message, fds)
        return True

    def _answer_to(self, worker: Worker, message: Message, fds: list[int] | None = None) -> None:
        with contextlib.suppress(OSError):
            send(worker.sock, message, fds or [])

    def _put(self, worker: Worker, key: str, message: Message, fds: list[int]) -> None:
        old, _ = self._kept.get(key, ([], ""))
        self._kept[key] = (fds, message["note"])
        self._answer_to(worker, {})
        _close(old)

    def _drop(self, worker: Worker, key: str, message: Message, fds: list[int]) -> None:
        old, _ = self._kept.pop(key, ([], ""))
        # before the answer: the worker closes its own after that, and is the one to wait if something is written then
        _close(old)
        self._answer_to(worker, {})

    def _give(self, worker: Worker, index: int, message: Message, fds: list[int]) -> None:
        """The index-th thing that is kept."""
        keys = list(self._kept)
        if index >= len(keys):
            self._answer_to(worker, {"end": True})
            return
        kept, note = self._kept[keys[index]]
        self._answer_to(worker, {"key": keys[index], "note": note}, kept)

    def _is_loaded(self, worker: Worker, value: object, message: Message, fds: list[int]) -> None:
        worker.loaded = True
        if fds:
            worker.idle_thread = fds[0]
            self._poll.register(fds[0], select.POLLIN)
        if worker.asker is not None:
            self._answer(worker, "")
        self._let_go_on()

    def _is_ready(self, worker: Worker, value: object, message: Message, fds: list[int]) -> None:
        worker.ready = True
        self._pause = 0.0
        path = self._runtime_dir / runtime.WORKER
        fresh = path.with_suffix(".new")
        with contextlib.suppress(OSError):  # no room in the folder: it serves all the same
            fresh.write_text(f"{worker.pid}\n")
            fresh.rename(path)
        if self._terminate:
            self._terminate = False
            os.kill(worker.pid, signal.SIGTERM)

    def _has_failed(self, worker: Worker, text: str, message: Message, fds: list[int]) -> None:
        worker.failure = text

    def _says_bye(self, worker: Worker, value: object, message: Message, fds: list[int]) -> None:
        self._over = ""
        self._answer_to(worker, {})

    def _upgrade(self, worker: Worker, value: object, message: Message, fds: list[int]) -> None:
        """Start one beside it; whoever asked is told on a socket of his own when that is loaded, or why not."""
        asker = socket.socket(fileno=fds[0])
        self._answer_to(worker, {})
        if self._next is not None:
            with asker, contextlib.suppress(OSError):
                send(asker, {"failed": "another upgrade is under way"})
            return
        try:
            self._next = self._spawn(asker)
        except OSError as error:
            with asker, contextlib.suppress(OSError):
                send(asker, {"failed": f"no worker can be started: {error}"})

    def _leaves(self, worker: Worker, value: object, message: Message, fds: list[int]) -> None:
        worker.leaving = True
        self._answer_to(worker, {})

    _VERBS: dict[str, Callable[..., None]] = {  # noqa: RUF012
        "put": _put,
        "drop": _drop,
        "give": _give,
        "loaded": _is_loaded,
        "ready": _is_ready,
        "failed": _has_failed,
        "bye": _says_bye,
        "upgrade": _upgrade,
        "leave": _leaves,
    }

    @staticmethod
    def _answer(worker: Worker, failure: str) -> None:
        """Tell who waits for the worker to be loaded."""
        asker, worker.asker = worker.asker, None
        assert asker is not None
        with asker, contextlib.suppress(OSError):
            send(asker, {"failed": failure})

    # ---- the rest -----------------------------------------------------------------------------------------------

    def _signalled(self, numbers: bytes) -> None:
        for number in set(numbers) - {signal.SIGCHLD}:
            if self._current is not None and self._current.ready:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._current.pid, number)
            elif number != signal.SIGHUP:
                self._terminate = True

    def _say(self, text: str) -> None:
        """One line of the log, which is the worker's: the file may be another one by the next time."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 WARNING userdm.daemon.keeper: {text}\n"
        with contextlib.suppress(OSError), open(self._runtime_dir / runtime.LOG, "a", encoding="utf-8") as log:
            log.write(line)
        if self._foreground:
            sys.stderr.write(line)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
