"""The benchmarks: one run, every side in turn, ratios.

All sides are set up at the start, a GiB is written to each, and each work is then given to each side, round after
round, in changing order. A ratio is that of two neighbours in one round. The files below all sides lie in memory
(/dev/shm) where there is room for them, so that it is our code which is measured and no disk; otherwise on a disk, in
the page cache and synced before each measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cached
import snapshots
import startup
from sides import HERE, SIDES, Device, output

OURS = "userdm thin"
WORKS = {
    "random-read": "random read, 4 KiB, queue depth 16",
    "random-write": "random write, 4 KiB, queue depth 16",
    "sequential-read": "sequential read, 1 MiB, queue depth 4",
    "sequential-write": "sequential write, 1 MiB, queue depth 4",
}
GOALS: dict[str, float] = {"qemu-storage-daemon, qcow2": 0.5, "bare passthrough": 0.8}
MEMORY = "/dev/shm"
MEMORY_NEEDED = 6 << 30
SNAPSHOT = "snapshot of 160,000 mapped blocks"
SNAPSHOT_GOAL = 0.83
"""Within 20 % of the time."""


@dataclass
class Line:
    """One line of the result: a work, against whom, and in each round how many times as fast we were."""

    work: str
    against: str
    goal: float | None
    ratios: list[float]

    @property
    def spread(self) -> dict[str, float]:
        low, high = min(self.ratios), max(self.ratios)
        return {"min": low, "median": statistics.median(self.ratios), "max": high}

    def row(self) -> list[str]:
        goal = "" if self.goal is None else f"{self.goal:.2f}"
        missed = self.goal is not None and self.spread["median"] < self.goal
        return [self.work, self.against, goal, *(f"{ratio:.2f}" for ratio in self.spread.values()), "*" * missed]

    def record(self) -> dict[str, Any]:
        ratio = {name: round(value, 3) for name, value in self.spread.items()}
        return {"work": self.work, "against": self.against, "goal": self.goal, "ratio": ratio}


def place() -> str | None:
    """The folder to work in: memory if it has room, None for the usual one for temporary files."""
    with suppress(OSError):
        if shutil.disk_usage(MEMORY).free > MEMORY_NEEDED:
            return MEMORY
    return None


def fio(job: str, device: Device, seconds: int) -> float:
    """Bytes a second."""
    warm(device)
    env = {"DEVICE": device.path, "SECONDS": str(seconds)}
    result = json.loads(output("fio", "--output-format=json", HERE / f"{job}.fio", env=env))["jobs"][0]
    if result["error"]:
        raise RuntimeError(f"fio {job} on {device.path}: error {result['error']}")
    return float(result["write" if "write" in job else "read"]["bw_bytes"])


def warm(device: Device) -> None:
    for path in device.files:
        with open(path, "rb") as file:
            # this device's alone: a sync(2) of everything would wait for whatever else is mounted, or suspended
            os.fsync(file.fileno())
            # no holes: a sparse file has nothing there to bring in
            at, end = 0, os.fstat(file.fileno()).st_size
            while at < end:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                stop = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                while at < stop and (piece := os.pread(file.fileno(), min(stop - at, 4 << 20), at)):
                    at += len(piece)


def fill(device: Device) -> None:
    command = ["fio", "--name=fill", f"--filename={device.path}", "--rw=write", "--bs=1m", "--size=1g", "--direct=1"]
    subprocess.run([*command, "--end_fsync=1", "--output=/dev/null"], check=True)


def measure(devices: dict[str, Device], rounds: int, seconds: int, say: Any) -> tuple[list[Line], list[str]]:
    lines = []
    rates = []
    others = [name for name in devices if name != OURS]
    for job, work in WORKS.items():
        measured: dict[str, list[float]] = {name: [] for name in devices}
        for number in range(rounds):
            order = list(devices)
            order = order[number % len(order) :] + order[: number % len(order)]
            for name in order:
                say(f"{work}: round {number + 1} of {rounds}, {name}")
                measured[name].append(fio(job, devices[name], seconds))
        for other in others:
            ratios = [ours / theirs for ours, theirs in zip(measured[OURS], measured[other], strict=True)]
            lines.append(Line(work, other, GOALS.get(other), ratios))
        rates += [f"{work}, {name}: {rate(job, statistics.median(measured[name]))}" for name in devices]
    return lines, rates


def rate(job: str, bytes_a_second: float) -> str:
    if job.startswith("random"):
        return f"{bytes_a_second / 4096:,.0f} a second"
    return f"{bytes_a_second / 2**20:,.0f} MiB/s"


def table(lines: list[Line]) -> str:
    rows = [["work", "against", "goal", "min", "median", "max", ""], *(line.row() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    texts = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        texts.append("  ".join(left + right).rstrip())
    return "\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench", description="userdm against its peers, as ratios")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    parser.add_argument("--seconds", type=int, default=4, help="length of each measurement (default 4)")
    parser.add_argument("--json", metavar="FILE", help="write the ratios there, too")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds: must be 1 or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}"[: shutil.get_terminal_size().columns + 4], end="", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="userdm-bench.", dir=place())))
        devices = {}
        for number, (name, side) in enumerate(SIDES.items()):
            (folder := work / str(number)).mkdir()
            say(f"setting up: {name}")
            devices[name] = stack.enter_context(side(folder))
            fill(devices[name])
        lines, rates = measure(devices, options.rounds, options.seconds, say)
        found = cached.ratios(
            work / "cached", options.rounds, lambda job, device: fio(job, device, options.seconds), fill, say
        )
        lines += [Line(words, cached.AGAINST, cached.GOAL, ratios) for words, ratios in found.items()]
        (folder := work / "snapshots").mkdir()
        ratios = []
        for number in range(options.rounds):
            say(f"snapshots: round {number + 1} of {options.rounds}")
            ratios.append(snapshots.ratio(folder))
        lines.append(Line(SNAPSHOT, "of an empty volume", SNAPSHOT_GOAL, ratios))
        (folder := work / "startup").mkdir()
        say("starting verbs")
        found = startup.ratios(folder, options.rounds)
        lines += [Line(f"userdm {name}", "python3 -c pass", startup.GOAL, ratios) for name, ratios in found.items()]
    say("")
    print(f"How many times as fast as the other, files on {work.parent}; * misses its goal.\n")
    print(table(lines))
    print("\nmedian rates in this run:\n" + "\n".join(f"  {text}" for text in rates))
    if options.json:
        Path(options.json).write_text(json.dumps([line.record() for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
