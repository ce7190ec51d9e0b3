"""mknodes: nothing to do, the daemon makes and removes the nodes itself, before a command returns."""

from __future__ import annotations

from userdm.cli.session import Session


def mknodes(session: Session) -> None:
    for given in session.arguments:
        session.named(given)


def node_path(session: Session, name: str) -> str:
    return f"{session.control.query('status')['mapper_dir']}/{name}"


VERBS = {"mknodes": mknodes}
