"""The walk without root: files, fuse2fs, and a snapshot that is refused while the file system cannot be frozen."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from support.user import missing, run_as_user


def test_the_walk_without_root() -> None:
    if (what := missing("mkfs.ext4", "fuse2fs", "e2fsck", "thin_check")) is not None:
        pytest.skip(f"missing: {what}")
    base = Path(tempfile.mkdtemp(prefix="userdm-test-"))
    try:
        said = run_as_user("walk.user_walk", base, timeout=120)
        assert said.endswith("well\n"), said
    finally:
        shutil.rmtree(base)
