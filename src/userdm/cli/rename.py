"""rename: a new name, or with --setuuid a uuid for a device that has none."""

from __future__ import annotations

from userdm.api.names import check_new_name, check_uuid
from userdm.cli.session import Failed, Session, refused


def rename(session: Session) -> None:
    device = session.take()
    if len(session.arguments) != 1:
        raise Failed("No device specified.")
    new = session.arguments[0]
    control = session.control
    if session.flag("setuuid"):
        uuid = refused(check_uuid, new)
        session.ioctl("rename", device, control.set_uuid, device, uuid)
    else:
        name = refused(check_new_name, new)
        session.ioctl("rename", device, control.rename, device, name)


VERBS = {"rename": rename}
