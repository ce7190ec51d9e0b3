"""Small backends that fail, park or stall when they are told to, and a few words for tests; pytest is not needed."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from userdm.dataplane import Parked
from userdm.dataplane.passthrough import Passthrough
from userdm.segment import Gate
from userdm.storage import MemoryStorage

MiB = 1 << 20


class Awkward:
    """A backend in memory, and its own worker. What it was asked for stands in ``calls``."""

    def __init__(self, size: int = 32 * MiB, granularity: int = 65536) -> None:
        self.storage = MemoryStorage(size)
        self.size = size
        self.readonly = False
        self.granularity = granularity
        self.discards = True
        self.block_size = 512
        self.calls: list[tuple[str, int, int]] = []
        self.gate: Gate | None = None
        self.stall: threading.Event | None = None
        self.errors: dict[str, Callable[[int], Exception | None]] = {}

    def worker(self) -> Awkward:
        return self

    def _asked(self, what: str, offset: int, length: int) -> None:
        self.calls.append((what, offset, length))
        if self.stall is not None:
            self.stall.wait(60)
        if self.gate is not None:
            raise Parked(self.gate)
        if what in self.errors and (error := self.errors[what](offset)) is not None:
            raise error

    def read(self, offset: int, view: memoryview) -> None:
        self._asked("read", offset, len(view))
        self.storage.read(offset, view)

    def write(self, offset: int, view: memoryview) -> None:
        self._asked("write", offset, len(view))
        self.storage.write(offset, view)

    def discard(self, offset: int, length: int) -> None:
        self._asked("discard", offset, length)
        self.storage.discard(offset, length)

    def zero(self, offset: int, length: int) -> None:
        self._asked("zero", offset, length)
        self.storage.zero(offset, length)

    def flush(self) -> None:
        self._asked("flush", 0, 0)

    def close_gate(self) -> Gate:
        self.gate = Gate()
        return self.gate

    def open_gate(self) -> None:
        gate, self.gate = self.gate, None
        assert gate is not None
        gate.open()


def memory(size: int = 32 * MiB) -> Passthrough:
    return Passthrough(MemoryStorage(size), granularity=65536)


def failing_at(bad: range, number: int) -> Callable[[int], Exception | None]:
    return lambda offset: OSError(number, os.strerror(number)) if offset in bad else None


def sh(*command: str | Path, check: bool = True, timeout: float = 60) -> str:
    """Run a program; its output. A failure shows what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.01)


def free_minor() -> int:
    """A number that no other test run beside this one picks, nor gets by chance."""
    return 100_000 + os.getpid() * 4 % 900_000


def disk(minor: int) -> int:
    """Tells a loop device from another one that has the same number later; 0 when there is none."""
    try:
        return Path(f"/sys/block/loop{minor}").stat().st_ino
    except FileNotFoundError:
        return 0


@contextmanager
def raises(number: int) -> Iterator[None]:
    """OSError with this errno, and no other."""
    try:
        yield
    except OSError as error:
        assert error.errno == number, f"{error!r} instead of {os.strerror(number)}"
    else:
        raise AssertionError(f"no error instead of {os.strerror(number)}")
