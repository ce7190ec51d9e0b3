"""Which free blocks may be used, and in which order."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from userdm.pdata.bitmap import ENTRIES, Bitmap, Mask


class Bitmaps(Protocol):
    """What an allocator needs to know of a space map."""

    nr_blocks: int

    def bitmap(self, page: int) -> Bitmap: ...

    def some_free(self, page: int) -> bool:
        """Whether the bitmap has a zero at all."""
        ...


class Allocator:
    """Hands out runs of blocks whose count in the bitmaps is zero, except those that are withheld.

    Withheld are the blocks that were handed out (the bitmaps learn of them later) and those that were freed since
    the last durable state (which still needs them). The cursor moves on from bitmap to bitmap, and starts again.
    """

    def __init__(self, bitmaps: Bitmaps) -> None:
        self._bitmaps = bitmaps
        self._withheld = Mask()
        self._page = 0
        self._at = 0
        """Where the cursor is in its bitmap."""
        self._runs: deque[tuple[int, int]] = deque()
        """Free runs of the cursor's bitmap that were not handed out yet."""

    def take(self, count: int) -> tuple[int, int] | None:
        """Hand out up to ``count`` neighbours: (first block, how many); None when there is no free block."""
        if not self._runs and not self._search():
            return None
        start, length = self._runs[0]
        if length > count:
            self._runs[0] = (start + count, length - count)
            length = count
        else:
            self._runs.popleft()
        self._at = start % ENTRIES + length
        self._withheld.add(start, length)
        return start, length

    def _search(self) -> bool:
        """Fill the runs from the cursor on, all the way round."""
        nr_blocks = self._bitmaps.nr_blocks
        pages = -(-nr_blocks // ENTRIES)
        at = self._at
        for step in range(pages + 1 if pages else 0):
            page = (self._page + step) % pages
            if self._bitmaps.some_free(page):
                base = page * ENTRIES
                end = min(nr_blocks - base, ENTRIES)
                withheld = self._withheld.pages.get(page, 0)
                runs = self._bitmaps.bitmap(page).free_runs(min(at, end), end, withheld)
                self._runs.extend((base + start, length) for start, length in runs)
                if self._runs:
                    self._page = page
                    return True
            at = 0
        return False

    def rewind(self) -> None:
        """Start again at the first block."""
        self._page = self._at = 0
        self._runs.clear()

    def withhold(self, block: int, count: int) -> None:
        """Never hand these out. They are not free, or else `forget` comes after."""
        self._withheld.add(block, count)

    def withheld(self, block: int, count: int) -> bool:
        """Whether any of these is withheld."""
        return self._withheld.any(block, count)

    def release(self, block: int, count: int) -> None:
        """These may be handed out, as soon as their count is zero."""
        self._withheld.remove(block, count)

    def forget(self) -> None:
        """Look again where the cursor is: blocks were withheld that may have been about to be handed out."""
        self._runs.clear()
