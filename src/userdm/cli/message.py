"""message: words for the target at a sector of the device."""

from __future__ import annotations

import sys

from userdm.cli.session import Failed, Session


def message(session: Session) -> None:
    device = session.take()
    sector, words = session.arguments[0].lstrip().removeprefix("+"), session.arguments[1:]
    if not (sector.isascii() and sector.isdigit()) or int(sector[:40]) >= 1 << 64:
        raise Failed("Invalid sector.")
    if not words:
        # said, and then left to the driver to refuse
        sys.stderr.write("No message supplied.\n")
    act, text = session.control.message, " ".join(words)
    answer = session.ioctl("message", device, act, device, int(sector), text, force=session.flag("force"))
    if answer:
        session.write(answer if answer.endswith("\n") else f"{answer}\n")


VERBS = {"message": message}
