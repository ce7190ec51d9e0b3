"""A transaction on empty metadata in memory."""

from __future__ import annotations

import pytest

from userdm.pdata.block import BLOCK_SIZE
from userdm.pdata.manager import BlockManager
from userdm.pdata.metadata_map import MetadataSpaceMap
from userdm.pdata.transaction import Transaction
from userdm.storage import MemoryStorage


@pytest.fixture
def tx() -> Transaction:
    return new_transaction(4000)


def new_transaction(nr_blocks: int) -> Transaction:
    tx = Transaction(BlockManager(MemoryStorage(nr_blocks * BLOCK_SIZE), nr_blocks))
    MetadataSpaceMap.create(tx, nr_blocks)
    return tx
