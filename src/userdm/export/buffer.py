"""The memory that one FUSE request lives in, from the kernel's read to our answer."""

from __future__ import annotations

import mmap
from contextlib import suppress

from userdm.export.protocol import HEADER_ROOM, OUT_HEADER

PAGE = mmap.PAGESIZE
START = PAGE - HEADER_ROOM
"""Where a request begins: its data, behind the two headers of a WRITE, is then aligned to a page."""
ANSWER = PAGE - OUT_HEADER.size
"""Where the answer to a READ begins: one piece with the data, which is where it was read to."""
_KNOWN_SIZES = 64


class Buffer:
    """Room for one request and for ``capacity`` bytes of data, which begin on a page of their own."""

    __slots__ = ("capacity", "memory", "request", "_data")

    def __init__(self, capacity: int, *, populated: bool = False) -> None:
        """``populated``: with every page in memory at once, and for good. A thread that is killed may still take a
        request; what it cannot put into memory without a page fault, the kernel fails with EIO, and does not send
        again. A fork would share the pages, and a huge page may replace them: both end in such faults."""
        self.capacity = capacity
        self.memory = mmap.mmap(-1, PAGE + capacity, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if populated:
            self.memory.madvise(mmap.MADV_DONTFORK)
            with suppress(OSError):  # a kernel without huge pages
                self.memory.madvise(mmap.MADV_NOHUGEPAGE)
            # not by MAP_POPULATE, which does nothing where mlockall(2) was told MCL_ONFAULT
            self.memory[::PAGE] = bytes(-(-len(self.memory) // PAGE))
        self.request = memoryview(self.memory)[START:]
        self._data: dict[int, tuple[memoryview, memoryview]] = {}

    def data(self, size: int) -> tuple[memoryview, memoryview]:
        """The first ``size`` bytes of data, and the same with room for the header of an answer before them.

        Clients use few sizes over and over; a view that exists costs less than one that is made.
        """
        views = self._data.get(size)
        if views is None:
            if len(self._data) >= _KNOWN_SIZES:
                self._data.clear()
            whole = memoryview(self.memory)
            views = self._data[size] = whole[PAGE : PAGE + size], whole[ANSWER : PAGE + size]
        return views
