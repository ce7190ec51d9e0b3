"""mangle: rename devices whose names udev would not accept, or back again."""

from __future__ import annotations

from userdm.api import names
from userdm.api.control import Device
from userdm.cli.session import Failed, Session, refused


def mangle(session: Session) -> None:
    """--manglename says which form is wanted. Names are taken and shown here as the driver has them."""
    mode = (session.options.value("manglename") or "auto").lower()
    session.mode = "none"
    everything = not session.arguments and session.by_option() is None
    failed: list[str] = []
    any_failed = False
    for device, _ in session.each():
        try:
            _mangle(session, device, mode)
        except Failed as error:
            if not everything:
                raise
            # the others have their turn
            any_failed = True
            failed += error.lines
    if any_failed:
        raise Failed(*failed)


def _mangle(session: Session, device: Device, mode: str) -> None:
    info = session.control.info(device)
    if info is None:
        raise Failed
    name, uuid = info.name, info.uuid
    again = "seems to be mangled more than once. Manual intervention required to"
    if mode == "auto" and "\\x5cx" in name:
        raise Failed(f'The name "{name}" {again} rename the device.')
    if mode == "auto" and "\\x5cx" in uuid:
        raise Failed(f'The UUID "{uuid}" {again} correct the device UUID.')
    if mode == "none":
        new_name, new_uuid = names.unmangle(name), names.unmangle(uuid)
    else:
        new_name, new_uuid = refused(names.mangle, name), refused(names.mangle, uuid, what="UUID")
    if new_uuid != uuid:
        why = "Unable to change device UUID. The device must be deactivated first."
        raise Failed(f"{name}: {uuid}: UUID in incorrect form. ", why)
    if new_name == name:
        what = f"{uuid}: name and UUID" if uuid else "[no UUID]: name"
        session.write(f"{name}: {what} already in correct form\n")
        return
    session.write(f"{name}: renaming to {new_name}\n")
    session.ioctl("rename", Device(name), session.control.rename, Device(name), new_name)


VERBS = {"mangle": mangle}
