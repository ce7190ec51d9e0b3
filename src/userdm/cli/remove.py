"""remove, remove_all, wipe_table: with --force a device in use loses its table at least, to one of errors only."""

from __future__ import annotations

import os
import sys
from errno import EBUSY
from time import sleep

from userdm.api.control import Device
from userdm.api.errors import ControlError
from userdm.cli.session import Failed, Session, failure

RETRIES = 25
RETRY_SECONDS = 0.2


def remove(session: Session) -> None:
    force = session.flag("force") and session.arguments
    if force and (session.options.value("udevcookie") or os.environ.get("DM_UDEV_COOKIE")):
        sys.stderr.write("WARNING: Use of cookie and --force is not compatible.\n")
    for device in session.wanted():
        if force:
            _try_to_wipe(session, device)
        _remove(session, device)


def _remove(session: Session, device: Device) -> None:
    tries = RETRIES if session.flag("retry") else 1
    while True:
        try:
            session.control.remove(device, deferred=session.flag("deferred"))
            return
        except ControlError as error:
            failed = failure("remove", device, error)
            tries -= 1
            if not tries or error.errno != EBUSY:
                raise failed from None
            _say(failed)
            sleep(RETRY_SECONDS)


def remove_all(session: Session) -> None:
    """What is in use stays, and is no failure."""
    control = session.control
    control.remove_all(deferred=session.flag("deferred"))
    if not session.flag("force"):
        return
    for name, _ in control.devices():
        _try_to_wipe(session, Device(name))
    control.remove_all(deferred=session.flag("deferred"))
    left = len(control.devices())
    if left:
        sys.stderr.write(f"Unable to remove {left} device(s).\n")


def wipe_table(session: Session) -> None:
    if not session.arguments:
        raise Failed("No device specified.")
    for device in session.wanted():
        _wipe(session, device)


def _try_to_wipe(session: Session, device: Device) -> None:
    """What goes wrong here is said and does not stop the removal."""
    try:
        _wipe(session, device)
    except Failed as failed:
        _say(failed)


def _wipe(session: Session, device: Device) -> None:
    """Give the device a table that fails every request, so that nobody has reason to keep it open."""
    control = session.control
    force = session.flag("force")
    flush, lockfs = not (force or session.flag("noflush")), not (force or session.flag("nolockfs"))
    size = 0
    try:
        size = sum(length for _, length, _, _ in control.table(device)[1])
    except ControlError as error:
        _say(failure("table", device, error))
    lines = [(0, size, "error", "")]
    session.ioctl("reload", device, control.load, device, lines, readonly=session.flag("readonly"))
    try:
        session.ioctl("resume", device, control.resume, device, flush=flush, lockfs=lockfs)
    except Failed:
        control.clear(device)
        raise


def _say(failed: Failed) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in failed.lines))


VERBS = {"remove": remove, "remove_all": remove_all, "wipe_table": wipe_table}
