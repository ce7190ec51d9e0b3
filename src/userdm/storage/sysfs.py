"""What sysfs and the loop driver say about a block device."""

from __future__ import annotations

import fcntl
import os
import struct

LOOP_GET_STATUS64 = 0x4C05
LOOP_MAJOR = 7
# struct loop_info64 of <linux/loop.h>
_LOOP_INFO64 = struct.Struct("=QQQQQIIII64s64s32s2Q")


def queue_limit(device: int, name: str) -> int:
    """What the block layer's queue of the device, or of the disk that it is a part of, says; 0 when it is silent."""
    folder = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for queue in (f"{folder}/queue", f"{folder}/../queue"):
        try:
            with open(f"{queue}/{name}", encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return 0


def loop_backing_file(fd: int, device: int) -> str | None:
    """The path of the file behind the open loop device ``fd`` with number ``device``, checked to be that very file.

    None when it is no loop device, or when its file cannot be reached by a path (deleted, or in another mount
    namespace): then there is nothing that could be locked.
    """
    if os.major(device) != LOOP_MAJOR:
        return None
    try:
        info = _LOOP_INFO64.unpack(fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size)))
        folder = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
        with open(f"{folder}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            path = file.read().rstrip("\n")
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    # lo_device is the kernel's own encoding of the number (new_encode_dev), the same as in stat(2) below 2^20
    number = info[0]
    backing_dev = os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))
    return path if (found.st_dev, found.st_ino) == (backing_dev, info[1]) else None
