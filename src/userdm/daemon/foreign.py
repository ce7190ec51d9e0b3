"""Loop devices that are not ours, asked about by number.

Our devices have the loop driver's major number, so libdevmapper and LVM take every loop device for a mapped one, and
an error about one of them is fatal to a whole `vgscan` or `dmsetup ls --tree`. Asked for its dependencies, such a
device has none; asked for its status, it is one linear target. Everything else stays ENXIO.
"""

from __future__ import annotations

from pathlib import Path

from userdm.abi import dm_ioctl as dm
from userdm.abi.dm_ioctl import Header
from userdm.mapper.registry import Mapper

LOOP_MAJOR = 7


def size_of(mapper: Mapper, header: Header) -> int | None:
    """Sectors of the bound loop device that is asked about by number alone; None for anything else."""
    if header.name or header.uuid or not header.dev:
        return None
    devno = dm.decode_dev(header.dev)
    if devno[0] != LOOP_MAJOR or mapper.by_number(devno) is not None:
        return None
    folder = Path(f"/sys/dev/block/{devno[0]}:{devno[1]}")
    try:
        if not (folder / "loop/backing_file").exists():
            return None
        return int((folder / "size").read_text())
    except (OSError, ValueError):
        return None
