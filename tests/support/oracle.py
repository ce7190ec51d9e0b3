"""The Linux kernel's own device mapper, asked by a test: see tests/oracle/kernel-dm."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

KERNEL_DM = Path(__file__).resolve().parent.parent / "oracle" / "kernel-dm"


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
