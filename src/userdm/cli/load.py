"""load (reload), clear: the inactive table."""

from __future__ import annotations

from userdm.cli.session import Failed, Session
from userdm.cli.tabletext import read_table


def load(session: Session) -> None:
    if session.flag("notable"):
        raise Failed("--notable only available when creating new device.")
    if (session.flag("uuid") or session.flag("major")) and len(session.arguments) > 1:
        raise Failed("Too many command line arguments.")
    device = session.take("Please specify device.")
    lines = read_table(session, session.arguments)
    readonly = session.flag("readonly")
    session.ioctl("reload", device, session.control.load, device, lines, readonly=readonly)
    session.report(device)


def clear(session: Session) -> None:
    for device in session.wanted():
        session.ioctl("clear", device, session.control.clear, device)
        session.report(device)


VERBS = {"load": load, "reload": load, "clear": clear}
