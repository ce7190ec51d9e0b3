"""A device for root: a loop block device over a FUSE file that is mounted nowhere. Sizes are bytes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from userdm.dataplane import Backend
from userdm.export import mount
from userdm.export.connection import Connection
from userdm.export.holders import count_openers
from userdm.export.loop import PATIENCE, LoopDevice
from userdm.export.nodes import Nodes
from userdm.export.records import Record, Records, diskseq

log = logging.getLogger(__name__)
OWNER = (0, 0)


class BlockExport:
    """Implements mapper.hooks.Export."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        minor: int | None,
        *,
        tag: str,
        nodes: Nodes,
        records: Records,
        gone: Callable[[BlockExport], None],
    ) -> None:
        self._nodes = nodes
        self._records = records
        self._gone = gone
        self._name: str | None = None
        self._sized = False
        self._loop = LoopDevice.reserve(minor)
        self.devno = self._loop.devno
        self.node = Path(self._loop.node)
        self._connection: Connection | None = None
        self._mount = -1
        try:
            fuse = os.open(mount.DEV_FUSE, os.O_RDWR | os.O_CLOEXEC)
            self._connection = Connection(fuse, backend, self.devno, OWNER)
            self._mount = mount.mount_detached(fuse, OWNER, f"{tag}{name}")
            self._connection.start()
            self._number = mount.connection_of(self._mount)
            self._records.write(Record(self._loop.index, self._number, 0))
            file = mount.open_in(self._mount, os.O_RDWR | os.O_DIRECT)
            try:
                self._loop.bind(file, f"{tag}{name}")
            finally:
                os.close(file)
            self._records.write(Record(self._loop.index, self._number, diskseq(self._loop.index)))
        except BaseException:
            with contextlib.suppress(OSError):
                self._loop.unbind()
            self._take_down()
            raise

    def activate(self, name: str, readonly: bool) -> None:
        assert self._connection is not None
        self._connection.file.activate()
        # kernels before 6.16 take the size that the inode had when it was last asked for
        os.fstat(self._mount)
        if not self._sized:
            self._loop.take_limits()
            self._sized = True
        self._loop.take_size(readonly)
        self._show_as(name)

    def rename(self, name: str) -> None:
        if self._name is not None:
            self._show_as(name)

    def _show_as(self, name: str) -> None:
        """Make the node, and take an older one away after that: there is always one."""
        self._nodes.put(name, self.node)
        if self._name not in (None, name):
            self._hide()
        self._name = name

    def _hide(self) -> None:
        if self._name is not None:
            self._nodes.take(self._name, self.node, self.devno)
            self._name = None

    def open_count(self) -> int:
        return count_openers(self.devno, self._loop.is_claimed)

    def writers(self) -> list[str]:
        """Nobody: what is on a block device can be frozen, or its page cache written down."""
        return []

    def remove(self) -> None:
        assert self._connection is not None
        if self._connection.parked:
            # somebody waits; and the test below would wait for him, since it stops the queue
            raise OSError(errno.EBUSY, f"{self.node} has requests under way")
        self._loop.unbind()
        self._hide()
        self._take_down()

    def close(self) -> bool:
        """The end of the program that serves: whoever still has the device open gets errors. False then."""
        assert self._connection is not None
        try:
            self.remove()
            return True
        except OSError as error:
            log.warning("%s: %s", self.node, error)
        self._hide()
        mount.abort(self._number)
        self._loop.unbind(when_closed=True)
        self._take_down(patience=0)
        return False

    def _take_down(self, patience: float = PATIENCE) -> None:
        """End the connection and remove the loop device, as far as they got."""
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1
        if self._connection is not None and not self._connection.join():
            log.error("%s: a serving thread is held up in its storage", self.node)
        try:
            self._loop.delete(patience)
            self._records.forget(self._loop.index)
        except OSError as error:
            log.warning("%s stays: %s", self.node, error)
        self._gone(self)
