"""Mapping tables: lines checked as the kernel checks them, and the targets that they make. Lines count in sectors.

Follows drivers/md/dm-table.c: a table starts at sector 0, its lines follow each other without gap or overlap.
"""

from __future__ import annotations

import errno
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from userdm.segment import SECTOR, Intent, Place, Segment
from userdm.targets.base import Area, Flushable, Target, TargetError, block_size
from userdm.targets.registry import find_target

if TYPE_CHECKING:
    from userdm.mapper.places import Opened

T = TypeVar("T")
MAX_SECTORS = (1 << 63) // SECTOR - 1
MAX_LINES = 1 << 20


class TableError(OSError):
    """A table is refused: errno, and a text that names the line, the argument, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it was given. Sectors."""

    start: int
    length: int
    type: str
    params: str


@dataclass(slots=True)
class Entry:
    """A line's target. Sectors."""

    start: int
    length: int
    target: Target


def split_arguments(params: str) -> list[str]:
    """The words of a line: blanks separate them, a backslash takes the next character as it is."""
    words: list[str] = []
    word: list[str] | None = None
    characters = iter(params)
    for character in characters:
        if character.isspace():
            if word is not None:
                words.append("".join(word))
            word = None
            continue
        word = word if word is not None else []
        word.append(next(characters, "") if character == "\\" else character)
    if word is not None:
        words.append("".join(word))
    return words


def _once(things: Iterable[T]) -> list[T]:
    """Each of them once, in their order; what makes a thing the same is that it is the same object."""
    return list({id(thing): thing for thing in things}.values())


def escape_argument(word: str) -> str:
    """The opposite of split_arguments for one word."""
    return "".join("\\" + character if character.isspace() or character == "\\" else character for character in word)


class Table:
    """The targets of one table. ``opened`` holds what they stand on until the table is closed."""

    def __init__(self, opened: Opened, readonly: bool, *, secret: bool = False) -> None:
        self.opened = opened
        self.readonly = readonly
        self.secret = secret
        """Its lines are in no log."""
        self.lines: list[Line] = []
        self.entries: list[Entry] = []
        self.places: list[Place] = []
        """What the table stands on, once each, in the order of the kernel's deps."""
        self.flush_points: list[Flushable] = []
        self.block_size = SECTOR
        """Bytes of the logical block of a device with this table."""
        self._areas: list[tuple[int, Area]] = []
        self._starts: list[int] = []
        self._holders: int = 0
        self._closed = False
        self._let_go = threading.Condition()
        self.inside: dict[int, None] = {}
        """The threads that are asking it where bytes are, of this device or of one above."""

    @classmethod
    def build(cls, lines: Iterable[Line], opened: Opened, *, readonly: bool, secret: bool = False) -> Table:
        """Check the lines and make their targets, one after the other. TableError, with nothing held, when one is
        refused."""
        table = cls(opened, readonly, secret=secret)
        try:
            for index, line in enumerate(lines, 1):
                table._check_layout(index, line)
                try:
                    table._add(line)
                except TableError:
                    raise
                except OSError as error:
                    text = f"table line {index}: {line.type}: {error.strerror}"
                    raise TableError(error.errno or errno.EINVAL, text) from error
            if not table.entries:
                raise TableError(errno.EINVAL, f"table has 0 lines, must be 1 to {MAX_LINES}")
        except BaseException:
            table.close()
            raise
        targets = [entry.target for entry in table.entries]
        table.places = _once(place for target in targets for place in target.places)
        table.flush_points = _once(point for target in targets for point in target.flush_points())
        return table

    def _check_layout(self, index: int, line: Line) -> None:
        """EINVAL for an empty line, a gap, an overlap, or more than a table or a device can have."""
        where = f"table line {index}"
        if index > MAX_LINES:
            raise TableError(errno.EINVAL, f"{where}: a table must have at most {MAX_LINES} lines")
        expected = self.size // SECTOR
        if line.length <= 0:
            raise TableError(errno.EINVAL, f"{where}: length {line.length}: must be at least 1 sector")
        if line.start != expected:
            fault = "a gap" if line.start > expected else "an overlap"
            raise TableError(errno.EINVAL, f"{where}: start {line.start}: must be {expected}, there is {fault}")
        if expected + line.length > MAX_SECTORS:
            raise TableError(errno.EINVAL, f"{where}: length {line.length}: the table must end at sector {MAX_SECTORS}")

    def _add(self, line: Line) -> None:
        kind = find_target(line.type)
        if self.entries and (kind.singleton or self.entries[0].target.singleton):
            name = kind.name if kind.singleton else self.entries[0].target.name
            raise TargetError(errno.EINVAL, f"{name} must be the only line of its table")
        context = self.opened.context(line.start, line.length, self.readonly)
        target = kind(context, split_arguments(line.params))
        self.lines.append(line)
        self._areas += ((len(self.lines), area) for area in context.areas)
        self.entries.append(Entry(line.start, line.length, target))
        self._starts.append(line.start * SECTOR)

    def check_limits(self) -> None:
        """What the lines take of what they stand on must be there, and lie on whole logical blocks; so must the lines
        themselves. EINVAL otherwise. As dm_calculate_queue_limits."""
        for index, area in self._areas:
            try:
                area.check()
            except OSError as error:
                raise TableError(error.errno, f"table line {index}: {error.strerror}") from error
        sizes = [max((block_size(place) for place in entry.target.places), default=SECTOR) for entry in self.entries]
        self.block_size = max(sizes)
        whole = self.block_size // SECTOR
        index = remaining = 0  # sectors of a block that the lines so far have begun and not ended
        for entry, size in zip(self.entries, sizes, strict=True):
            index += 1
            if remaining < entry.length and remaining % (size // SECTOR):
                break
            remaining = -(entry.start + entry.length) % whole
        else:
            if not remaining:
                return
        raise TableError(
            errno.EINVAL,
            f"table line {index}: sectors {entry.start} to {entry.start + entry.length}: must lie on whole logical "
            f"blocks of {self.block_size} bytes",
        )

    @property
    def discards(self) -> bool:
        """Whether the device takes discards: when each of its targets does."""
        return all(entry.target.discards for entry in self.entries)

    @property
    def count(self) -> int:
        """Of its targets."""
        return len(self.entries)

    @property
    def size(self) -> int:
        """Bytes."""
        last = self.entries[-1] if self.entries else None
        return 0 if last is None else (last.start + last.length) * SECTOR

    @property
    def granule(self) -> int:
        return min(entry.target.granule for entry in self.entries)

    @property
    def discard_granularity(self) -> int:
        return max(entry.target.discard_granularity for entry in self.entries)

    def deps(self) -> list[tuple[int, int]]:
        """Device numbers of what the table stands on, as the kernel lists them: what was opened last comes first.

        A regular file has none.
        """
        opened = _once(place for entry in self.entries for place in reversed(entry.target.places))
        numbers = (self.opened.devno(place) for place in reversed(opened))
        return [number for number in numbers if number is not None]

    def references(self) -> list[dict[str, Any]]:
        """How each path of the table was resolved, for a state file; see Opened."""
        return self.opened.references()

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        """Segments for a range of bytes inside of the table."""
        entries, starts = self.entries, self._starts
        if len(entries) == 1:
            return entries[0].target.resolve(offset, length, intent)
        out: list[Segment] = []
        index = bisect_right(starts, offset) - 1
        end = offset + length
        while offset < end:
            entry = entries[index]
            piece = min(end, starts[index] + entry.length * SECTOR) - offset
            out.extend(entry.target.resolve(offset - starts[index], piece, intent))
            offset += piece
            index += 1
        return out

    def above(self, place: Place, offset: int, length: int) -> list[tuple[int, int]]:
        """Which bytes of the table lie on these bytes of ``place``, as (offset, length) pairs."""
        found: list[tuple[int, int]] = []
        for entry in self.entries:  # which may be closed meanwhile: then nobody is given an answer of it any more
            if any(mine is place for mine in entry.target.places):
                start = entry.start * SECTOR
                found += [(start + low, size) for low, size in entry.target.above(place, offset, length)]
        return found

    @property
    def failed_flushes(self) -> int:
        """How often the storage below, all the way down, has failed to flush, whoever had asked."""
        return sum(getattr(place, "failed_flushes", 0) for place in self.places)

    def flush(self) -> None:
        """Flush everything below, each thing once. The first error is raised when all have been tried."""
        failure: OSError | None = None
        for point in self.flush_points:
            try:
                point.flush()
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def hold(self) -> bool:
        """Keep the table from being closed until `let_go`; False when it is too late."""
        with self._let_go:
            self._holders += not self._closed
            return not self._closed

    def let_go(self) -> None:
        with self._let_go:
            self._holders -= 1
            self._let_go.notify_all()

    def close(self) -> None:
        """Close the targets, the last first, and release what they stand on. The first error is raised at the end."""
        with self._let_go:
            self._closed = True
            self._let_go.wait_for(lambda: self._holders == 0)
        while self.inside:  # nobody comes any more: it is not the live one
            time.sleep(0.0005)
        failure: OSError | None = None
        while self.entries:
            try:
                self.entries.pop().target.close()
            except OSError as error:
                failure = failure or error
        self.opened.release()
        if failure is not None:
            raise failure
