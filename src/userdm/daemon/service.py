"""The daemon put together: mapper, exporter, state and socket; how it starts, stops, and answers queries."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import userdm
from userdm.abi import runtime
from userdm.daemon.holders import holders_of
from userdm.daemon.ioctls import Ioctls
from userdm.daemon.server import Server
from userdm.daemon.state import StateFile
from userdm.export.exporter import DeviceExporter
from userdm.mapper.registry import Mapper

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0


class Service:
    """One daemon, from taking its folders over to giving them back. The caller holds the runtime folder's lock."""

    def __init__(self, runtime_dir: Path, mapper_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        self._mapper_dir = mapper_dir
        self._since = time.time()
        self._stop_lock = threading.Lock()
        self._finished = threading.Event()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        (runtime_dir / runtime.PID).write_text(f"{os.getpid()}\n")
        self._exporter = DeviceExporter(runtime_dir, mapper_dir, as_root=os.geteuid() == 0)
        for line in self._exporter.clear_stale():
            log.info("%s", line)
        mapper_dir.mkdir(parents=True, exist_ok=True)
        self._mapper = Mapper(self._exporter, mapper_dir)
        self._mapper.changed = self._save
        self._state = StateFile(runtime_dir, self._mapper)
        self._lost = self._state.restore()
        self._server = Server(runtime_dir, Ioctls(self._mapper, self._save), self._query)
        log.info(
            "userdm %s, pid %d, runtime folder %s, mapper folder %s, %d devices",
            userdm.__version__,
            os.getpid(),
            runtime_dir,
            mapper_dir,
            len(self._mapper.devices()),
        )

    def run(self) -> None:
        """Serve until a stop. Returns with everything closed."""
        signal.set_wakeup_fd(self._wake_write)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._server.ending:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    self._signalled(os.read(self._wake_read, 64))
                else:
                    self._server.accept()
        self._server.close()
        self._finished.wait()
        # whoever asked us to stop gets his answer
        self._server.wait_idle(DRAIN_SECONDS)

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
            self._state.close()
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
        self._exporter.close()
        left = self._mapper.devices()
        while left:
            top = next((device for device in left if not device.users), left[0])
            _try(top.name, top.destroy)
            left.remove(top)

    # ---- queries ----------------------------------------------------------------------------------------------

    def _query(self, request: dict[str, Any]) -> dict[str, Any]:
        verb = request.get("verb")
        if verb == "status":
            return self._status()
        if verb == "stop":
            return {"devices": self.stop(force=request.get("force") is True)}
        raise OSError(errno.EINVAL, f"query {verb!r}: must be status or stop")

    def _status(self) -> dict[str, Any]:
        return {
            "version": userdm.__version__,
            "pid": os.getpid(),
            "since": self._since,
            "runtime_dir": str(self._runtime_dir),
            "mapper_dir": str(self._mapper_dir),
            "devices": len(self._mapper.devices()),
            "not_brought_back": self._lost,
        }


def _try(what: str, act: Callable[[], None]) -> None:
    """At the end every step is taken, whatever became of the one before."""
    try:
        act()
    except Exception as error:
        log.error("%s: %s", what, error)
