"""What every target driver is: a class that is declared, then registered, and whose module's text is its manual.

Tables count in sectors, `resolve` in bytes from the target's own start.
Follows struct target_type of <linux/device-mapper.h>.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from userdm.segment import SECTOR, Intent, Place, Segment
from userdm.storage import Storage
from userdm.storage.keep import Keep
from userdm.thin.claims import Claim
from userdm.thin.host import Host

DEFAULT_GRANULE = 1 << 20


class TargetError(OSError):
    """A wrong table line or message: errno, and a text that names argument, value and what is allowed."""


class Context(Protocol):
    """The table line's surroundings, given to a target's constructor. ``start`` and ``length`` are in sectors."""

    start: int
    length: int
    readonly: bool

    areas: list[Area]
    """What the target takes of what it stands on: see `check_area`."""

    @property
    def keep(self) -> Keep:
        """What outlives this process."""
        ...

    @property
    def host(self) -> Host:
        """The mapped device that the table is for."""
        ...

    @property
    def restoring(self) -> bool:
        """Whether the table was there before, and is brought back."""
        ...

    def open(self, argument: str, value: str) -> Place:
        """The storage or mapped device that ``value`` names, held until the table is destroyed.

        ``argument`` is what a message calls it. Errors: ENODEV for no such device, EBUSY for one in use, EINVAL
        for the device itself or one that needs it.
        """
        ...

    def storage(self, place: Place) -> Storage:
        """The place as storage: itself, or a mapped device read and written through its own table."""
        ...

    def describe(self, place: Place) -> str:
        """How a table line prints the place: major:minor, or the path of a regular file."""
        ...

    def live_target(self, place: Place) -> Target | None:
        """The only target of the mapped device's live table; None when there is no such thing."""
        ...


class Target:
    """Base of the target drivers. A constructor raises TargetError and must then hold nothing."""

    name: ClassVar[str]
    version: ClassVar[tuple[int, int, int]]
    syntax: ClassVar[str]
    singleton: ClassVar[bool] = False
    """The only line of its table."""
    immutable: ClassVar[bool] = False
    """A live table of this type is replaced by the same type only, or by a wildcard."""
    wildcard: ClassVar[bool] = False
    """It may take the place of an immutable target."""

    def __init__(self, context: Context, arguments: Sequence[str]) -> None:
        self.context = context
        self.length = context.length

    @property
    def places(self) -> Sequence[Place]:
        """What the target stands on, in the order of the kernel's deps."""
        return ()

    @property
    def granule(self) -> int:
        """Bytes: answers are worth keeping in pieces of this size."""
        sizes = (getattr(place, "granularity", None) or DEFAULT_GRANULE for place in self.places)
        return min(sizes, default=DEFAULT_GRANULE)

    @property
    def discards(self) -> bool:
        """Whether it takes discards: when everything takes them that it stands on, and it stands on something."""
        return bool(self.places) and all(getattr(place, "discards", True) for place in self.places)

    @property
    def discard_granularity(self) -> int:
        """Bytes."""
        return max((getattr(place, "granularity", None) or 4096 for place in self.places), default=4096)

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        raise NotImplementedError

    def above(self, place: Place, offset: int, length: int) -> Iterable[tuple[int, int]]:
        """Which of the target's own bytes lie on these bytes of ``place``: (offset, length) pairs; more is allowed."""
        return [(0, self.length * SECTOR)]

    def flush_points(self) -> Sequence[Flushable]:
        """What must be flushed for a flush of the target."""
        return [place for place in self.places if isinstance(place, Flushable)]

    def table_line(self) -> str:
        """The arguments, as ``dmsetup table`` prints them."""
        raise NotImplementedError

    def status_line(self, *, noflush: bool = False) -> str:
        """As ``dmsetup status`` prints it; most targets have nothing to say."""
        return ""

    def measure_line(self) -> str:
        """What the kernel would have measured of it, as ``dmsetup measure`` prints it; some targets have nothing."""
        return ""

    def message(self, arguments: Sequence[str], *, force: bool = False) -> str | None:
        raise TargetError(errno.EINVAL, f"message {' '.join(arguments)!r}: target {self.name} takes no messages")

    def why_direct(self) -> str | None:
        """Why writes to a device with this line alone must not be cached; None when they may be. See mapper.caching."""
        return f"its target is {self.name}"

    def claim_cache(self, leave: Callable[[], None], settle: Callable[[], None]) -> Claim:
        """Where they may be: the room for what will be written down later. See thin.claims; OSError says why not."""
        raise TargetError(errno.EOPNOTSUPP, self.why_direct())

    def restored(self) -> None:
        """A table that was brought back: every other one is back as well."""

    # In the order in which the kernel calls them. A resume that fails leaves the device suspended.

    def presuspend(self) -> None: ...

    def postsuspend(self) -> None: ...

    def preresume(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None:
        """The table is destroyed; the places are released by whoever opened them."""


@runtime_checkable
class Flushable(Protocol):
    def flush(self) -> None: ...


def number(argument: str, value: str, low: int, high: int, *, what: str = "") -> int:
    """A decimal argument of a table line. EINVAL names it, its value and what is allowed."""
    if value.isascii() and value.isdigit() and len(value) <= 20 and low <= int(value) <= high:
        return int(value)
    allowed = what or f"a number from {low} to {high}"
    raise TargetError(errno.EINVAL, f"{argument} {value!r}: must be {allowed}")


def count(arguments: Sequence[str], low: int, high: int | None, syntax: str) -> None:
    """Check how many arguments there are."""
    if low <= len(arguments) and (high is None or len(arguments) <= high):
        return
    wanted = str(low) if high == low else f"{low} or more" if high is None else f"{low} to {high}"
    raise TargetError(errno.EINVAL, f"{len(arguments)} arguments, must be {wanted}: {syntax or 'none'}")


@dataclass(frozen=True, slots=True)
class Area:
    """Sectors of a place that a target's table line takes."""

    argument: str
    value: str
    place: Place
    start: int
    length: int

    def check(self) -> None:
        """They must lie on the place, on bounds of its logical blocks: EINVAL. As device_area_is_invalid, which lets
        pass what has no size at all."""
        where = f"{self.argument} {self.value!r}"
        sectors = self.place.size // SECTOR
        if not sectors:
            return
        if self.start + self.length > sectors:
            raise TargetError(
                errno.EINVAL,
                f"{where} is too small for the target: sectors {self.start} to {self.start + self.length} wanted, "
                f"it has {sectors}",
            )
        block = block_size(self.place) // SECTOR
        for what, number in (("start", self.start), ("length", self.length)):
            if number % block:
                raise TargetError(
                    errno.EINVAL, f"{where}: {what} {number}: must be a multiple of its logical block {block}"
                )


def check_area(context: Context, argument: str, value: str, place: Place, start: int, length: int) -> None:
    """Have sectors ``start`` to ``start + length`` of the place checked, when the kernel does: at a device's first
    load, and whenever a table becomes live."""
    context.areas.append(Area(argument, value, place, start, length))


def block_size(place: Place) -> int:
    """Bytes of its logical block."""
    return getattr(place, "block_size", SECTOR)


MAX_SECTOR = (1 << 63) // SECTOR - 1
