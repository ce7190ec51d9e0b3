"""ls: names and numbers of the devices, or with --tree how they stand on each other."""

from __future__ import annotations

from userdm.cli.blockdev import namer
from userdm.cli.session import Session


def ls(session: Session) -> None:
    if session.flag("tree"):
        from userdm.cli import tree

        words = tree.chosen(session.options.value("options"))
        if not session.flag("target") and not session.options.value("exec"):
            tree.tree(session, words)
            return
    name_of = (lambda devno: None) if session.flag("tree") else namer(session)
    if session.flag("target") or session.flag("exec"):
        from userdm.cli.table import list_devices

        list_devices(session)
        return
    style = session.style
    session.write(
        "".join(
            f"{style.name(session.shown(name))}\t({name_of(devno) or '%d:%d' % devno})\n"
            for name, devno in session.devices()
        )
    )


VERBS = {"ls": ls}
