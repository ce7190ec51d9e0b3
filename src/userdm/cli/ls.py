"""ls: names and numbers of the devices."""

from __future__ import annotations

from userdm.api.control import Device
from userdm.api.names import unmangle
from userdm.cli.blockdev import namer
from userdm.cli.session import Session


def ls(session: Session) -> None:
    names = session.control.devices()
    if not names:
        session.write("No devices found\n")
    only = session.options.value("target")
    name_of = namer(session)
    for name, devno in names:
        if only is None:
            session.write(f"{unmangle(name)}\t({name_of(devno) or '%d:%d' % devno})\n")
            continue
        device = Device(name)
        _, records = session.ioctl("status", device, session.control.status, device, noflush=True)
        if any(kind == only for _, _, kind, _ in records):
            session.write(f"{unmangle(name)}\t(%d, %d)\n" % devno)


VERBS = {"ls": ls}
