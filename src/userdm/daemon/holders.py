"""Who has the devices in use: for a daemon that is asked to stop."""

from __future__ import annotations

import os
from pathlib import Path

from userdm.export import holders, mountinfo
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper


def holders_of(mapper: Mapper) -> list[str]:
    """A line for each device that somebody outside of the mapper has open: its name, how often, and by whom."""
    found = []
    for device in mapper.devices():
        count = device.export.open_count()
        if count:
            who = ", ".join(_who(device))
            found.append(f"{device.name} is open {count} time{'s' if count > 1 else ''}{f' ({who})' if who else ''}")
    return found


def _who(device: MappedDevice) -> list[str]:
    mounts = [mount.point for mount in mountinfo.all_mounts() if mount.devno == device.devno]
    processes = sorted({pid for pid, _ in holders.descriptors(device.devno)} - {os.getpid()})
    return [f"mounted on {point}" for point in mounts] + [f"process {pid} {_comm(pid)}" for pid in processes]


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return "(gone)"
