"""Clears away what a dead daemon left: loop devices and links for root, dead mounts otherwise.

Nothing here waits for anybody: a connection that still has a server which does not serve is aborted first.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Container
from pathlib import Path

from userdm.export import mount, mountinfo
from userdm.export.loop import delete, unbind
from userdm.export.nodes import Nodes
from userdm.export.records import Record, Records, diskseq, is_bound


def clear_blocks(records: Records, nodes: Nodes, spared: Container[int] = ()) -> list[str]:
    """Every recorded loop device that is still the one recorded; not those with the indexes ``spared``."""
    return [_clear_block(record, records, nodes) for record in records.read() if record.index not in spared]


def _is_same(record: Record) -> bool:
    """Whether the loop device is still bound as it was when the record was written."""
    if not is_bound(record.index):
        return False
    if record.diskseq:
        return diskseq(record.index) == record.diskseq
    # died between binding and recording, or an old kernel: a file that is the root of its own mount is ours
    return Path(f"/sys/block/loop{record.index}/loop/backing_file").read_text().strip() == "/"


def _clear_block(record: Record, records: Records, nodes: Nodes) -> str:
    device = Path(f"/dev/loop{record.index}")
    for name in nodes.leading_to(device):
        nodes.take(name, device, (-1, -1))
    if _is_same(record):
        with contextlib.suppress(FileNotFoundError):  # ended by itself
            mount.abort(record.connection)
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            unbind(fd, str(device), when_closed=True)
        finally:
            os.close(fd)
    if is_bound(record.index):
        if _is_same(record):
            return f"{device} is dead and still in use; it goes when it is unmounted and closed"
        records.forget(record.index)
        return f"{device} belongs to somebody else by now"
    try:
        # a dead device may be open for long: there is a next time
        delete(record.index, patience=0.2)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return f"{device} is dead and still open"
        if error.errno != errno.ENODEV:  # somebody else has removed it
            raise
    records.forget(record.index)
    return f"{device} was left over and is removed"


def clear_files(folder: Path, tag: str) -> list[str]:
    """Every mount with our tag in the mapper folder, and the empty file under it."""
    found = []
    place = folder.resolve()
    for each in mountinfo.parse(os.getpid(), Path("/proc/self/mountinfo").read_bytes()):
        path = Path(each.point)
        if each.kind != "fuse.userdm" or not each.source.startswith(tag) or path.parent != place:
            continue
        # fusectl may be out of reach without root; the lazy unmount does not need it
        with contextlib.suppress(OSError):
            mount.abort(each.devno[1])
        mount.unmount_user(path, lazy=True)
        path.unlink(missing_ok=True)
        found.append(f"{path} was left over and is unmounted")
    return found
