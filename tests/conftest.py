"""Fixtures for every room's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.daemon import Daemon, missing, running_daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of the test's own; it starts on first use, and must leave nothing behind."""
    if (what := missing()) is not None:
        pytest.skip(f"missing: {what}")
    with running_daemon() as made:
        yield made
