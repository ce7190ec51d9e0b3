"""A backend with no mapping at all: every request goes to one storage as it came.

It is what an export costs by itself: the bench measures mapped devices against it.
"""

from __future__ import annotations

from userdm.segment import SECTOR
from userdm.storage import Storage


class Passthrough:
    """Serves ``storage``; a storage is its own worker, since it may be called from many threads."""

    def __init__(self, storage: Storage, *, granularity: int = SECTOR) -> None:
        self._storage = storage
        self.granularity = granularity
        self.discards = True
        self.block_size = SECTOR

    @property
    def size(self) -> int:
        return self._storage.size

    @property
    def readonly(self) -> bool:
        return self._storage.readonly

    def worker(self) -> Storage:
        return self._storage
