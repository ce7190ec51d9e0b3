"""message: words for the target at a sector of the device."""

from __future__ import annotations

from userdm.cli.session import Failed, Session


def message(session: Session) -> None:
    device = session.take()
    sector, words = session.arguments[0], session.arguments[1:]
    if not (sector.isascii() and sector.isdigit()):
        raise Failed("Invalid sector.")
    answer = session.ioctl(
        "message",
        device,
        lambda: session.control.message(device, int(sector), " ".join(words), force=session.flag("force")),
    )
    if answer:
        session.write(answer if answer.endswith("\n") else f"{answer}\n")


VERBS = {"message": message}
