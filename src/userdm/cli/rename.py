"""rename: a new name, or with --setuuid a uuid for a device that has none."""

from __future__ import annotations

from userdm.api.names import check_new_name, check_new_uuid
from userdm.cli.session import Failed, Session, refused


def rename(session: Session) -> None:
    *before, new = session.arguments
    device = session.named(before[0]) if before else session.by_option()
    if device is None:
        raise Failed("No device specified.")
    control = session.control
    if session.flag("setuuid"):
        uuid = refused(check_new_uuid, new, session.mode)
        session.ioctl("rename", device, control.set_uuid, device, uuid)
    else:
        name = refused(check_new_name, new, session.mode)
        session.ioctl("rename", device, control.rename, device, name)


VERBS = {"rename": rename}
