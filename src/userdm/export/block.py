"""A device for root: a loop block device over a FUSE file that is mounted nowhere. Sizes are bytes."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from userdm.dataplane import Backend
from userdm.export import mount
from userdm.export.cached import CachedMode
from userdm.export.connection import Connection
from userdm.export.helper import Helper
from userdm.export.holders import count_openers
from userdm.export.loop import PATIENCE, LoopDevice, Taken
from userdm.export.nodes import Nodes
from userdm.export.records import Record, Records, diskseq
from userdm.mapper.device import MappedDevice
from userdm.storage.keep import Keep, Kept

log = logging.getLogger(__name__)
OWNER = (0, 0)
TRIES = 16
"""Loop devices that somebody else may take from us, one after the other, before we give up."""
CLIENT_SECONDS = 1.0
"""How long a client that renames nodes itself may take over it."""
PARKED_SECONDS = 0.2
KEPT = "export:"
"""What a key begins with; the minor number follows."""


def index_in(note: str) -> int:
    """The loop device's index in the note of what is kept."""
    return int(json.loads(note)["index"])


class BlockExport:
    """Implements mapper.hooks.Export.

    The FUSE connection and its mount are kept for who comes after us, from the moment on when the device is there and
    as long as it is: before and after that, our death ends the connection, and what is left is cleared by its record.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        minor: int | None,
        *,
        tag: str,
        nodes: Nodes,
        records: Records,
        keep: Keep,
        gone: Callable[[BlockExport], None],
        helper: Helper | None = None,
        cacheable: bool = False,
    ) -> None:
        """``helper`` runs cache_helper, for a device that may be cached; ``cacheable``: a new one may be."""
        self._cacheable = cacheable and helper is not None
        self._nodes = nodes
        self._records = records
        self._keep = keep
        self._gone = gone
        self._tag = f"{tag}{name}"
        self._names_lock = threading.RLock()
        self._name: str | None = None
        self._uuid = ""
        self._coming: str | None = None
        """The name that a client is about to give the node."""
        self._backend = backend
        self._limits: tuple[int, int, bool] | None = None
        """Logical block, discard granularity, discards or not: as the driver was last told."""
        self._connection: Connection | None = None
        self._mount = -1
        self._cached: CachedMode | None = None
        """The mode in which the kernel may cache writes; None where it never may."""
        self._helper = helper
        self._whole = True
        """Served, and its loop device as it must be: not so between `_adopt` and `recover`."""
        self._shown: tuple[str, bool | None] | None = None
        self._to_stay = False
        """A removal was cut short; until that is taken back, which stops the queue, the last close unbinds the loop."""
        kept = keep.take(f"{KEPT}{minor}") if minor is not None else None
        if kept is None:
            self._make(minor)
        else:
            self._adopt(kept, minor)

    def _make(self, minor: int | None) -> None:
        """A new one, of this number or any. EBUSY when somebody takes it before it is bound."""
        for left in reversed(range(TRIES)):
            try:
                self._try_to_make(minor)
                return
            except Taken:
                if minor is not None or not left:
                    raise

    def _try_to_make(self, minor: int | None) -> None:
        self._loop = LoopDevice.reserve(minor)
        self._records.write(Record(self._loop.index, 0, 0))
        self._number_it()
        try:
            fuse = os.open(mount.DEV_FUSE, os.O_RDWR | os.O_CLOEXEC)
            self._connection = Connection(fuse, self._backend, self.devno, OWNER, cacheable=self._cacheable)
            self._mount = mount.mount_detached(fuse, OWNER, self._tag)
            # before anybody waits for us: whoever clears up when we die must be able to free him
            self._number = mount.connection_of(self._mount)
            self._records.write(Record(self._loop.index, self._number, 0))
            self._connection.start()
            self._bind()
            self._mind_cache()
            if self._cached is not None:
                self._cached.start()
            if self._keep.lasting and self._connection.file.resend:
                self._keep.put(self._key, [fuse, self._mount], self._note())
        except Taken:
            self._end_connection()
            self._records.forget(self._loop.index)
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                self._loop.unbind()
            self._take_down()
            raise

    def _number_it(self) -> None:
        self.devno = self._loop.devno
        self.node = Path(self._loop.node)
        self._key = f"{KEPT}{self.devno[1]}"

    def _bind(self) -> None:
        # a file that is open for direct I/O can do nothing else, in some kernels
        file = mount.open_in(self._mount, os.O_RDWR | (0 if self._cacheable else os.O_DIRECT))
        try:
            self._loop.bind(file, self._tag)
        finally:
            os.close(file)
        self._records.write(Record(self._loop.index, self._number, diskseq(self._loop.index)))

    def _mind_cache(self, *, adopted: bool = False) -> None:
        if self._cacheable:
            assert self._connection is not None
            assert self._helper is not None
            caching = self._backend.caching if isinstance(self._backend, MappedDevice) else None
            self._cached = CachedMode(
                self._loop, self._connection, self._mount, self._number, self._helper, caching, adopted=adopted
            )

    @property
    def index(self) -> int:
        return self._loop.index

    def _note(self) -> str:
        assert self._connection is not None
        note = {"index": self.index, "connection": self._number, "max_write": self._connection.max_write}
        if self._cacheable:
            note["cacheable"] = True
        return json.dumps(note)

    # ---- what a process before us had -----------------------------------------------------------------------------

    def _adopt(self, kept: Kept, minor: int | None) -> None:
        """Nothing here asks for an answer on the device: nobody gives one before `serve`."""
        note = json.loads(kept.note)
        fuse, self._mount = kept.fds
        self._number = note["connection"]
        try:
            self._loop = LoopDevice.adopt(note["index"])
        except OSError:
            mount.abort(self._number)
            self._keep.drop(f"{KEPT}{minor}")
            for fd in kept.fds:
                os.close(fd)
            raise
        self._number_it()
        self._cacheable = note.get("cacheable") is True
        self._connection = Connection(
            fuse, self._backend, self.devno, OWNER, max_write=note["max_write"], cacheable=self._cacheable
        )
        self._mind_cache(adopted=True)
        self._whole = False

    def serve(self) -> None:
        if not self._whole:
            assert self._connection is not None
            self._connection.resend()
            self._connection.start()
            if self._cached is not None:
                self._cached.start()

    def recover(self, later: Callable[[], None] | None, *, suspended: bool) -> None:
        if self._whole:
            return
        assert self._connection is not None
        self._whole = True
        self._connection.file.closed = later
        if not self._loop.bound:
            if later is not None:
                self._take_names()
                return  # its last close has come
            log.warning("%s: was about to be taken away, and is bound again", self.node)
            self._bind()
        self._to_stay = later is None and self._loop.goes_with_last_close
        backend = self._backend
        if self._loop.has_size():
            self._limits = (self._loop.block_size, backend.granularity, backend.discards)
        if self._shown is not None:
            self._show(*self._shown)
        if not suspended:
            self.settle()
        self._take_names()

    def _take_names(self) -> None:
        """Names that lead to the device and are not, or no longer, its own."""
        for name in self._nodes.leading_to(self.node):
            if name != self._name:
                self._nodes.take(name, self.node, self.devno)

    # ---- the device's life ----------------------------------------------------------------------------------------

    @property
    def readonly(self) -> bool:
        return self._loop.readonly

    def activate(self, name: str, readonly: bool | None, uuid: str = "") -> None:
        self._uuid = uuid
        assert self._connection is not None
        self._connection.file.activate()
        if self._whole:
            self._show(name, readonly)
        else:
            self._shown = name, readonly if self._shown is None or readonly is not None else self._shown[1]

    def _show(self, name: str, readonly: bool | None) -> None:
        assert self._connection is not None
        # kernels before 6.16 take the size that the inode had when it was last asked for
        os.fstat(self._mount)
        if self._cached is not None:
            self._cached.take_size(self._connection.file.size)
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
        if not self._whole:
            return
        if self._to_stay and not self._connection.parked:
            self._to_stay = False
            self._loop.stay()
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

    @property
    def why_direct(self) -> str | None:
        """Why writes are not cached; None when they are."""
        return "the daemon was not started for it" if self._cached is None else self._cached.why

    def recache(self) -> None:
        if self._cached is not None:
            self._cached.recache()

    def write_down(self) -> None:
        if self._cached is not None:
            self._cached.write_down()

    def rename(self, name: str, *, leave_node: bool = False) -> None:
        if self._shown is not None:
            self._shown = name, self._shown[1]
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

    # ---- the end --------------------------------------------------------------------------------------------------

    def remove(self, later: Callable[[], None] | None = None) -> None:
        if self._cached is not None:
            self._cached.hold()
        try:
            self._remove(later)
        except BaseException:
            if self._cached is not None and later is None:
                self._cached.go_on()
            raise

    def _remove(self, later: Callable[[], None] | None) -> None:
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
        if self._cached is not None:
            self._cached.go_on()

    def abandon(self) -> None:
        mount.abort(self._number)
        self._hide()
        self._take_names()
        self._loop.unbind(when_closed=True)
        self._take_down(patience=0)

    def close(self) -> bool:
        """The end of the program that serves: whoever still has the device open gets errors. False then."""
        try:
            self.remove()
            return True
        except OSError as error:
            log.warning("%s: %s", self.node, error)
        self.abandon()
        return False

    def _end_connection(self) -> None:
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1
        if self._connection is not None and not self._connection.join():
            log.error("%s: a serving thread is held up in its storage", self.node)

    def _take_down(self, patience: float = PATIENCE) -> None:
        """End the connection and remove the loop device, as far as they got."""
        if self._cached is not None:
            self._cached.end()
        # first: as long as somebody has the mount open, the connection does not end
        self._keep.drop(self._key)
        self._end_connection()
        try:
            self._loop.delete(patience)
            self._records.forget(self._loop.index)
        except OSError as error:
            log.warning("%s stays: %s", self.node, error)
        self._gone(self)
