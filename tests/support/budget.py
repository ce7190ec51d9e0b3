"""How much a fuzz target does: a fixed few examples, or with `--all` many that nobody has seen before.

Budgets count examples, never seconds. What goes wrong names its seed, and `--seed` runs that one again.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from hypothesis import settings

FACTOR = 50
"""So many times more with --all."""
WATCHDOG_SECONDS = 120.0
"""For one example, which takes a few hundredths: only what would never end meets it."""
MEMORY = 1 << 30
"""Bytes that an example may map beyond what was mapped before."""

_everything = False
_seed: int | None = None


def add_options(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="minutes instead of seconds for each fuzz target, new examples")
    parser.addoption("--seed", type=int, help="run the fuzz targets with this one seed: a failure named it")


def configure(config: pytest.Config) -> None:
    global _everything, _seed
    _everything, _seed = config.getoption("--all"), config.getoption("--seed")


def examples(count: int) -> settings:
    """For a Hypothesis test of the fuzz targets."""
    if _everything:
        return settings(deadline=None, print_blob=True, max_examples=scaled(count))
    return settings(deadline=None, print_blob=True, max_examples=count, derandomize=True, database=None)


def one_seed() -> bool:
    """Whether one example alone is run: what many of them show together is not to be had."""
    return _seed is not None


def scaled(count: int) -> int:
    return count * FACTOR if _everything else count


def run(count: int, example: Callable[[random.Random], None]) -> None:
    """Call ``example`` so many times, each with a generator of its own, a watchdog and a limit on memory."""
    if _seed is not None:
        seeds: Iterator[int] = iter([_seed])
    elif _everything:
        seeds = (random.SystemRandom().getrandbits(48) for _ in range(scaled(count)))
    else:
        seeds = iter(range(count))
    for seed in seeds:
        with bounded(f"seed {seed}: run it again with --seed {seed}"):
            example(random.Random(seed))


@contextlib.contextmanager
def bounded(what: str) -> Iterator[None]:
    """What runs here ends, and in bounded memory. For the main thread; ``what`` is printed when it does not go well."""

    def bark(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {WATCHDOG_SECONDS:.0f} s: {what}")

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, WATCHDOG_SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY, hard))
    try:
        yield
    except BaseException:
        print(what)
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _mapped() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
