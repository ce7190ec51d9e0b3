"""info: a device's state, as lines or, with -c, as a row of a report."""

from __future__ import annotations

import sys

from userdm.abi.runtime import mapper_dirs
from userdm.cli.blockdev import chosen, read_ahead
from userdm.cli.session import Failed, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Info


def info(session: Session) -> None:
    if session.flag("columns"):
        from userdm.cli.report import report_devices

        report_devices(session)
        return
    chosen(session.options.value("options"))
    for device, _ in session.each():
        found = session.info(device)
        if found is None:
            raise Failed("Device does not exist.")
        show(session, found)


def show(session: Session, info: Info) -> None:
    """The lines, and an empty one after them."""
    style = session.style
    state = style.warning("SUSPENDED") if info.suspended else "ACTIVE"
    state += style.warning(" (READ-ONLY)") if info.readonly else ""
    state += style.warning(" (DEFERRED REMOVE)") if info.deferred_remove else ""
    tables = [word for word, there in (("LIVE", info.live), ("INACTIVE", info.inactive)) if there]
    ahead = read_ahead(info) if tables else None
    lines = [
        ("Name", style.name(session.shown(info.name))),
        ("State", state),
        ("Read Ahead", str(ahead)),
        ("Tables present", " & ".join(tables) or "None"),
        ("Open count", str(info.open_count)),
        ("Event number", str(info.event_nr)),
        ("Major, minor", "%d, %d" % info.devno),
        ("Number of targets", str(info.target_count)),
    ]
    if ahead is None:
        del lines[2]
    if not tables:
        # where libdevmapper looks for the read-ahead of a device that has none yet, and says so
        sys.stdout.flush()
        sys.stderr.write(f"{mapper_dirs()[0]}/{info.name}: open failed: No such file or directory\n")
    session.write("".join(f"{style.quiet(f'{name}:')}{' ' * (18 - len(name))}{value}\n" for name, value in lines))
    session.write(f"{style.quiet('UUID:')} {session.shown(info.uuid, 'UUID')}\n\n" if info.uuid else "\n")


VERBS = {"info": info}
