"""Storage in memory: for tests, and for throw-away layers."""

from __future__ import annotations

import errno


class MemoryStorage:
    """``size`` bytes of zeros, gone when closed."""

    resolve: None = None

    def __init__(self, size: int, *, readonly: bool = False) -> None:
        self._bytes = bytearray(size)
        self.readonly = readonly

    @property
    def size(self) -> int:
        return len(self._bytes)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > len(self._bytes):
            raise OSError(errno.EIO, f"bytes {offset}+{length} lie outside of the storage's {len(self._bytes)} bytes")

    def _writable(self, offset: int, length: int) -> None:
        if self.readonly:
            raise OSError(errno.EROFS, "storage is read-only")
        self._check(offset, length)

    def read(self, offset: int, view: memoryview) -> None:
        self._check(offset, len(view))
        view[:] = self._bytes[offset : offset + len(view)]

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self._writable(offset, len(view))
        self._bytes[offset : offset + len(view)] = view

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length)

    def zero(self, offset: int, length: int) -> None:
        self._writable(offset, length)
        self._bytes[offset : offset + length] = bytes(length)

    def close(self) -> None:
        self._bytes = bytearray()
