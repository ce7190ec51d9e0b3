"""Exports for the mapper: block devices when root, files otherwise."""

from __future__ import annotations

import errno
import hashlib
import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from userdm.dataplane import Backend
from userdm.export import mount, stale
from userdm.export.block import BlockExport
from userdm.export.freezer import Freezer
from userdm.export.helper import Helper
from userdm.export.nodes import Nodes, check_name
from userdm.export.records import Records
from userdm.export.user import UserExport
from userdm.mapper.hooks import Export
from userdm.storage.keep import Keep, NoKeep

USER_MAJOR = 240
"""For local use, says the kernel's devices.txt; without root the numbers exist in our answers only."""


def tag_of(runtime_dir: Path) -> str:
    """What marks the mounts and loop devices of the daemon with this runtime folder."""
    return f"userdm:{hashlib.sha256(bytes(runtime_dir.resolve())).hexdigest()[:16]}:"


class DeviceExporter:
    """Implements mapper.hooks.Exporter."""

    def __init__(
        self,
        runtime_dir: Path,
        mapper_dir: Path,
        as_root: bool,
        keep: Keep | None = None,
        *,
        cacheable: bool = False,
    ) -> None:
        """``cacheable``: devices may be cached while nobody notices; for root."""
        self._keep: Keep = keep if keep is not None else NoKeep()
        self._runtime_dir = runtime_dir
        self._mapper_dir = mapper_dir
        self._as_root = as_root
        self._cacheable = cacheable
        self._cacher = Helper("userdm.export.cache_helper")
        self._tag = tag_of(runtime_dir)
        self._nodes = Nodes(mapper_dir)
        self._records = Records(runtime_dir)
        self._freezer = Freezer()
        self._lock = threading.Lock()
        self._exports: dict[tuple[int, int], BlockExport | UserExport] = {}
        self._numbers: set[int] = set()

    def create(self, name: str, backend: Backend, minor: int | None) -> BlockExport | UserExport:
        check_name(name)
        export: BlockExport | UserExport
        if self._as_root:
            export = BlockExport(
                name,
                backend,
                minor,
                tag=self._tag,
                nodes=self._nodes,
                records=self._records,
                keep=self._keep,
                gone=self._forget,
                helper=self._cacher,
                cacheable=self._cacheable,
            )
        else:
            export = UserExport(
                backend,
                (USER_MAJOR, self._reserve(minor)),
                folder=self._mapper_dir,
                tag=self._tag,
                gone=self._forget,
            )
        with self._lock:
            self._exports[export.devno] = export
        return export

    def _reserve(self, minor: int | None) -> int:
        with self._lock:
            if minor is None:
                minor = next(number for number in itertools.count() if number not in self._numbers)
            elif minor in self._numbers:
                raise OSError(errno.EBUSY, f"minor {minor} is taken")
            self._numbers.add(minor)
            return minor

    def _forget(self, export: BlockExport | UserExport) -> None:
        with self._lock:
            self._exports.pop(export.devno, None)
            self._numbers.discard(export.devno[1])

    def freeze(self, exports: Sequence[Export]) -> Callable[[], None]:
        """Without root nothing can be frozen, and nothing of the file is cached: see `UserExport.writers`."""
        devices = [export for export in exports if isinstance(export, BlockExport)]
        if not devices:
            return lambda: None
        thaw = self._freezer.freeze([(export.devno, str(export.node)) for export in devices])
        try:
            for export in devices:
                # the block device's own cache was written; one that is cached below that has it now
                export.write_down()
        except BaseException:
            thaw()
            raise
        return thaw

    def abort_unfinished(self) -> None:
        """Of devices in the making, whose maker died and cannot end: it waits for an answer that nobody else can give.
        It still has the connections open, so their numbers are no other's."""
        for record in self._records.read():
            if not record.diskseq:
                with suppress(OSError):
                    mount.abort(record.connection)

    def clear_stale(self, spared: Collection[int] = ()) -> list[str]:
        """Clear away what a daemon with this runtime folder left when it died; it must be dead.

        Spared are our own loop devices, and those with the indexes ``spared``, which are to be taken over. Returns a
        line for each device: what was found, and what could not be taken away because it is in use.
        """
        if self._as_root:
            with self._lock:
                ours = {export.index for export in self._exports.values() if isinstance(export, BlockExport)}
            return stale.clear_blocks(self._records, self._nodes, ours.union(spared))
        return stale.clear_files(self._mapper_dir, self._tag)

    def close(self) -> None:
        """End every export. What is in use by then gets errors: ask `open_count` before."""
        with self._lock:
            exports = list(self._exports.values())
        for export in exports:
            export.close()
        self._freezer.close()
        self._cacher.close()
