"""What -o can call a device: its number, the kernel's name for it, or its own as a mapped device."""

from __future__ import annotations

import os

from userdm.api.names import unmangle
from userdm.cli.session import Failed, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from userdm.api.control import Info


def kernel_name(devno: tuple[int, int]) -> str | None:
    """loop3, sda1; None for a number that no block device has (our own, without root)."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{devno[0]}:{devno[1]}"))  # noqa: PTH115, PTH119
    except OSError:
        return None


def namer(session: Session) -> Callable[[tuple[int, int]], str | None]:
    """What ls and deps show of a device instead of its number; None where it is the number."""
    option = session.options.value("options") or "devno"
    if option == "devno":
        return lambda devno: None
    if option == "blkdevname":
        return kernel_name
    if option == "devname":
        mapped = {devno: unmangle(name) for name, devno in session.control.devices()}
        return lambda devno: mapped.get(devno) or kernel_name(devno)
    raise Failed(f"Unrecognised option {option}: must be devno, blkdevname or devname.")


def read_ahead(info: Info) -> int | None:
    """Sectors, from the block device that the kernel has for it; None when it has none."""
    try:
        with open(f"/sys/dev/block/{info.devno[0]}:{info.devno[1]}/bdi/read_ahead_kb") as file:
            return int(file.read()) * 2
    except (OSError, ValueError):
        return None
