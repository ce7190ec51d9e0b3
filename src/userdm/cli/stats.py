"""stats: there are no statistics, so a list or a report of them is empty."""

from __future__ import annotations

import sys

from userdm.cli.report import Report
from userdm.cli.session import Failed, Session

EMPTY = ("list", "report")
OTHERS = ("clear", "create", "delete", "group", "print", "ungroup", "update_filemap")


def stats(session: Session) -> None:
    command = session.arguments.pop(0)
    if command == "version":
        from userdm.cli.targets import version

        version(session)
        return
    if command == "help":
        from userdm.cli.help import help_

        session.arguments = []
        help_(session)
        return
    if command not in EMPTY + OTHERS:
        from userdm.cli.help import USAGE

        sys.stderr.write(f"Unknown stats command.\n{USAGE}")
        raise Failed
    for one, other in (("allprograms", "programid"), ("allregions", "regionid")):
        if session.flag(one) and session.flag(other):
            raise Failed(f"Please supply one of --{one} and --{other}")
    if command in OTHERS:
        raise Failed(f"Statistics are not kept here: stats {command} is not possible.")
    Report(session, "stats_name")
    for device, _ in session.each():
        if session.info(device) is None:
            raise Failed("Device does not exist.")


VERBS = {"stats": stats}
