"""The worker dies under clients who make, load, suspend, rename and remove devices: nothing is half there for ever."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time

from support import budget
from support.daemon import SECONDS
from support.stage import Stage
from userdm.api.control import Control

from .conftest import disk

NAMES = "abcd"
CLIENTS = 3


class Client(threading.Thread):
    """Random commands. What is refused, or was not answered, is no matter; anything but an OSError is."""

    def __init__(self, stage: Stage, seed: int, end: threading.Event) -> None:
        super().__init__()
        self._stage = stage
        self._rng = random.Random(seed)
        self._end = end
        self.done = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._end.is_set():
                with contextlib.suppress(OSError):
                    self._one(self._stage.daemon.control, self._rng.choice(NAMES))
                    self.done += 1
        except BaseException as error:
            self.failure = error

    def _one(self, control: Control, name: str) -> None:
        base, rng = self._stage.base, self._rng
        other = rng.choice(NAMES)
        tables = (
            (0, 2048, "linear", f"{base / 'disk'} {2048 * rng.randrange(8)}"),
            (0, 8, "linear", f"{self._stage.node(other)} 0"),
            (0, 131072, "thin-pool", f"{base / 'meta'} {base / 'data'} 128 0"),
        )
        match rng.randrange(9):
            case 0 | 1:
                control.create(name, uuid=rng.choice(("", name * 3)))
            case 2 | 3:
                control.load(name, [rng.choice(tables)])
            case 4:
                control.resume(name)
            case 5:
                control.suspend(name)
            case 6:
                control.remove(name)
            case 7:
                control.rename(name, other)
            case _:
                control.message(name, 0, rng.choice(("create_thin 1", "create_snap 2 1", "delete 2", "delete 1")))


def test_deaths_between_commands(stage: Stage) -> None:
    """At the end everything can be taken away, and the keeper holds no more than at the beginning."""
    for name, mib in (("meta", 4), ("data", 64), ("disk", 8)):
        disk(stage, name, mib)
    daemon = stage.daemon
    keeper = daemon.start()
    before = len(os.listdir(f"/proc/{keeper}/fd"))
    end = threading.Event()
    clients = [Client(stage, seed, end) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    rng = random.Random(0)
    try:
        for _ in range(budget.scaled(6)):
            time.sleep(rng.random())
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon.worker_pid, signal.SIGKILL)
            daemon.wait_until_it_answers()
    finally:
        end.set()
    for client in clients:
        client.join()
        assert client.failure is None
    assert sum(client.done for client in clients)
    control = daemon.control
    limit = time.monotonic() + SECONDS
    while names := [name for name, _ in control.devices()]:
        assert time.monotonic() < limit, f"cannot be taken away: {names}\n{daemon.log()}"
        for name in names:
            with contextlib.suppress(OSError):
                control.clear(name)
            with contextlib.suppress(OSError):
                control.resume(name)
            with contextlib.suppress(OSError):
                control.remove(name)
    assert control.ping() == keeper
    while len(os.listdir(f"/proc/{keeper}/fd")) > before:
        assert time.monotonic() < limit, "the keeper holds more than at the beginning"
        time.sleep(0.05)
    assert os.listdir(daemon.nodes) == os.listdir(daemon.run / "loop") == []
    assert "Traceback" not in daemon.log()
