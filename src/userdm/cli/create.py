"""create: a device, its table, and its first resume; all of it or nothing."""

from __future__ import annotations

from userdm.api.control import Device
from userdm.api.errors import ControlError
from userdm.api.names import check_new_name, check_uuid
from userdm.cli.session import Failed, Session, failure, refused
from userdm.cli.tabletext import read_table


def create(session: Session) -> None:
    if not session.arguments:
        raise Failed("Please provide a name for the new device.")
    name = refused(check_new_name, session.arguments[0])
    uuid = refused(check_uuid, session.options.value("uuid") or "")
    lines = [] if session.flag("notable") else read_table(session, session.arguments[1:])
    number = session.number()
    control = session.control
    minor = None if number is None else number[1]
    info = session.ioctl("create", Device(name, uuid=uuid), control.create, name, uuid, minor=minor)
    if lines:
        # by its number from here on, as libdevmapper does, so that a message has it
        device, named = Device(devno=info.devno), Device(name, devno=info.devno)
        try:
            session.ioctl("reload", named, control.load, device, lines, readonly=session.flag("readonly"))
            session.ioctl("resume", named, control.resume, device)
        except Failed as failed:
            raise _revert(session, device, named, failed) from None
    session.report(Device(name))


def _revert(session: Session, device: Device, named: Device, failed: Failed) -> Failed:
    try:
        session.control.remove(device)
        return failed
    except ControlError as error:
        second = failure("remove", named, error)
        return Failed(
            *failed.lines,
            *second.lines,
            "Failed to revert device creation.",
            detail="\n".join(filter(None, (failed.detail, second.detail))),
        )


VERBS = {"create": create}
