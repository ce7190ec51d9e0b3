"""Pools for tests; after each, thin_check reads the metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.check import check_file
from userdm import Pool

MIB = 1 << 20


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Opens the test's pool; the first time it is made. What the test leaves open is closed, then checked."""
    opened: list[Pool] = []

    def make(*, size: int = 8 * MIB, **options: object) -> Pool:
        metadata, data = tmp_path / "meta.img", tmp_path / "data.img"
        create = None if metadata.exists() else size
        pool = Pool(metadata, data, create=create, **options)  # type: ignore[arg-type]
        opened.append(pool)
        return pool

    yield make
    for pool in opened:
        pool.close()
    check_file(tmp_path / "meta.img")
