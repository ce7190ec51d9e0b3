"""thin_check on a metadata file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def check_file(metadata: Path) -> None:
    """Fails with what thin_check says."""
    if shutil.which("thin_check") is None:
        pytest.skip("missing: thin_check (package thin-provisioning-tools)")
    done = subprocess.run(["thin_check", metadata], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
