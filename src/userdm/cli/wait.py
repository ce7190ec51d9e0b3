"""wait: return when the device's event counter is past a number."""

from __future__ import annotations

from userdm.cli.session import Session


def wait(session: Session) -> None:
    device = session.take()
    word = session.arguments[0] if session.arguments else "0"
    # as atoi reads it: what is no number is 0
    seen = int(word) if word.isascii() and word.isdigit() else 0
    noflush = session.flag("noflush")
    session.ioctl("waitevent", device, session.control.wait, device, seen & 0xFFFFFFFF, noflush=noflush)
    session.report(device)


VERBS = {"wait": wait}
