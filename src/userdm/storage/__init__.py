"""Storage: what the lowest line of a table names. All offsets and lengths are in bytes.

The trait is narrow on purpose, so that a fault, a crash or a slow disk is one small wrapper around it.
"""

from __future__ import annotations

from typing import Protocol

from userdm.storage.file import FileStorage, open_storage
from userdm.storage.memory import MemoryStorage

__all__ = ["FileStorage", "MemoryStorage", "Storage", "open_storage"]


class Storage(Protocol):
    """Positioned bytes that can be made durable. Every method raises OSError and may be called from many threads.

    A completed write may be lost in a power cut until ``flush`` returns. A leaf: ``resolve`` is always None.
    """

    @property
    def size(self) -> int:
        """Bytes, a whole number of sectors."""
        ...

    @property
    def readonly(self) -> bool: ...

    @property
    def resolve(self) -> None: ...

    def read(self, offset: int, view: memoryview) -> None:
        """Fill the whole view; EIO when the storage ends before it does."""
        ...

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        """Write all of it; never past the end (EIO)."""
        ...

    def flush(self) -> None:
        """Return when every write completed before the call is durable."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards and its space is given back where that is possible."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; its space is kept."""
        ...

    def close(self) -> None: ...
