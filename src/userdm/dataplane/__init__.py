"""The data plane: executes segments. Everything here counts in bytes.

An export, or a file object in this process, reaches a device through a `Backend`, and each serving thread
through a `Worker` of its own.
"""

from __future__ import annotations

from typing import Protocol

from userdm.segment import Gate


class Parked(Exception):
    """The request must wait for ``gate`` and then be tried again, whole. Nothing of it is lost by trying again."""

    def __init__(self, gate: Gate) -> None:
        super().__init__("parked")
        self.gate = gate


class Worker(Protocol):
    """One serving thread's way to a device; not to be shared between threads.

    Every method raises OSError with the errno that the request gets, or Parked.
    """

    def read(self, offset: int, view: memoryview) -> None:
        """Fill the view."""
        ...

    def write(self, offset: int, view: memoryview) -> None: ...

    def discard(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; its space may be given back."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; its space, where it has some, is kept."""
        ...

    def flush(self) -> None:
        """Return when every write completed before is durable, with every mapping that reaches it."""
        ...


class Backend(Protocol):
    """What an export serves. Bytes throughout; ``size`` is asked for again whenever a client asks."""

    @property
    def size(self) -> int: ...

    @property
    def readonly(self) -> bool: ...

    @property
    def granularity(self) -> int:
        """Discard granularity, a multiple of 512."""
        ...

    @property
    def discards(self) -> bool:
        """Whether discards are taken at all: EOPNOTSUPP otherwise."""
        ...

    @property
    def block_size(self) -> int:
        """Logical block."""
        ...

    def worker(self) -> Worker: ...
