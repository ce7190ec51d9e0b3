"""The control client: a device mapper over the daemon's socket, in the kernel's words.

    from userdm.api.control import Control

    dm = Control(start=True)
    dm.create("zeros")
    dm.load("zeros", [(0, 2048, "zero", "")])
    dm.resume("zeros")
    dm.remove("zeros")

Sectors of 512 bytes throughout. A device is named by its name, or by a `Device` (uuid or device number).
Errors are OSErrors with the kernel's errno: see `userdm.api.errors`. One connection for each command, so one
Control may be used by many threads.

This module imports almost nothing on purpose: a verb of the command line costs little more than starting Python.
``_socket`` is the C half of socket, whose Python half costs as much as the rest together.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_PEEK, SOCK_STREAM, socket
from errno import EACCES, ECONNREFUSED, ECONNRESET, ENOENT, ENOTDIR, ENXIO, EPROTO, ETIMEDOUT
from time import monotonic, sleep

from userdm.abi import dm_ioctl as dm
from userdm.abi import frames, runtime
from userdm.abi.dm_ioctl import Header
from userdm.api.errors import ControlError, DaemonError, HungDaemon, NoDaemon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Union

    from userdm.abi.lists import Name

    Version = tuple[int, int, int]
    Record = tuple[int, int, str, str]
    Reply = tuple[int, bytes, str]
    Which = Union[str, "Device"]

PATIENCE = 3.0
"""Seconds that a daemon may take to say hello; also how long an answer is waited for before it is asked again
whether it lives at all."""
RESTART_SECONDS = 60.0
"""How long the next worker of a daemon may take until it serves."""
_BUFFER = 16 << 10
WE_MAKE_NO_NODES = 0x20 << 16
"""In the event number of resume, remove and rename, where libdevmapper has its udev flags: the caller does not
touch the nodes, so the daemon moves them before it answers."""
_LOOKS = frozenset(
    {
        dm.DM_VERSION,
        dm.DM_LIST_DEVICES,
        dm.DM_DEV_STATUS,
        dm.DM_DEV_WAIT,
        dm.DM_TABLE_DEPS,
        dm.DM_TABLE_STATUS,
        dm.DM_LIST_VERSIONS,
        dm.DM_GET_TARGET_VERSION,
    }
)
"""Commands that change nothing, and may be asked twice."""


class Device:
    """A device by its uuid or its number (or its name): one of the three."""

    __slots__ = ("name", "uuid", "devno")

    def __init__(self, name: str = "", *, uuid: str = "", devno: tuple[int, int] | None = None) -> None:
        self.name = name
        self.uuid = uuid
        self.devno = devno


class Info:
    """What a command about a device answers. Counts as the kernel has them; a flag not asked for is False."""

    __slots__ = ("name", "uuid", "devno", "open_count", "event_nr", "target_count", "_flags")

    def __init__(self, header: Header) -> None:
        self.name = header.name
        self.uuid = header.uuid
        self.devno = dm.decode_dev(header.dev)
        self.open_count = header.open_count
        self.event_nr = header.event_nr
        self.target_count = header.target_count
        self._flags = header.flags

    @property
    def suspended(self) -> bool:
        return bool(self._flags & dm.SUSPEND)

    @property
    def readonly(self) -> bool:
        return bool(self._flags & dm.READONLY)

    @property
    def live(self) -> bool:
        """There is a live table."""
        return bool(self._flags & dm.ACTIVE_PRESENT)

    @property
    def inactive(self) -> bool:
        """There is an inactive table."""
        return bool(self._flags & dm.INACTIVE_PRESENT)

    @property
    def deferred_remove(self) -> bool:
        """It goes with its last opener. In the answer to a deferred remove: it is not gone yet."""
        return bool(self._flags & dm.DEFERRED_REMOVE)


class Control:
    """Commands to the daemon of one runtime folder (by default this user's)."""

    def __init__(self, runtime_dir: str | None = None, *, start: bool = False, open_count: bool = True) -> None:
        """``start``: start the daemon when none runs; otherwise a command raises NoDaemon then.

        ``open_count``: whether an answer says how many have the device open, which the daemon takes a look around
        for; `info` has an option of its own.
        """
        self.runtime_dir = runtime_dir or runtime.runtime_dir()
        self._start = start
        self._flags = 0 if open_count else dm.SKIP_BDGET

    # ---- the connection ---------------------------------------------------------------------------------------

    def connect(self) -> socket:
        """A connection whose server said hello. NoDaemon, HungDaemon, or DaemonError when it refuses us.

        While a worker is replaced by the next one, connections wait in the keeper's socket, and so do we.
        """
        end = monotonic() + RESTART_SECONDS
        while True:
            worker = self._worker()
            try:
                return self._connect_once()
            except HungDaemon:
                # one that does not answer, and not one that is just about to
                if (worker and worker == self._worker()) or monotonic() > end:
                    raise
            except ConnectionError:
                if monotonic() > end:
                    raise NoDaemon(ENOENT, f"the daemon of {self.runtime_dir} has just ended") from None
            sleep(0.02)

    def _worker(self) -> bytes:
        """Which worker serves; empty while none does."""
        try:
            with open(f"{self.runtime_dir}/{runtime.WORKER}", "rb") as file:
                return file.read()
        except OSError:
            return b""

    def _connect_once(self) -> socket:
        sock = socket(AF_UNIX, SOCK_STREAM)
        try:
            sock.settimeout(PATIENCE)
            try:
                self._connect(sock)
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise self._hung(0) from None
                if error.errno not in (ENOENT, ENOTDIR, ECONNREFUSED):
                    raise DaemonError(error.errno, f"{self.runtime_dir}/{runtime.CONTROL}: {error.strerror}") from None
                raise NoDaemon(ENOENT, f"no daemon runs for {self.runtime_dir}") from None
            pid, uid, _ = frames.peer(sock)
            # whoever listens will be told of our tables: only root, ourselves, or whom we were pointed at
            if uid not in (0, os.geteuid()) and not os.environ.get("USERDM_RUNTIME_DIR"):
                raise DaemonError(EACCES, f"{self.runtime_dir}: the daemon there, pid {pid}, belongs to uid {uid}")
            try:
                refusal = frames.receive_greeting(sock)
            except TimeoutError:
                raise self._hung(pid) from None
            if refusal:
                raise DaemonError(refusal, f"the daemon of {self.runtime_dir}, pid {pid}, refuses uid {os.geteuid()}")
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self, sock: socket) -> None:
        """A daemon before whose door too many wait is tried again: with a timeout connect(2) does not wait itself."""
        end = monotonic() + PATIENCE
        while True:
            try:
                return frames.connect(sock, f"{self.runtime_dir}/{runtime.CONTROL}")
            except BlockingIOError:
                if monotonic() > end:
                    raise TimeoutError from None
                sleep(0.01)

    def ping(self) -> int:
        """The pid of the daemon, which is alive; errors as `connect`."""
        sock = self.connect()
        try:
            return frames.peer(sock)[0]
        finally:
            sock.close()

    def _hung(self, pid: int) -> HungDaemon:
        return HungDaemon(
            ETIMEDOUT,
            f"the daemon of {self.runtime_dir}{f', pid {pid},' if pid else ''} does not answer: "
            "`userdm daemon stop --kill` ends it and clears what it leaves behind",
            pid,
        )

    def _connect_or_start(self) -> socket:
        try:
            return self.connect()
        except NoDaemon:
            if not self._start:
                raise
        from userdm.api.start import start_daemon

        start_daemon(self.runtime_dir)
        return self.connect()

    def exchange(self, kind: int, nr: int, buffer: bytes, flags: int = 0, *, looks: bool = False) -> Reply:
        """One request and its reply: (errno, buffer, detail).

        A command may take as long as it needs; the daemon may not: while the answer is out, it is pinged. When the
        worker that was asked dies, one that only ``looks`` is asked again of the next.
        """
        sock, reply = self._converse(kind, nr, buffer, flags, looks=looks)
        sock.close()
        return reply

    def _converse(self, kind: int, nr: int, buffer: bytes, flags: int = 0, *, looks: bool) -> tuple[socket, Reply]:
        """A request, the reply, and the connection on which it came."""
        sock = self._connect_or_start()
        while True:
            heard = False
            try:
                frames.send_request(sock, kind, nr, buffer, flags=flags)
                heard = True
                self._wait_readable(sock)
                return sock, frames.receive_reply(sock)
            except TimeoutError:
                pid = frames.peer(sock)[0]
                sock.close()
                raise self._hung(pid) from None
            except ConnectionError:
                sock.close()
            except BaseException:
                sock.close()
                raise
            # what was not heard to its end was not begun
            if heard and not looks:
                raise self._ended(", so the command may or may not have been done")
            try:
                sock = self.connect()
            except NoDaemon:
                raise self._ended("") from None

    def _ended(self, doubt: str) -> DaemonError:
        text = f"the daemon of {self.runtime_dir} ended before it answered{doubt}: `userdm daemon log` may say why"
        return DaemonError(ECONNRESET, text)

    def _wait_readable(self, sock: socket) -> None:
        while True:
            try:
                sock.recv(1, MSG_PEEK)
                return
            except TimeoutError:
                pass
            try:
                self.ping()
            except NoDaemon:
                # about to end, it has no socket any more; if it dies, the connection says so
                continue

    def ioctl(self, nr: int, header: Header, payload: bytes = b"", *, force: bool = False) -> tuple[Header, bytes]:
        """One command with a buffer that is made larger until the answer fits; ControlError when it fails."""
        header.version = dm.VERSION
        header.data_start = dm.HEADER_SIZE
        room = max(_BUFFER, dm.HEADER_SIZE + len(payload))
        sent = header.flags | (self._flags if nr != dm.DM_DEV_STATUS else 0)
        while True:
            header.data_size, header.flags = room, sent
            errno, reply, detail = self.exchange(
                frames.IOCTL, nr, header.pack() + payload, frames.FORCE if force else 0, looks=nr in _LOOKS
            )
            if errno:
                raise ControlError(errno, detail)
            answer = Header.unpack(reply)
            if not answer.flags & dm.BUFFER_FULL or room >= frames.MAX_BUFFER:
                return answer, reply[answer.data_start : answer.data_size]
            room = min(room * 2, frames.MAX_BUFFER)

    def query(self, verb: str, **arguments: object) -> dict[str, Any]:
        """What the kernel's ABI has no command for: see `userdm.daemon.queries`."""
        import json

        request = json.dumps({"verb": verb, **arguments}).encode()
        errno, reply, detail = self.exchange(frames.QUERY, 0, request, looks=verb == "status")
        if errno:
            raise ControlError(errno, detail)
        try:
            answer = json.loads(reply)
        except ValueError as error:
            raise DaemonError(EPROTO, f"the daemon's answer is no JSON: {error}") from None
        if not isinstance(answer, dict):
            raise DaemonError(EPROTO, f"the daemon answered {type(answer).__name__}, must be an object")
        return answer

    # ---- devices ----------------------------------------------------------------------------------------------

    def create(self, name: str, uuid: str = "", *, minor: int | None = None) -> Info:
        """A device without a table. EBUSY when name or uuid is taken, ENXIO when the minor is."""
        header = Header(name=name, uuid=uuid)
        if minor is not None:
            header.flags |= dm.PERSISTENT_DEV
            header.dev = dm.encode_dev((0, minor))
        return Info(self.ioctl(dm.DM_DEV_CREATE, header)[0])

    def remove(self, device: Which, *, deferred: bool = False) -> Info:
        """EBUSY when the device is in use, unless ``deferred``: then it goes with its last opener."""
        header = _header(device, dm.DEFERRED_REMOVE if deferred else 0)
        header.event_nr = WE_MAKE_NO_NODES
        return Info(self.ioctl(dm.DM_DEV_REMOVE, header)[0])

    def remove_all(self, *, deferred: bool = False) -> None:
        """Remove every device that is not in use; ``deferred``: the others as well, with their last openers."""
        self.ioctl(dm.DM_REMOVE_ALL, Header(flags=dm.DEFERRED_REMOVE if deferred else 0))

    def rename(self, device: Which, new: str) -> Info:
        """ENXIO for a device that is not given by its name, as the kernel has it. The answer has the old one."""
        header = _header(device)
        header.event_nr = WE_MAKE_NO_NODES
        return Info(self.ioctl(dm.DM_DEV_RENAME, header, _string(new))[0])

    def set_uuid(self, device: Which, uuid: str) -> Info:
        """EINVAL when the device has one already."""
        header = _header(device, dm.UUID)
        header.event_nr = WE_MAKE_NO_NODES
        return Info(self.ioctl(dm.DM_DEV_RENAME, header, _string(uuid))[0])

    def suspend(self, device: Which, *, flush: bool = True, lockfs: bool = True) -> Info:
        return Info(self.ioctl(dm.DM_DEV_SUSPEND, _header(device, dm.SUSPEND | _how(flush, lockfs)))[0])

    def resume(self, device: Which, *, flush: bool = True, lockfs: bool = True) -> Info:
        """Make the inactive table live, if there is one, and let requests go on."""
        header = _header(device, _how(flush, lockfs))
        header.event_nr = WE_MAKE_NO_NODES
        return Info(self.ioctl(dm.DM_DEV_SUSPEND, header)[0])

    def set_geometry(self, device: Which, cylinders: int, heads: int, sectors: int, start: int) -> None:
        """Lost with the live table. EINVAL for numbers above 65535, 255, 255, and a start after that many sectors."""
        text = f"{cylinders} {heads} {sectors} {start}"
        self.ioctl(dm.DM_DEV_SET_GEOMETRY, _header(device), _string(text))

    def info(self, device: Which, *, inactive: bool = False, open_count: bool = True) -> Info | None:
        """None when there is no such device."""
        flags = (dm.QUERY_INACTIVE if inactive else 0) | (0 if open_count else dm.SKIP_BDGET)
        try:
            return Info(self.ioctl(dm.DM_DEV_STATUS, _header(device, flags))[0])
        except ControlError as error:
            if error.errno == ENXIO:
                return None
            raise

    def wait(self, device: Which, event_nr: int, *, noflush: bool = False) -> Info:
        """Return when the device's event number is not ``event_nr`` (any more)."""
        header = _header(device, dm.NOFLUSH if noflush else 0)
        header.event_nr = event_nr
        return Info(self.ioctl(dm.DM_DEV_WAIT, header)[0])

    def arm_poll(self) -> socket:
        """A socket that can be read from the next event on, of any device (or when the daemon ends).

        Events are what the kernel wakes poll(2) on its control node for: a device made, removed or renamed, an
        event of a target. What is to be read is of no use: close the socket, look at `names`, arm again.
        """
        request = Header(version=dm.VERSION).pack()
        sock, (errno, _, detail) = self._converse(frames.IOCTL, dm.DM_DEV_ARM_POLL, request, looks=True)
        if errno:
            sock.close()
            raise ControlError(errno, detail)
        return sock

    # ---- tables -----------------------------------------------------------------------------------------------

    def load(self, device: Which, lines: Sequence[Record], *, readonly: bool = False, secure: bool = False) -> Info:
        """Into the inactive slot: (start, length, type, arguments) for each line. Arguments are words between
        blanks, a backslash takes the next character as it is. ``secure``: there are secrets among them."""
        from userdm.abi.tables import pack_load

        header = _header(device, (dm.READONLY if readonly else 0) | (dm.SECURE_DATA if secure else 0))
        header.target_count = len(lines)
        return Info(self.ioctl(dm.DM_TABLE_LOAD, header, pack_load(lines))[0])

    def clear(self, device: Which) -> Info:
        """Drop the inactive table."""
        return Info(self.ioctl(dm.DM_TABLE_CLEAR, _header(device))[0])

    def deps(self, device: Which, *, inactive: bool = False) -> tuple[Info, list[tuple[int, int]]]:
        from userdm.abi.lists import unpack_deps

        header, payload = self.ioctl(dm.DM_TABLE_DEPS, _header(device, dm.QUERY_INACTIVE if inactive else 0))
        return Info(header), [dm.decode_dev(dev) for dev in unpack_deps(payload)] if payload else []

    def table(
        self, device: Which, *, inactive: bool = False, noflush: bool = False, secure: bool = False
    ) -> tuple[Info, list[Record]]:
        """The lines as `load` takes them, device numbers in place of paths."""
        flags = dm.STATUS_TABLE | (dm.SECURE_DATA if secure else 0)
        return self._status(device, flags, inactive, noflush)

    def status(
        self, device: Which, *, inactive: bool = False, noflush: bool = False, secure: bool = False
    ) -> tuple[Info, list[Record]]:
        """What each target says of its state: (start, length, type, text)."""
        return self._status(device, dm.SECURE_DATA if secure else 0, inactive, noflush)

    def measure(self, device: Which, *, inactive: bool = False, noflush: bool = False) -> tuple[Info, list[Record]]:
        """What each target would report to be measured (IMA)."""
        return self._status(device, dm.IMA_MEASUREMENT, inactive, noflush)

    def _status(self, device: Which, flags: int, inactive: bool, noflush: bool) -> tuple[Info, list[Record]]:
        from userdm.abi.tables import unpack_status

        flags |= (dm.QUERY_INACTIVE if inactive else 0) | (dm.NOFLUSH if noflush else 0)
        header, payload = self.ioctl(dm.DM_TABLE_STATUS, _header(device, flags))
        return Info(header), unpack_status(payload, header.target_count) if payload else []

    def message(self, device: Which, sector: int, text: str, *, force: bool = False) -> str | None:
        """A message to the target at ``sector``; what it answers, None when it has nothing to say.

        ``force``: take the snapshot of an origin that a program holds open for writing.
        """
        from userdm.abi.lists import pack_message, unpack_string

        header, payload = self.ioctl(dm.DM_TARGET_MSG, _header(device), pack_message(sector, text), force=force)
        return unpack_string(payload, "message's answer") if header.flags & dm.DATA_OUT else None

    # ---- the driver -------------------------------------------------------------------------------------------

    def version(self) -> Version:
        return self.ioctl(dm.DM_VERSION, Header())[0].version

    def devices(self) -> list[tuple[str, tuple[int, int]]]:
        """(name, device number) of every device, sorted by name."""
        return [(entry.name, dm.decode_dev(entry.dev)) for entry in self.names()]

    def names(self, *, prefix: str = "", uuid_prefix: str = "", uuids: bool = False) -> list[Name]:
        """Name, number and event number of every device whose name and uuid begin so, sorted by name.

        ``uuids``: with their uuids, which are None otherwise.
        """
        from userdm.abi.lists import unpack_names

        header = Header(name=prefix, uuid=uuid_prefix, flags=dm.UUID if uuids else 0)
        return unpack_names(self.ioctl(dm.DM_LIST_DEVICES, header)[1])

    def targets(self) -> list[tuple[str, Version]]:
        from userdm.abi.lists import unpack_versions

        return unpack_versions(self.ioctl(dm.DM_LIST_VERSIONS, Header())[1])

    def target_version(self, name: str) -> Version:
        """EINVAL for an unknown target."""
        from userdm.abi.lists import unpack_versions

        return unpack_versions(self.ioctl(dm.DM_GET_TARGET_VERSION, Header(name=name))[1])[0][1]


def _header(device: Which, flags: int = 0) -> Header:
    if isinstance(device, str):
        return Header(name=device, flags=flags)
    dev = 0 if device.devno is None else dm.encode_dev(device.devno)
    return Header(name=device.name, uuid=device.uuid, dev=dev, flags=flags)


def _how(flush: bool, lockfs: bool) -> int:
    return (0 if flush else dm.NOFLUSH) | (0 if lockfs else dm.SKIP_LOCKFS)


def _string(text: str) -> bytes:
    from userdm.abi.lists import pack_string

    return pack_string(text)
