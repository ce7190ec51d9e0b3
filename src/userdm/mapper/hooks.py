"""What the mapper asks of whoever exports its devices: the daemon brings the real thing, a program in-process none.

Sizes in bytes. Device numbers are (major, minor).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from userdm.dataplane import Backend


class Export(Protocol):
    """One device's way to the world. Methods are never called with a lock held that serving needs."""

    @property
    def devno(self) -> tuple[int, int]: ...

    def activate(self, name: str, readonly: bool | None, uuid: str = "") -> None:
        """The backend has a table now: take its size and, unless None, its read-only state; make or renew the node
        ``name``, and what the ``uuid`` asks for beside it."""
        ...

    def settle(self) -> None:
        """Requests flow again: what can be done only then (the limits of a device in use)."""
        ...

    def rename(self, name: str, *, leave_node: bool = False) -> None:
        """Move the node; ``leave_node``: the client is about to do that itself, and it is looked at a little later."""
        ...

    @property
    def readonly(self) -> bool:
        """Whether the device is read-only by itself: as it was told, or because somebody has made it so."""
        ...

    @property
    def why_direct(self) -> str | None:
        """Why what is written is not cached; None when it is. See mapper.caching."""
        ...

    def recache(self) -> None:
        """What decides whether writes may be cached has changed (mapper.caching): when the device must be direct now,
        everything is written down at the return. OSError when that cannot be."""
        ...

    def write_down(self) -> None:
        """Whatever was cached has been written to the device when this returns."""
        ...

    def open_count(self) -> int:
        """How many openers and mounts the device has outside of the mapper."""
        ...

    def writers(self) -> list[str]:
        """Who holds the device open for writing *without* a file system we could freeze (fuse2fs, without root)."""
        ...

    def remove(self, later: Callable[[], None] | None = None) -> None:
        """Take node and device away. OSError EBUSY, and nothing changed, when somebody has it open.

        With ``later`` the device may go dead with its last close, and that is then called, in a thread of its own:
        it is time to try again.
        """
        ...

    def stay(self) -> None:
        """Take a removal with ``later`` back. EBUSY when the last close was quicker."""
        ...

    def serve(self) -> None:
        """Answer requests. Only one that was taken over from a process before us does not do so from its creation on:
        whoever has it open must find the table that he knows, and a closed gate closed."""
        ...

    def recover(self, later: Callable[[], None] | None, *, suspended: bool) -> None:
        """Bring what was taken over to what it must be, whatever the process before us was at when it died: only when
        that can do nothing any more. ``later``: as in `remove`, of one that is to go with its last close."""
        ...

    def abandon(self) -> None:
        """Take it away although it may be in use: its users get errors."""
        ...


class Exporter(Protocol):
    def create(self, name: str, backend: Backend, minor: int | None) -> Export:
        """Reserve a device number. Nothing is visible under ``name`` yet. EBUSY when ``minor`` is taken."""
        ...

    def freeze(self, exports: Sequence[Export]) -> Callable[[], None]:
        """Freeze every file system on these devices and sync them; the first is the topmost. Returns the thaw.

        Raises OSError, with everything thawed, when one cannot be frozen.
        """
        ...


class NoExport:
    """A device of a program in-process: it has a number and nothing else."""

    def __init__(self, devno: tuple[int, int], gone: Callable[[], None]) -> None:
        self.devno = devno
        self._gone = gone

    readonly = False

    def activate(self, name: str, readonly: bool | None, uuid: str = "") -> None:
        pass

    def settle(self) -> None:
        pass

    def rename(self, name: str, *, leave_node: bool = False) -> None:
        pass

    why_direct: str | None = "nothing is exported"

    def recache(self) -> None:
        pass

    def write_down(self) -> None:
        pass

    def open_count(self) -> int:
        return 0

    def writers(self) -> list[str]:
        return []

    def remove(self, later: Callable[[], None] | None = None) -> None:
        self._gone()

    def stay(self) -> None:
        pass

    def serve(self) -> None:
        pass

    def recover(self, later: Callable[[], None] | None, *, suspended: bool) -> None:
        pass

    def abandon(self) -> None:
        self._gone()


class NoExporter:
    """Devices without an export, numbered 240:0 upwards (240 is for local use, see the kernel's devices.txt)."""

    MAJOR = 240

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()

    def create(self, name: str, backend: Backend, minor: int | None) -> NoExport:
        with self._lock:
            if minor is None:
                minor = next(number for number in range(1 << 20) if number not in self._taken)
            elif minor in self._taken:
                raise OSError(errno.EBUSY, f"minor {minor} is taken")
            self._taken.add(minor)
        return NoExport((self.MAJOR, minor), lambda: self._taken.discard(minor))

    def freeze(self, exports: Sequence[Export]) -> Callable[[], None]:
        return lambda: None
