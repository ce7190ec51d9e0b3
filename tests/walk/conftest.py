"""Pools behind a real daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.stage import Stage, running_stage, want_root_and


@pytest.fixture
def stage() -> Iterator[Stage]:
    want_root_and("mkfs.ext4", "thin_check")
    with running_stage(Stage) as stage:
        yield stage
