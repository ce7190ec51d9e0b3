"""A daemon whose worker is killed under real mounts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import missing
from support.stage import Stage, running_stage

RESEND_SINCE = (6, 9)


def missing_for_takeover() -> str | None:
    if os.geteuid() != 0:
        return "root"
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < RESEND_SINCE:
        return "Linux 6.9, whose FUSE sends requests again"
    tools = ("mkfs.ext4", "e2fsck", "fio", "thin_check")
    return next((tool for tool in tools if shutil.which(tool) is None), missing())


@pytest.fixture
def stage() -> Iterator[Stage]:
    if (what := missing_for_takeover()) is not None:
        pytest.skip(f"missing: {what}")
    with running_stage(Stage) as stage:
        yield stage


def disk(stage: Stage, name: str, mib: int) -> Path:
    """A sparse file."""
    path = stage.base / name
    with path.open("wb") as file:
        file.truncate(mib << 20)
    return path


def linear(stage: Stage, name: str, mib: int = 64) -> Path:
    """A device over a file; its node."""
    stage.dm("create", name, "--table", f"0 {mib * 2048} linear {disk(stage, f'{name}.img', mib)} 0")
    return stage.node(name)
