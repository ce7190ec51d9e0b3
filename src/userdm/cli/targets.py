"""targets, target-version, version."""

from __future__ import annotations

import userdm
from userdm.api.control import Device
from userdm.cli.session import Session

LIBRARY = "1.02.185 (2022-05-18)"
"""The libdevmapper whose behaviour this program follows; scripts compare it."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Version


def targets(session: Session) -> None:
    for name, version in session.control.targets():
        _show(session, name, version)


def target_version(session: Session) -> None:
    for name in session.arguments:
        act = session.control.target_version
        _show(session, name, session.ioctl("target-version", Device(name), act, name))


def _show(session: Session, name: str, version: Version) -> None:
    session.write(f"{name:<16} v%d.%d.%d\n" % version)


def version(session: Session) -> None:
    driver = "%d.%d.%d" % session.control.version()
    session.write(f"Library version:   {LIBRARY}\n")
    session.write(f"Driver version:    {driver}\n")
    if not session.drop_in:
        session.write(f"userdm version:    {userdm.__version__}\n")


VERBS = {"targets": targets, "target-version": target_version, "version": version}
