"""What a verb of the command line costs, beside starting Python for nothing. Scripts call one a thousand times."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PAIRS = 25
VERBS = {"version": ["version"], "table": ["table", "zero"], "info -c": ["info", "-c", "zero"]}
GOAL = 0.5
"""At most twice the time."""


def _seconds(command: list[str], env: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def ratios(folder: Path, rounds: int) -> dict[str, list[float]]:
    """For each verb and round, the median time of ``python3 -c pass`` over that of the verb, taken in turn.

    The installed program, against a daemon that runs and has one device.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {
        "USERDM_RUNTIME_DIR": str(folder / "run"),
        "USERDM_MAPPER_DIR": str(folder / "mapper"),
        # compiled, as what is installed is, and not beside the sources
        "PYTHONPYCACHEPREFIX": str(folder / "pyc"),
    }
    program = str(Path(sys.executable).with_name("userdm"))
    nothing = [sys.executable, "-c", "pass"]
    found: dict[str, list[float]] = {name: [] for name in VERBS}
    subprocess.run([program, "create", "zero", "--table", "0 8 zero"], env=env, check=True)
    try:
        for _ in range(rounds):
            for name, words in VERBS.items():
                pairs = [(_seconds(nothing, env), _seconds([program, *words], env)) for _ in range(PAIRS)]
                medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
                found[name].append(medians[0] / medians[1])
    finally:
        subprocess.run([program, "remove", "zero"], env=env, check=True)
        subprocess.run([program, "daemon", "stop"], env=env, stdout=subprocess.DEVNULL, check=True)
    return found
