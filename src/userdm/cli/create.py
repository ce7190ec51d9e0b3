"""create: a device, its table, and its first resume; all of it or nothing."""

from __future__ import annotations

from userdm.api.control import Device
from userdm.api.errors import ControlError
from userdm.api.names import check_created_name, check_uuid
from userdm.cli.session import Failed, Session, failure, refused
from userdm.cli.tabletext import read_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Record


def create(session: Session) -> None:
    if session.flag("concise"):
        from userdm.cli.concise import create_concise

        create_concise(session)
        return
    if not session.arguments:
        raise Failed("Please provide a name for the new device.")
    name = refused(check_created_name, session.arguments[0], session.mode)
    uuid = refused(check_uuid, session.options.value("uuid") or "", session.mode)
    lines = [] if session.flag("notable") else read_table(session, session.arguments[1:])
    number = session.number()
    create_device(session, name, uuid, lines, number, readonly=session.flag("readonly"))


def create_device(
    session: Session, name: str, uuid: str, lines: list[Record], number: tuple[int, int] | None, *, readonly: bool
) -> None:
    """A negative minor number is none."""
    control = session.control
    number = None if number is None or number[1] < 0 else number
    wanted = Device(name, uuid=uuid, devno=number)
    info = session.ioctl("create", wanted, control.create, name, uuid, minor=None if number is None else number[1])
    if lines:
        # the load goes by its number, as libdevmapper does it, so that a message has it
        device, named = Device(devno=info.devno), Device(name, devno=info.devno)
        try:
            session.ioctl("reload", named, control.load, device, lines, readonly=readonly)
            info = session.ioctl("resume", Device(name), control.resume, device)
        except Failed as failed:
            raise _revert(session, device, named, failed) from None
    session.set_read_ahead(info)
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
