"""Devices without root: the FUSE file itself. Run as the user of the tests, or by root as nobody."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.user import missing, run_as_user

from .user_scenes import SCENES


@pytest.fixture
def base() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="userdm-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("scene", SCENES)
def test_as_a_user(scene: str, base: Path) -> None:
    if (what := missing("mkfs.ext4", "debugfs", "fallocate")) is not None:
        pytest.skip(f"missing: {what}")
    said = run_as_user("export.user_scenes", base, scene)
    assert said.endswith("well\n"), said
