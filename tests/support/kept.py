"""A worker's death without any process: a keeper in memory, and pools that write their redo log to it.

What a killed process leaves is what is in its storages (the page cache) and in its memfds. A `World` can be copied at
any moment of a run; a pool that is opened on the copy is the successor of a worker that was killed at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from support.thin import content
from userdm import Pool, Thin
from userdm.dataplane.plane import BlockingWorker
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import MemoryStorage
from userdm.storage.keep import Kept
from userdm.targets.thin_pool import ThinPool
from userdm.thin import pool as engine

Lock = AbstractContextManager[object]


class MemoryKeep:
    """userdm.storage.keep.Keep, in this process; ``close`` when done."""

    def __init__(self, *, lasting: bool = True) -> None:
        self.lasting = lasting
        self.kept: dict[str, Kept] = {}

    def take(self, key: str) -> Kept | None:
        kept = self.kept.get(key)
        return None if kept is None else Kept(tuple(os.dup(fd) for fd in kept.fds), kept.note)

    def put(self, key: str, fds: Sequence[int], note: str = "") -> None:
        new = Kept(tuple(os.dup(fd) for fd in fds), note)
        self.drop(key)
        self.kept[key] = new

    def drop(self, key: str) -> None:
        kept = self.kept.pop(key, None)
        for fd in kept.fds if kept is not None else ():
            os.close(fd)

    def copy(self) -> MemoryKeep:
        """The same with copies of the memory."""
        other = MemoryKeep()
        for key, kept in self.kept.items():
            other.kept[key] = Kept(tuple(memfd(contents(fd)) for fd in kept.fds), kept.note)
        return other

    def close(self) -> None:
        for key in list(self.kept):
            self.drop(key)


def memfd(data: bytes) -> int:
    fd = os.memfd_create("copy")
    os.write(fd, data)
    return fd


def contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def copied(storage: MemoryStorage) -> MemoryStorage:
    copy = MemoryStorage(storage.size)
    copy.write(0, content(storage))
    return copy


class World:
    """What a kill leaves: two storages, and what the keeper has."""

    def __init__(self, metadata: MemoryStorage, data: MemoryStorage, keep: MemoryKeep | None = None) -> None:
        self.metadata = metadata
        self.data = data
        self.keep = keep or MemoryKeep()

    def copy(self) -> World:
        return World(copied(self.metadata), copied(self.data), self.keep.copy())


class KeptPool(Pool):
    """A Pool in a world. ``size``: bytes of the data device that the table takes; ``origin``: under every volume."""

    def __init__(
        self,
        world: World,
        *,
        size: int = 0,
        features: Sequence[str] = (),
        block_sectors: int = 128,
        origin: MemoryStorage | None = None,
    ) -> None:
        self.world = world
        self._origin = "" if origin is None else " origin"
        self._line = f"metadata data {block_sectors} 0 {len(features)} {' '.join(features)}"
        self.mapper = Mapper(keep=world.keep)
        self.mapper.attached |= {"metadata": world.metadata, "data": world.data}
        if origin is not None:
            self.mapper.attached["origin"] = origin
        self.device = self._activate("pool", self._table(size or world.data.size))

    def open_thin(self, dev_id: int, size: int) -> Thin:
        line = Line(0, size // 512, "thin", f"/dev/mapper/pool {dev_id}{self._origin}")
        return Thin(self, dev_id, self._activate(f"thin-{dev_id}", line))

    def __enter__(self) -> KeptPool:
        return self

    def _table(self, size: int) -> Line:
        return Line(0, size // 512, "thin-pool", self._line)

    def resize(self, size: int) -> None:
        self.mapper.load(self.device, [self._table(size)])
        self.mapper.resume(self.device)

    @property
    def engine(self) -> engine.Pool:
        """The pool itself, below mapper and target."""
        assert self.device.live is not None
        target = self.device.live.entries[0].target
        assert isinstance(target, ThinPool)
        return target.pool

    def on_record(self, call: Callable[[], None], lock: Lock) -> None:
        """Call back after each record of the redo log."""
        log = self.engine.metadata.redo
        assert log is not None
        put = log._put

        def watched(kind: int, a: int, b: int, c: int, d: int) -> None:
            with lock:
                put(kind, a, b, c, d)
                call()

        log._put = watched  # type: ignore[method-assign]


def put(thin: Thin, offset: int, data: bytes) -> None:
    """Write, without the flush that closing a file would bring."""
    worker = BlockingWorker(thin.device.worker())
    worker.write(offset, data)
    worker.close()


def read_all(thin: Thin) -> bytes:
    data = bytearray(thin.size)
    worker = BlockingWorker(thin.device.worker())
    worker.read(0, memoryview(data))
    worker.close()
    return bytes(data)


class Watched(MemoryStorage):
    """Memory that calls ``moment`` after each change of what a kill leaves, still under the lock of that change."""

    def __init__(self, size: int, moment: Callable[[], None], lock: Lock) -> None:
        super().__init__(size)
        self.moment = moment
        self.lock = lock

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        with self.lock:
            super().write(offset, view)
            self.moment()

    def zero(self, offset: int, length: int) -> None:
        with self.lock:
            super().zero(offset, length)
            self.moment()

    def flush(self) -> None:
        with self.lock:
            self.moment()
