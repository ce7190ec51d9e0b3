"""deps: the devices that a live table stands on."""

from __future__ import annotations

from userdm.cli.blockdev import namer
from userdm.cli.session import Session


def deps(session: Session) -> None:
    name_of = namer(session)
    verbose = session.flag("verbose")
    for device, prefix in session.each():
        _, numbers = session.ioctl("deps", device, session.control.deps, device, inactive=session.flag("inactive"))
        session.report(device)
        listed = "".join(f" ({name_of(number) or '%d, %d' % number})" for number in numbers)
        session.write(f"{'' if verbose else prefix}{len(numbers)} dependencies\t:{listed}\n")
        if prefix and verbose:
            session.write("\n")


VERBS = {"deps": deps}
