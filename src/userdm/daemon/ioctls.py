"""One command of the dm ioctl interface: its buffer checked, run, and answered. Follows ctl_ioctl of dm-ioctl.c.

The commands themselves are in `userdm.daemon.commands`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from userdm.abi import dm_ioctl as dm
from userdm.abi import frames
from userdm.abi.dm_ioctl import Header
from userdm.daemon.call import Call, Caller
from userdm.daemon.commands import COMMANDS, Command
from userdm.mapper.events import Events
from userdm.mapper.registry import Mapper

log = logging.getLogger(__name__)

MAX_DATA_SIZE = 1 << 30
"""Bytes, the kernel's limit: what is above ours, and below this, is out of memory."""
_NOT_FOR_INPUT = dm.BUFFER_FULL | dm.UEVENT_GENERATED | dm.SECURE_DATA | dm.DATA_OUT


class Ioctls:
    """``changed`` is called after each command that may have changed a device.

    Holds no lock: the mapper locks inside, device by device.
    """

    def __init__(self, mapper: Mapper, changed: Callable[[], None]) -> None:
        self._mapper = mapper
        self._changed = changed

    @property
    def events(self) -> Events:
        return self._mapper.events

    def execute(self, nr: int, buffer: bytearray, caller: Caller) -> tuple[int, bytes, str]:
        """(errno, the bytes to copy back into the client's buffer, why in words)."""
        version = dm.pack_version(dm.VERSION)
        secret = False
        call: Call | None = None
        try:
            command = _command(nr, buffer)
            if nr == dm.DM_VERSION:
                return 0, version + buffer[len(version) : dm.DATA_OFFSET], ""
            header = Header.unpack(buffer)
            secret = bool(header.flags & dm.SECURE_DATA)
            call = _check(command, header, buffer, caller)
            try:
                command.run(self._mapper, call)
            finally:
                if command.changes:
                    self._changed()
            if not command.silent:
                answer = call.answer()
            else:
                answer = b"" if secret else version + buffer[len(version) : dm.DATA_OFFSET]
        except OSError as error:
            return error.errno or errno.EIO, version, words(error)
        except Exception as error:  # a bug in one target must not take the other devices' daemon away
            if secret:
                log.error("ioctl %d, of which nothing is told: %s", nr, type(error).__name__)
                return errno.EIO, version, f"internal error: {type(error).__name__}"
            log.exception("ioctl %d", nr)
            return errno.EIO, version, f"internal error: {error!r}"
        finally:
            if secret:
                wipe(buffer)
                if call is not None:
                    wipe(call.payload)
        return 0, answer, ""


def wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))


def _command(nr: int, buffer: bytearray) -> Command:
    """The first thing is the version, whatever the command; then whether there is such a command at all."""
    asked = dm.unpack_version(buffer)
    if asked[0] != dm.VERSION[0] or asked[1] > dm.VERSION[1]:
        theirs, ours = (".".join(map(str, version)) for version in (asked, dm.VERSION))
        raise OSError(errno.EINVAL, f"ioctl interface version {theirs}: must be {dm.VERSION[0]}.0.0 to {ours}")
    command = COMMANDS.get(nr)
    if command is None:
        raise OSError(errno.ENOTTY, f"ioctl {nr}: this driver has no such command")
    return command


def _check(command: Command, header: Header, buffer: bytearray, caller: Caller) -> Call:
    size = header.data_size
    if not dm.DATA_OFFSET <= size <= MAX_DATA_SIZE:
        raise OSError(errno.EINVAL, f"data_size {size}: must be {dm.DATA_OFFSET} to {MAX_DATA_SIZE}")
    if size > frames.MAX_BUFFER:
        raise OSError(errno.ENOMEM, f"data_size {size}: must be at most {frames.MAX_BUFFER}")
    secret = bool(header.flags & dm.SECURE_DATA)
    header.version = dm.VERSION
    header.flags &= ~_NOT_FOR_INPUT
    if command.one_name and header.name and header.uuid:
        raise OSError(errno.EINVAL, f"name {header.name!r} and uuid {header.uuid!r}: only one of them is allowed")
    payload = bytearray()
    if header.data_start >= dm.DATA_OFFSET:
        # beyond the frame the client's buffer is zeros, of which no decoder needs more than a few
        # filled in place: no copy is left that nobody wipes
        length = max(0, min(size, len(buffer)) - header.data_start)
        payload = bytearray(length + max(0, min(size - len(buffer), 16)))
        payload[:length] = memoryview(buffer)[header.data_start : header.data_start + length]
    header.data_size = dm.DATA_OFFSET
    return Call(header, size, payload, caller, secret=secret)


def words(error: OSError) -> str:
    """What the error says beyond its number."""
    text = error.strerror or ""
    if isinstance(error.filename, str) and error.filename:
        text = f"{error.filename}: {text}"
    return "" if error.errno and text == os.strerror(error.errno) else text
