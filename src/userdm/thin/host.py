"""What a pool asks of the mapped devices on which its volumes are active. Offsets and lengths in bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Host(Protocol):
    """A mapped device, with every device and export that stands above it."""

    @property
    def name(self) -> str: ...

    @property
    def devno(self) -> tuple[int, int]:
        """Major and minor number, which it keeps for as long as it exists."""
        ...

    @property
    def suspended(self) -> bool: ...

    def revoke(self, offset: int, length: int) -> None:
        """From now on nobody is given an old answer for this range."""
        ...

    def fence(self) -> None:
        """From now on nobody starts to act on an old answer for any of the device."""
        ...

    def drain(self, *, requests: bool) -> None:
        """Wait for those who act on an answer that they got before; with ``requests``, for whole requests."""
        ...

    def grace(self) -> Callable[[], bool]:
        """A look at the requests in flight; the result says whether all of them have ended."""
        ...

    @property
    def adopted(self) -> bool:
        """Whether a process before us may have had it cached."""
        ...

    def write_down(self) -> None:
        """What the kernel caches of the device is written to it."""
        ...

    def writers(self) -> list[str]:
        """Who has the device open for writing and cannot be frozen."""
        ...

    def freeze(self) -> Callable[[], None]:
        """Freeze and sync every file system on the device and on those above; returns the thaw. OSError."""
        ...

    def event(self) -> None:
        """The kernel's dm_table_event: the device's event counter goes up, and waiters wake."""
        ...
