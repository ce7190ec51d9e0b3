"""wait: return when the device's event counter is past a number."""

from __future__ import annotations

from userdm.cli.options import atoi
from userdm.cli.session import Session


def wait(session: Session) -> None:
    device = session.take()
    seen = atoi(session.arguments[0]) if session.arguments else 0
    noflush = session.flag("noflush")
    session.ioctl("waitevent", device, session.control.wait, device, seen & 0xFFFFFFFF, noflush=noflush)
    session.report(device)


VERBS = {"wait": wait}
