"""splitname: volume group, logical volume and layer of an LVM device's name."""

from __future__ import annotations

from userdm.cli.fields import Row
from userdm.cli.report import Report, repeated
from userdm.cli.session import Session


def splitname(session: Session) -> None:
    name, subsystem = [*session.arguments, "LVM"][:2]
    report = Report(session, "vg_name,lv_name,lv_layer", section="splitname")

    def fill() -> None:
        row = Row(session, None)
        row.split(subsystem, name)
        report.add(row)

    repeated(session, report, fill)


VERBS = {"splitname": splitname}
