"""setgeometry: cylinders, heads, sectors and start, for programs that ask a disk for them."""

from __future__ import annotations

from errno import EINVAL, ENXIO

from userdm.api.errors import ControlError
from userdm.cli.session import Session, failure


def setgeometry(session: Session) -> None:
    device = session.take()
    numbers = session.arguments[:4]
    if session.info(device) is None:
        raise failure("setgeometry", device, ControlError(ENXIO))
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise failure("setgeometry", device, ControlError(EINVAL, f"geometry {' '.join(numbers)}: must be numbers"))
    cylinders, heads, sectors, start = map(int, numbers)
    session.ioctl("setgeometry", device, session.control.set_geometry, device, cylinders, heads, sectors, start)


VERBS = {"setgeometry": setgeometry}
