"""info: a device's state, as lines or, with -c, as a row of a report."""

from __future__ import annotations

from userdm.api.names import unmangle
from userdm.cli.blockdev import read_ahead
from userdm.cli.session import Failed, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Info


def info(session: Session) -> None:
    if session.flag("columns"):
        from userdm.cli.report import report

        report(session)
        return
    for device, _ in session.each():
        found = session.info(device)
        if found is None:
            raise Failed("Device does not exist.")
        show(session, found)


def show(session: Session, info: Info) -> None:
    """The lines, and an empty one after them."""
    state = "SUSPENDED" if info.suspended else "ACTIVE"
    state += " (READ-ONLY)" if info.readonly else ""
    state += " (DEFERRED REMOVE)" if info.deferred_remove else ""
    tables = [word for word, there in (("LIVE", info.live), ("INACTIVE", info.inactive)) if there]
    lines = [
        ("Name", unmangle(info.name)),
        ("State", state),
        ("Read Ahead", str(read_ahead(info))),
        ("Tables present", " & ".join(tables) or "None"),
        ("Open count", str(info.open_count)),
        ("Event number", str(info.event_nr)),
        ("Major, minor", "%d, %d" % info.devno),
        ("Number of targets", str(info.target_count)),
    ]
    if not tables or read_ahead(info) is None:
        del lines[2]
    session.write("".join(f"{name + ':':<18} {value}\n" for name, value in lines))
    session.write(f"UUID: {unmangle(info.uuid)}\n\n" if info.uuid else "\n")


VERBS = {"info": info}
