"""remove: one or more devices; the first that cannot be removed ends it."""

from __future__ import annotations

import sys
from errno import EBUSY
from time import sleep

from userdm.api.control import Device
from userdm.api.errors import ControlError
from userdm.cli.session import Failed, Session, failure

RETRIES = 25
RETRY_SECONDS = 0.2


def remove(session: Session) -> None:
    for device in session.wanted():
        if session.flag("force"):
            _replace_by_error(session, device)
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


def _replace_by_error(session: Session, device: Device) -> None:
    """Give the device a table that fails every request, so that nobody has reason to keep it open.

    What goes wrong here is said and does not stop the removal.
    """
    control = session.control
    size = 0
    word = "table"
    try:
        for start, length, _, _ in control.table(device)[1]:
            size = start + length
    except ControlError as error:
        _say(failure(word, device, error))
    try:
        word = "reload"
        control.load(device, [(0, size, "error", "")])
        word = "resume"
        control.resume(device, flush=False, lockfs=False)
    except ControlError as error:
        _say(failure(word, device, error))


def _say(failed: Failed) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in failed.lines))


VERBS = {"remove": remove}
