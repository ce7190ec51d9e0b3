"""suspend, resume."""

from __future__ import annotations

from userdm.cli.session import Session


def suspend(session: Session) -> None:
    _each(session, "suspend")


def resume(session: Session) -> None:
    _each(session, "resume")


def _each(session: Session, word: str) -> None:
    act = session.control.suspend if word == "suspend" else session.control.resume
    flush, lockfs = not session.flag("noflush"), not session.flag("nolockfs")
    for device in session.wanted():
        if word == "suspend" and session.flag("checks"):
            # libdevmapper looks at what the device stands on first
            session.ioctl("deps", device, session.control.deps, device)
        info = session.ioctl(word, device, act, device, flush=flush, lockfs=lockfs)
        if word == "resume":
            session.set_read_ahead(info)
        session.report(device)


VERBS = {"suspend": suspend, "resume": resume}
