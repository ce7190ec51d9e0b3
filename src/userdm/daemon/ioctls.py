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
from userdm.mapper.registry import Mapper

log = logging.getLogger(__name__)

_NOT_FOR_INPUT = dm.BUFFER_FULL | dm.UEVENT_GENERATED | dm.SECURE_DATA | dm.DATA_OUT


class Ioctls:
    """``changed`` is called after each command that may have changed a device.

    Holds no lock: the mapper locks inside, device by device.
    """

    def __init__(self, mapper: Mapper, changed: Callable[[], None]) -> None:
        self._mapper = mapper
        self._changed = changed

    def execute(self, nr: int, buffer: bytes, caller: Caller) -> tuple[int, bytes, str]:
        """(errno, the bytes to copy back into the client's buffer, why in words)."""
        command = COMMANDS.get(nr)
        if command is None:
            return errno.ENOTTY, b"", f"ioctl {nr}: this driver has no such command"
        try:
            call = _check(command, buffer, caller)
            try:
                command.run(self._mapper, call)
            finally:
                if command.changes:
                    self._changed()
        except OSError as error:
            return error.errno or errno.EIO, dm.pack_version(dm.VERSION), words(error)
        except Exception as error:  # a bug in one target must not take the other devices' daemon away
            log.exception("ioctl %d", nr)
            return errno.EIO, dm.pack_version(dm.VERSION), f"internal error: {error!r}"
        return 0, call.answer(), ""


def _check(command: Command, buffer: bytes, caller: Caller) -> Call:
    header = Header.unpack(buffer)
    major, minor, _ = header.version
    if major != dm.VERSION[0] or minor > dm.VERSION[1]:
        asked, ours = (".".join(map(str, version)) for version in (header.version, dm.VERSION))
        raise OSError(errno.EINVAL, f"ioctl interface version {asked}: must be {dm.VERSION[0]}.0.0 to {ours}")
    size = header.data_size
    if size < dm.DATA_OFFSET:
        raise OSError(errno.EINVAL, f"data_size {size}: must be at least {dm.DATA_OFFSET}")
    if size > frames.MAX_BUFFER:
        raise OSError(errno.ENOMEM, f"data_size {size}: must be at most {frames.MAX_BUFFER}")
    header.version = dm.VERSION
    header.flags &= ~_NOT_FOR_INPUT
    if command.device and header.name and header.uuid:
        raise OSError(errno.EINVAL, f"name {header.name!r} and uuid {header.uuid!r}: only one of them is allowed")
    # beyond the frame the client's buffer is zeros, of which no decoder needs more than a few
    payload = buffer[header.data_start : size] + bytes(max(0, min(size - len(buffer), 16)))
    if header.data_start < dm.DATA_OFFSET:
        payload = b""
    if not command.keeps_size:
        header.data_size = dm.DATA_OFFSET
    return Call(header, size, payload, caller)


def words(error: OSError) -> str:
    """What the error says beyond its number."""
    text = error.strerror or ""
    if isinstance(error.filename, str) and error.filename:
        text = f"{error.filename}: {text}"
    return "" if error.errno and text == os.strerror(error.errno) else text
