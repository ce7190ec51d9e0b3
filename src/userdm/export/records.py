"""What is written down about each loop device, for whoever clears up after a crash.

The driver's own copy of our tag cannot be read when it is needed: LOOP_GET_STATUS64 asks the file for its
attributes first, and nobody is left to answer. What can always be read is the disk sequence number in sysfs, which is
never given out twice in one boot; with it a record belongs to one binding of one device.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """``connection`` is fusectl's number, 0 before there is one; ``diskseq`` 0 where there is none (before 5.15)."""

    index: int
    connection: int
    diskseq: int


def diskseq(index: int) -> int:
    try:
        return int(Path(f"/sys/block/loop{index}/diskseq").read_text())
    except (OSError, ValueError):
        return 0


def is_bound(index: int) -> bool:
    return Path(f"/sys/block/loop{index}/loop/backing_file").exists()


class Records:
    """One small file for each loop device, in the runtime folder."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = runtime_dir / "loop"

    def write(self, record: Record) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / str(record.index)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(record)))
        fresh.rename(path)

    def forget(self, index: int) -> None:
        (self._folder / str(index)).unlink(missing_ok=True)

    def read(self) -> Iterator[Record]:
        """Every record that is one; anything else in the folder is passed over."""
        try:
            paths = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return
        for path in paths:
            if path.suffix == ".new":
                path.unlink(missing_ok=True)  # whoever was writing it is dead
                continue
            with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
                fields = json.loads(path.read_text())
                record = Record(**fields)
                if path.name == str(record.index) and all(type(value) is int for value in fields.values()):
                    yield record
