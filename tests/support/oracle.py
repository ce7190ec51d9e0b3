"""The Linux kernel's own device mapper, asked by a test: see tests/oracle/kernel-dm."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

KERNEL_DM = Path(__file__).resolve().parent.parent / "oracle" / "kernel-dm"

Said = dict[str, list[str]]
"""What a script printed as "KEY: line": key -> lines."""


def run(script: str, disks: Sequence[Path], *, seconds: int = 600) -> str:
    """Boot the kernel, run the script there with the disks as /dev/vdb, /dev/vdc, ...; what it printed.

    Skips the test, saying what is missing, where no kernel can be booted; fails it when the script fails.
    """
    missing = subprocess.run([KERNEL_DM, "missing"], capture_output=True, text=True)
    if missing.returncode == 0:
        pytest.skip(f"oracle: {missing.stdout.strip()}")
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            [KERNEL_DM, "run", file.name, *disks],
            capture_output=True,
            text=True,
            env=os.environ | {"KERNEL_DM_TIMEOUT": str(seconds)},
        )
    if done.returncode != 0:
        pytest.fail(f"oracle: status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def said(script: str, disks: Sequence[Path]) -> Said:
    """As `run`."""
    found: Said = defaultdict(list)
    for line in run(script, disks).splitlines():
        key, colon, rest = line.partition(": ")
        if colon:
            found[key].append(rest)
    return found


def systemd(path: Path) -> Path:
    """A copy of the disk with systemd on it, at this path: disks are opened for writing."""
    where = subprocess.run([KERNEL_DM, "systemd"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(where).exists():
        pytest.skip(f"oracle: no {where}: tests/oracle/kernel-dm setup makes it")
    shutil.copy(where, path)
    return path
