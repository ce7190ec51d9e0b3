"""A device for root: a loop block device over a FUSE file that is mounted nowhere. Sizes are bytes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
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
CLIENT_SECONDS = 1.0
"""How long a client that renames nodes itself may take over it."""
PARKED_SECONDS = 0.2


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
        self._names_lock = threading.RLock()
        self._name: str | None = None
        self._uuid = ""
        self._coming: str | None = None
        """The name that a client is about to give the node."""
        self._backend = backend
        self._limits: tuple[int, int, bool] | None = None
        """Logical block, discard granularity, discards or not: as the driver was last told."""
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

    @property
    def readonly(self) -> bool:
        return self._loop.readonly

    def activate(self, name: str, readonly: bool | None, uuid: str = "") -> None:
        self._uuid = uuid
        assert self._connection is not None
        self._connection.file.activate()
        # kernels before 6.16 take the size that the inode had when it was last asked for
        os.fstat(self._mount)
        first = self._limits is None
        if first:
            self._take_limits()
        self._loop.take_size(readonly)
        if first and not self._backend.discards and not readonly:
            self._loop.forget_discards()
        self._show_as(name)

    def _take_limits(self) -> None:
        backend = self._backend
        self._limits = (backend.block_size, backend.granularity, backend.discards)
        self._loop.take_limits(backend.block_size)

    def settle(self) -> None:
        """Another table may have other limits. The driver holds the queue while it takes them, so it is done when
        requests flow; and when somebody has the device for himself (a mount), it is not done."""
        assert self._connection is not None
        backend = self._backend
        if self._limits == (backend.block_size, backend.granularity, backend.discards) or self._connection.parked:
            return
        thread = threading.Thread(target=self._try_limits, name="limits", daemon=True)
        thread.start()
        thread.join(PATIENCE)

    def _try_limits(self) -> None:
        try:
            self._take_limits()
        except OSError as error:
            log.info("%s: in use, its limits stay as they are: %s", self.node, error)

    def rename(self, name: str, *, leave_node: bool = False) -> None:
        if self._name is None:
            return
        if leave_node:
            timer = threading.Timer(CLIENT_SECONDS, self._settle_name, [name])
            timer.daemon = True
            timer.start()
            self._coming = name
        else:
            self._show_as(name)

    def _settle_name(self, name: str) -> None:
        """The client has had its time to rename the node: make it right, whatever it did."""
        with self._names_lock:
            if self._coming == name:
                self._show_as(name)

    def _show_as(self, name: str) -> None:
        """Make the node, and take an older one away after that: there is always one."""
        with self._names_lock:
            self._nodes.put(name, self.node, self._uuid)
            if self._name is not None and self._name != name:
                self._nodes.take(self._name, self.node, self.devno)
            self._name, self._coming = name, None

    def _hide(self) -> None:
        with self._names_lock:
            for name in (self._name, self._coming):
                if name is not None:
                    self._nodes.take(name, self.node, self.devno)
            self._name = self._coming = None

    def open_count(self) -> int:
        return count_openers(self.devno, self._loop.is_claimed)

    def writers(self) -> list[str]:
        """Nobody: what is on a block device can be frozen, or its page cache written down."""
        return []

    def remove(self, later: Callable[[], None] | None = None) -> None:
        assert self._connection is not None
        self._connection.file.closed = later
        if self._connection.parked:
            # somebody waits; and the test below would wait for him, since it stops the queue
            if later is not None:
                threading.Thread(target=self._await_parked, args=(later,), daemon=True).start()
            raise OSError(errno.EBUSY, f"{self.node} has requests under way")
        self._loop.unbind(when_closed=later is not None)
        if later is not None and self._loop.bound:
            raise OSError(errno.EBUSY, f"{self.node} is in use: it goes with its last opener")
        self._hide()
        self._take_down()

    def _await_parked(self, later: Callable[[], None]) -> None:
        """Nothing tells of the end of the last request that waits: look until it is so."""
        connection = self._connection
        assert connection is not None
        while connection.parked and connection.file.closed is later:
            time.sleep(PARKED_SECONDS)
        if connection.file.closed is later:
            later()

    def stay(self) -> None:
        assert self._connection is not None
        self._connection.file.closed = None
        self._loop.stay()

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
