"""Cached mode: the kernel's page cache above a device's FUSE file, while nobody can tell (contract 4).

The connection has FUSE's writeback cache, and the loop device decides: with direct I/O every request comes to us as
without any cache; without, a write is complete in the page cache and comes to us later. `LOOP_SET_DIRECT_IO` switches
under load. When the mode must end, everything is written down and forgotten before `recache` returns: what then
happens (a suspend, a snapshot, another table) finds a device as it would be had it always been direct.

What differs is what differs between a disk without and one with a volatile write cache: an error of the disk below
comes with the next flush. The room for what is dirty is claimed beforehand: see thin.claims.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

from userdm.export.connection import Connection
from userdm.export.helper import Helper, receive, send
from userdm.export.loop import LoopDevice
from userdm.mapper.caching import Caching
from userdm.thin.claims import LEAST_PAGES, Claim

log = logging.getLogger(__name__)

PERIOD = 0.5
"""Seconds between two looks at whether the mode can change."""
FAILED_SECONDS = 10.0
"""So long after a request failed nothing is cached: who writes is to see the next error himself."""
PAGE = 4096
PARTS = 1_000_000
"""The unit of max_ratio_fine."""
MOST = PARTS // 2
"""Of all that may be dirty on the machine: more, and those are held up who write down what is dirty, ourselves."""


class CachedMode:
    """One device's mode, and the thread that looks after it. Nothing here is called from a thread that serves."""

    def __init__(
        self,
        loop: LoopDevice,
        connection: Connection,
        mounted: int,
        number: int,
        helper: Helper,
        caching: Caching | None,
        *,
        adopted: bool = False,
    ) -> None:
        """``mounted`` is the mount of the FUSE file, ``number`` the minor of its super block. ``adopted``: a process
        before us had it; whether it was cached is not asked, but ended. Nothing is done before `start`."""
        self._name = f"{loop.devno[0]}:{loop.devno[1]}"
        self._loop = loop
        self._connection = connection
        self._mounted = mounted
        self._bdi = Path(f"/sys/class/bdi/0:{number}")
        self._helper = helper
        self._session: socket.socket | None = None
        self._caching = caching
        self._adopted = adopted
        if adopted and caching is not None:
            caching.adopted = True
        self._started = False
        self._claim: Claim | None = None
        self._lock = threading.Lock()
        self._held = False
        self._lost = False
        """Something could not be written down, and who wrote it may not have been told."""
        self._failures = 0
        self._failed_at = float("-inf")
        self._why: str | None = "it has no table"
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._look, name=f"{self._name} cache", daemon=True)

    def start(self) -> None:
        """Requests are served from now on."""
        self._started = True
        if self._caching is not None:
            self._thread.start()

    @property
    def on(self) -> bool:
        return self._claim is not None or self._adopted

    @property
    def why(self) -> str | None:
        """Why the device is not cached; None when it is."""
        return None if self.on else self._why

    def take_size(self, size: int) -> None:
        """With the writeback cache the kernel keeps the size itself, and is told."""
        with self._lock:
            if self._started:
                self._call("resize", size=size)

    def write_down(self) -> None:
        """Everything that was written has reached the device when this returns. OSError when it could not."""
        if self.on:
            with self._lock:
                self._lost |= self._started and self._call("sync")["lost"]

    def recache(self) -> None:
        """What decides about the mode may have changed: if it must not be on, it is off when this returns."""
        with self._lock:
            self._settle(may_rise=False)

    def hold(self) -> None:
        """Off until `go_on`."""
        with self._lock:
            self._held = True
            self._settle(may_rise=False)

    def go_on(self) -> None:
        with self._lock:
            self._held = False

    def end(self) -> None:
        """Off for ever. May be called more than once."""
        self._ended = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self.hold()
        except OSError as error:
            log.error("device %s: what was cached is lost: %s", self._name, error)
        with self._lock:
            self._hang_up()

    def _look(self) -> None:
        while not self._ended:
            self._wake.wait(PERIOD)
            self._wake.clear()
            if self._ended:
                return
            try:
                with self._lock:
                    self._settle(may_rise=True)
            except OSError as error:
                log.error("device %s: cached mode: %s", self._name, error)

    # with the lock held

    def _why_direct(self) -> str | None:
        failures = self._connection.failures
        if failures != self._failures:
            self._failures, self._failed_at = failures, time.monotonic()
        if self._held:
            return "it is being removed"
        if self._adopted:
            return "it was taken over"
        if time.monotonic() < self._failed_at + FAILED_SECONDS or self._connection.file.unreported:
            return "a request failed a moment ago"
        return "it has no table" if self._caching is None else self._caching.why_direct()

    def _settle(self, *, may_rise: bool) -> None:
        if not self._started:
            return
        why = self._why_direct()
        if self.on and why is not None:
            self._fall(why)
        elif not self.on and why is None and may_rise:
            self._rise()
        elif not self.on and why is not None:
            self._why = why

    def _rise(self) -> None:
        assert self._caching is not None
        if self._connection.parked:
            return  # the switch waits for every request under way
        try:
            claim = self._caching.claim(self._wake.set, self.recache)
        except OSError as error:
            self._why = error.strerror
            return
        try:
            self._bound(claim.pages)
            self._call("up")
        except OSError as error:
            self._caching.release(claim)
            if self._why != error.strerror:
                log.warning("device %s cannot be cached: %s", self._name, error)
                self._why = error.strerror
            return
        self._claim = claim
        # whoever changed something since we looked has waited for the claim, or finds the mode on now
        why = self._why_direct()
        if why is not None:
            self._fall(why)

    def _fall(self, why: str) -> None:
        # the limit of dirty pages stays as it is: with a lower one the kernel makes the loop device's own thread wait,
        # and a deep queue took half a minute to become direct. What is written down is what was dirty at its beginning.
        self._lost |= self._call("down")["lost"]
        if self._lost:
            # for whoever wrote it: the next flush brings the error
            log.error("device %s: what was cached could not all be written down", self._name)
            self._connection.file.unreported, self._lost = True, False
        self._why = why
        self._give_back()

    def _give_back(self) -> None:
        claim, self._claim = self._claim, None
        self._adopted = False
        if claim is not None and self._caching is not None:
            self._caching.release(claim)

    def _call(self, call: str, **more: int) -> dict[str, Any]:
        """Have the helper do it; another one, when it dies."""
        for _ in range(2):
            if self._session is None:
                self._session = self._helper.session([self._mounted])
            if send(self._session, {"call": call, "loop": self._loop.index, **more}):
                answer = receive(self._session)
                if answer is not None:
                    if answer["errno"]:
                        raise OSError(answer["errno"], answer["text"])
                    return answer
            self._hang_up()
        raise OSError(errno.EIO, "the process that switches cached mode died")

    def _hang_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._helper.end(session)

    # how many pages may be dirty

    def _bound(self, pages: int | None) -> None:
        """OSError when the kernel cannot be told."""
        if pages is None:
            with contextlib.suppress(OSError):  # then it keeps to what it does by itself, which is less
                self._limit(MOST)
            return
        parts = pages * PARTS // _most_dirty()
        if parts < 1 or pages < LEAST_PAGES:
            raise OSError(errno.ENOSPC, "its pool has too little space to spare")
        self._limit(min(parts, MOST))

    def _limit(self, parts: int) -> None:
        (self._bdi / "strict_limit").write_text("1")
        (self._bdi / "max_ratio_fine").write_text(str(parts))


def _most_dirty() -> int:
    """Pages: the kernel's limit for all dirty pages is never above this, of which ours is a part."""
    limit = int(Path("/proc/sys/vm/dirty_bytes").read_text())
    if limit:
        return max(1, limit // PAGE)
    with open("/proc/meminfo", encoding="ascii") as lines:
        total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    return max(1, total * 1024 // PAGE * int(Path("/proc/sys/vm/dirty_ratio").read_text()) // 100)
