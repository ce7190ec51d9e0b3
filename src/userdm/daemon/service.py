"""The daemon put together: mapper, exporter, state and socket; how it starts, stops, and answers queries."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import userdm
from userdm.abi import runtime
from userdm.daemon.holders import holders_of
from userdm.daemon.ioctls import Ioctls
from userdm.daemon.link import Link
from userdm.daemon.server import Server
from userdm.daemon.state import StateFile
from userdm.dataplane import Parked
from userdm.export.block import KEPT, index_in
from userdm.export.exporter import DeviceExporter
from userdm.mapper.registry import Mapper
from userdm.storage.keep import Keep, NoKeep

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
RESTORE_SECONDS = 10.0
"""After that, requests are taken although a device is not back: its storage may be waiting for one of them."""


class Service:
    """What serves, from taking the folders over to giving them back. The runtime folder's lock is held.

    ``link`` leads to the keeper; None where there is none.
    """

    def __init__(
        self, runtime_dir: Path, mapper_dir: Path, listener: socket.socket, link: Link | None = None, replaced: int = 0
    ) -> None:
        self._runtime_dir = runtime_dir
        self._mapper_dir = mapper_dir
        self._link = link
        self._replaced = replaced
        self._since = time.time()
        self._stop_lock = threading.Lock()
        self._finished = threading.Event()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        keep: Keep = link or NoKeep()
        self._exporter = DeviceExporter(
            runtime_dir, mapper_dir, as_root=os.geteuid() == 0, keep=keep, cacheable=runtime.cached()
        )
        self._mapper = Mapper(self._exporter, mapper_dir, keep)
        self._state = StateFile(runtime_dir, self._mapper)
        self._lost: dict[str, str] = {}
        self._event = threading.Event()
        self._server = Server(runtime_dir, listener, Ioctls(self._mapper, self._save), self._query)

    # ---- the start ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring the devices back. Returns when requests can be taken; OSError when that cannot be."""
        self._mapper_dir.mkdir(parents=True, exist_ok=True)
        failures: list[BaseException] = []

        def body() -> None:
            try:
                self._restore()
            except BaseException as error:
                failures.append(error)
                log.exception("restore")

        # in a thread of its own, since a storage may not answer before somebody resumes a device
        thread = threading.Thread(target=body, name="restore", daemon=True)
        thread.start()
        thread.join(RESTORE_SECONDS)
        if failures:
            raise failures[0]
        if thread.is_alive():
            log.warning("what is not back after %.0f s comes when it can", RESTORE_SECONDS)
        self._mapper.changed = self._save
        self._mapper.events.heard = self._event.set
        threading.Thread(target=self._save_events, name="state", daemon=True).start()
        log.info(
            "userdm %s, pid %d, runtime folder %s, mapper folder %s, %d devices",
            userdm.__version__,
            os.getpid(),
            self._runtime_dir,
            self._mapper_dir,
            len(self._mapper.devices()),
        )

    def _restore(self) -> None:
        link = self._link
        if link is not None and not link.predecessors.gone():
            self._exporter.abort_unfinished()
        spared = set() if link is None else {index_in(link.note(key)) for key in link.left(KEPT)}
        self._clear_stale(spared)
        if link is not None:
            link.predecessors.wait_still()
        self._lost = self._state.restore()
        self._mapper.restored()
        if link is not None:
            link.predecessors.wait_gone()
            self._mapper.recover()
            left = link.left()
            for key in left:
                log.info("%s was kept, and nothing needs it any more", key)
                link.drop(key)
            if any(key.startswith(KEPT) for key in left):
                self._clear_stale(set())
            link.settled()
        # what waited for an opener that has gone meanwhile need not wait any longer
        self._mapper.reap_soon()

    def _clear_stale(self, spared: set[int]) -> None:
        for line in self._exporter.clear_stale(spared):
            log.info("%s", line)

    def _save_events(self) -> None:
        """An event is told to whoever waits for it; the next worker must not tell it again, nor miss it."""
        while True:
            self._event.wait()
            self._event.clear()
            self._save()

    def run(self) -> None:
        """Serve until a stop, or until another worker takes over. Returns with everything closed or handed on."""
        signal.set_wakeup_fd(self._wake_write)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not (self._server.ending or self._server.leaving):
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    self._signalled(os.read(self._wake_read, 64))
                elif not self._server.leaving:
                    self._server.accept()
        self._server.close()
        self._finished.wait()
        # whoever asked us to stop gets his answer
        self._server.wait_idle(DRAIN_SECONDS)
        if self._link is not None and not self._server.leaving:
            self._link.bye()

    def _signalled(self, numbers: bytes) -> None:
        if not {signal.SIGTERM, signal.SIGINT} & set(numbers):
            return
        # in a thread: freezing, flushing and closing may take their time, and we must go on accepting
        threading.Thread(target=self._stop_by_signal, name="stop", daemon=True).start()

    def _stop_by_signal(self) -> None:
        try:
            self.stop(force=False)
        except OSError as error:
            log.warning("asked to end by a signal, and goes on: %s", error.strerror)
            self._commit()

    def _save(self) -> None:
        try:
            self._state.save()
        except OSError as error:
            # the command itself was done: its answer stands
            log.error("the state is not saved: %s", error)

    def _commit(self) -> None:
        """Make everything durable, device by device; one that is suspended has been flushed."""
        for device in self._mapper.devices():
            table = device.live
            if table is None or device.suspended or table.readonly:
                continue
            try:
                table.flush()
            except Parked:
                continue  # so is one that stands on it
            except OSError as error:
                log.error("%s: flush: %s", device.name, error)

    def stop(self, *, force: bool) -> int:
        """Close everything; how many devices the next daemon will bring back. EBUSY names who is in the way.

        With ``force`` whoever has a device open gets errors.
        """
        with self._stop_lock:
            if self._server.ending:
                raise OSError(errno.ESHUTDOWN, "the daemon is ending already")
            holders = holders_of(self._mapper)
            if holders and not force:
                raise OSError(errno.EBUSY, "devices are in use: " + "; ".join(holders))
            for holder in holders:
                log.warning("stopped by force while %s", holder)
            devices = self._mapper.devices()
            self._server.end()
            os.write(self._wake_write, b"\0")
            # the one that asks us to stop is a request as well
            if not self._server.wait_idle(DRAIN_SECONDS, except_for=1):
                log.warning("a request is still under way after %.0f s", DRAIN_SECONDS)
            _try("state", self._state.close)
            self._close()
            log.info("stopped, %d devices are kept for the next daemon", len(devices))
        self._finished.set()
        return len(devices)

    def _close(self) -> None:
        """Close the devices, the topmost first, each with its commit; then by force what is still in use."""
        for device in self._mapper.devices():
            if device.suspended and device.live is not None:
                # closing flushes, and nobody will send the resume that this would wait for
                with device.control:
                    _try(device.name, device.go)
        _try("closing", lambda: self._mapper.close(lambda text: log.warning("%s", text)))
        _try("exports", self._exporter.close)
        left = self._mapper.devices()
        while left:
            top = next((device for device in left if not device.users), left[0])
            _try(top.name, top.destroy)
            left.remove(top)

    def upgrade(self) -> int:
        """Have another worker take over, with the code that is installed now; returns our pid. OSError, and nothing
        has changed, when that one does not start."""
        if self._link is None:
            raise OSError(errno.EOPNOTSUPP, "without root nothing outlives the daemon: stop it, and start it again")
        self._link.prepare_successor()
        with self._stop_lock:
            if self._server.ending:
                raise OSError(errno.ESHUTDOWN, "the daemon is ending already")
            self._server.leave()
            self._link.leave()
            os.write(self._wake_write, b"\0")
            # the one that asks us is a request as well
            if not self._server.wait_idle(DRAIN_SECONDS, except_for=1):
                log.warning("a request is still under way after %.0f s: it is cut off", DRAIN_SECONDS)
            # a storage that does not answer must not keep us, who take no requests any more
            commit = threading.Thread(target=self._commit, name="commit", daemon=True)
            commit.start()
            commit.join(DRAIN_SECONDS)
            log.info("worker %d leaves", os.getpid())
        self._finished.set()
        return os.getpid()

    # ---- queries ----------------------------------------------------------------------------------------------

    def _query(self, request: dict[str, Any]) -> dict[str, Any]:
        verb = request.get("verb")
        if verb == "status":
            return self._status()
        if verb == "stop":
            return {"devices": self.stop(force=request.get("force") is True)}
        if verb == "upgrade":
            return {"worker": self.upgrade()}
        raise OSError(errno.EINVAL, f"query {verb!r}: must be status, stop or upgrade")

    def _status(self) -> dict[str, Any]:
        return {
            "version": userdm.__version__,
            "pid": os.getpid() if self._link is None else os.getppid(),
            "worker": os.getpid(),
            "replaced": self._replaced,
            "since": self._since,
            "runtime_dir": str(self._runtime_dir),
            "mapper_dir": str(self._mapper_dir),
            "devices": len(self._mapper.devices()),
            "not_brought_back": self._lost,
            "not_cached": self._not_cached() if runtime.cached() else None,
        }

    def _not_cached(self) -> dict[str, str]:
        """The devices that are not cached, and why."""
        reasons = {device.name: device.export.why_direct for device in self._mapper.devices()}
        return {name: reason for name, reason in reasons.items() if reason is not None}


def describe(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _try(what: str, act: Callable[[], None]) -> None:
    """At the end every step is taken, whatever became of the one before."""
    try:
        act()
    except Exception as error:
        log.error("%s: %s", what, error)
