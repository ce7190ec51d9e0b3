"""Pools behind a real daemon."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from support.daemon import missing, running_daemon
from support.stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    if os.geteuid() != 0:
        pytest.skip("missing: root")
    for tool in ("mkfs.ext4", "thin_check"):
        if shutil.which(tool) is None:
            pytest.skip(f"missing: {tool}")
    if (what := missing()) is not None:
        pytest.skip(f"missing: {what}")
    with running_daemon() as daemon:
        made = Stage(daemon)
        try:
            yield made
        finally:
            made.close()
