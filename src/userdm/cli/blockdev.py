"""What -o can call a device (its number, the kernel's name for it, its own as a mapped device), and its read-ahead."""

from __future__ import annotations

import os

from userdm.cli.options import abbreviated, atoi
from userdm.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from userdm.api.control import Info

WORDS = ("devno", "blkdevname", "devname")


def kernel_name(devno: tuple[int, int]) -> str | None:
    """loop3, sda1; None for a number that no block device has (our own, without root)."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{devno[0]}:{devno[1]}"))  # noqa: PTH115, PTH119
    except OSError:
        return None


def chosen(option: str | None) -> str:
    """Of several words, the last counts."""
    word = "devno"
    for each in abbreviated(option, WORDS, "Option not recognised"):
        word = each
    return word


def namer(session: Session) -> Callable[[tuple[int, int]], str | None]:
    """What ls and deps show of a device instead of its number; None where it is the number."""
    if session.flag("columns"):
        return lambda devno: None
    word = chosen(session.options.value("options"))
    if word == "devno":
        return lambda devno: None
    if word == "blkdevname":
        return kernel_name
    mapped = {devno: name for name, devno in session.control.devices()}
    return lambda devno: mapped.get(devno) or kernel_name(devno)


def _read_ahead_file(info: Info) -> str:
    return f"/sys/dev/block/{info.devno[0]}:{info.devno[1]}/bdi/read_ahead_kb"


def read_ahead(info: Info) -> int | None:
    """Sectors, from the block device that the kernel has for it; None when it has none."""
    try:
        with open(_read_ahead_file(info)) as file:
            return int(file.read()) * 2
    except (OSError, ValueError):
        return None


def write_read_ahead(info: Info, wish: str) -> None:
    """``wish``: sectors, +sectors for that many at least, auto for what it is, or none."""
    word = wish.strip().lower()
    if word == "auto":
        return
    sectors = 0 if word == "none" else atoi(word)
    before = read_ahead(info)
    if before is None or sectors < 0 or (word.startswith("+") and before >= sectors):
        return
    try:
        with open(_read_ahead_file(info), "w") as file:
            file.write(str((sectors + 1) // 2))
    except OSError:
        # not ours to set: the device is none the worse for it
        return
