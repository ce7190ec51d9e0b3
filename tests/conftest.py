"""Fixtures for every room's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import budget
from support.daemon import Daemon, missing, running_daemon


def pytest_addoption(parser: pytest.Parser) -> None:
    budget.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    budget.configure(config)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of the test's own; it starts on first use, and must leave nothing behind."""
    if (what := missing()) is not None:
        pytest.skip(f"missing: {what}")
    with running_daemon() as made:
        yield made
