"""Cached mode: a thin volume that the kernel may cache, against a plain loop device, round after round."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from sides import Device, cached_thin, plain_loop

WORKS = {
    "random-read": "cached: random read, 4 KiB, queue depth 16",
    "random-write": "cached: random write, 4 KiB, queue depth 16",
}
AGAINST = "plain loop device"
GOAL = 0.8


def ratios(
    folder: Path,
    rounds: int,
    measure: Callable[[str, Device], float],
    fill: Callable[[Device], None],
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    """By the words of the work: in each round, how many times as fast we were."""
    found: dict[str, list[float]] = {words: [] for words in WORKS.values()}
    with ExitStack() as stack:
        devices = []
        for side in (cached_thin, plain_loop):
            (place := folder / side.__name__).mkdir(parents=True)
            say(f"setting up: {side.__name__}")
            devices.append(stack.enter_context(side(place)))
            fill(devices[-1])
        for job, words in WORKS.items():
            for number in range(rounds):
                rates = [0.0, 0.0]
                for at in (0, 1) if number % 2 else (1, 0):
                    say(f"{words}: round {number + 1} of {rounds}")
                    rates[at] = measure(job, devices[at])
                found[words].append(rates[0] / rates[1])
    return found
