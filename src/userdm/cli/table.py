"""table, status: what each target of a table was given, and what it says of itself."""

from __future__ import annotations

from errno import ENXIO

from userdm.api.control import Device
from userdm.api.errors import ControlError
from userdm.cli.info import show
from userdm.cli.session import Failed, Session, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Info, Record


def table(session: Session) -> None:
    _each(session, "table")


def status(session: Session) -> None:
    _each(session, "status")


def _each(session: Session, word: str) -> None:
    only = session.options.value("target")
    verbose = session.flag("verbose")
    for device, prefix in session.each():
        info, records = _ask(session, word, device)
        if verbose:
            show(session, info)
        before = "" if verbose else prefix
        for start, length, kind, text in records:
            if only in (None, kind):
                session.write(f"{before}{start} {length} {kind} {text}\n")
        if not records and only is None:
            session.write(f"{before}\n")
        if prefix and verbose:
            session.write("\n")


def _ask(session: Session, word: str, device: Device) -> tuple[Info, list[Record]]:
    act = session.control.table if word == "table" else session.control.status
    try:
        return act(device, inactive=session.flag("inactive"), noflush=session.flag("noflush"))
    except ControlError as error:
        if word == "status" and error.errno == ENXIO:
            raise Failed("Device does not exist.") from None
        raise failure(word, device, error) from None


VERBS = {"table": table, "status": status}
