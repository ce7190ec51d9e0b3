"""The commands of the dm ioctl interface, on a Mapper: one function each, in the interface's order.

Follows drivers/md/dm-ioctl.c. UEVENT_GENERATED is never set: there is no uevent, and libdevmapper then waits for none.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from userdm.abi import dm_ioctl as dm
from userdm.abi import lists, tables
from userdm.daemon import foreign
from userdm.daemon.call import Call
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import MAX_LINES, Line, split_arguments
from userdm.targets.base import Target
from userdm.targets.registry import all_targets, find_target

WE_MOVE_NODES = 0xFFFF | 0x20 << 16
"""In the event number of a rename: the base of a udev cookie, or the flag that libdevmapper's own fallback is off.
With neither it renames the node in /dev itself after the ioctl, and would lose one that has been renamed already."""
_GEOMETRY = re.compile(r"\s*(\d{1,19})\s+(\d{1,19})\s+(\d{1,19})\s+(\d{1,19})", re.ASCII)


def version(mapper: Mapper, call: Call) -> None:
    """The version is in every answer."""


def remove_all(mapper: Mapper, call: Call) -> None:
    """Every device that is not in use, over and over while that makes others free."""
    mapper.remove_all(deferred=call.has(dm.DEFERRED_REMOVE))


def list_devices(mapper: Mapper, call: Call) -> None:
    """Name and uuid of the request are what those of a device must begin with."""
    header = call.header
    wants_uuid = call.has(dm.UUID)
    names = [
        lists.Name(dm.encode_dev(device.devno), device.name, device.event_nr, device.uuid if wants_uuid else None)
        for device in mapper.devices()
        if device.name.startswith(header.name) and device.uuid.startswith(header.uuid)
    ]
    call.put(lists.pack_names(names), at_least=8)


def dev_create(mapper: Mapper, call: Call) -> None:
    header = call.header
    minor = dm.decode_dev(header.dev)[1] if call.has(dm.PERSISTENT_DEV) else None
    device = mapper.create(header.name, header.uuid, minor)
    call.set_flag(dm.INACTIVE_PRESENT, False)
    call.describe(device)


def dev_remove(mapper: Mapper, call: Call) -> None:
    """With the flag a device in use goes with its last opener; the flag in the answer says that it is still there."""
    device = call.find(mapper)
    deferred = call.has(dm.DEFERRED_REMOVE)
    try:
        mapper.remove(device, deferred=deferred)
    except OSError as error:
        if error.errno != errno.EBUSY or not deferred:
            raise
    else:
        call.set_flag(dm.DEFERRED_REMOVE, False)


def dev_rename(mapper: Mapper, call: Call) -> None:
    """By its name only; the answer has that old name, and the rest as it was sent."""
    new = call.string("new name or uuid")
    is_uuid = call.has(dm.UUID)
    what, limit = ("uuid", dm.UUID_LEN) if is_uuid else ("name", dm.NAME_LEN)
    if not new or len(os.fsencode(new)) >= limit or (not is_uuid and "/" in new):
        raise OSError(errno.EINVAL, f"new {what} {new!r}: must be 1 to {limit - 1} bytes{'' if is_uuid else ', no /'}")
    # what is in use is noticed before a device that does not exist
    if any((device.uuid if is_uuid else device.name) == new for device in mapper.devices()):
        raise OSError(errno.EBUSY, f"new {what} {new!r}: is in use")
    device = mapper.find(name=call.header.name)
    if is_uuid:
        mapper.set_uuid(device, new)
    else:
        mapper.rename(device, new, leave_node=not call.header.event_nr & WE_MOVE_NODES)
    call.describe(device)


def dev_suspend(mapper: Mapper, call: Call) -> None:
    """Suspend, or without the flag resume; what is so already only says so."""
    device = call.find(mapper)
    flush, lockfs = not call.has(dm.NOFLUSH), not call.has(dm.SKIP_LOCKFS)
    if call.has(dm.SUSPEND):
        mapper.suspend(device, flush=flush, lockfs=lockfs)
    else:
        mapper.resume(device, flush=flush, lockfs=lockfs)
        call.set_flag(dm.INACTIVE_PRESENT, False)
    call.describe(device)


def dev_status(mapper: Mapper, call: Call) -> None:
    call.describe(call.find(mapper))


def dev_wait(mapper: Mapper, call: Call) -> None:
    device = call.find(mapper)
    with device.waited(call.header.event_nr, call.caller.gone) as event_nr:
        if event_nr == call.header.event_nr:
            if device.removed:
                raise OSError(errno.ENXIO, f"{device.name} was removed")
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        call.describe(device)
        _put_status(call, device)


def table_load(mapper: Mapper, call: Call) -> None:
    device = call.find(mapper)
    count = call.header.target_count
    if not 0 < count <= MAX_LINES:
        raise OSError(errno.EOVERFLOW if count else errno.EINVAL, f"table has {count} lines, must be 1 to {MAX_LINES}")
    mapper.load(
        device,
        (Line(*record) for record in tables.read_load(call.payload, count)),
        readonly=call.has(dm.READONLY),
        secret=call.secret,
        root=call.caller.root,
        folder=call.caller.folder,
    )
    call.set_flag(dm.INACTIVE_PRESENT, True)
    call.describe(device)


def table_clear(mapper: Mapper, call: Call) -> None:
    device = call.find(mapper)
    mapper.clear(device)
    call.set_flag(dm.INACTIVE_PRESENT, False)
    call.describe(device)


def table_deps(mapper: Mapper, call: Call) -> None:
    if foreign.size_of(mapper, call.header) is not None:
        # a client that takes every loop device for a mapped one must find a leaf, not an error
        call.set_flag(dm.EXISTS, True)
        call.put(lists.pack_deps([]))
        return
    device = call.find(mapper)
    call.describe(device)
    with device.using(inactive=call.has(dm.QUERY_INACTIVE)) as table:
        if table is not None:
            call.put(lists.pack_deps([dm.encode_dev(devno) for devno in table.deps()]))


def table_status(mapper: Mapper, call: Call) -> None:
    sectors = foreign.size_of(mapper, call.header)
    if sectors is not None:
        call.set_flag(dm.EXISTS | dm.ACTIVE_PRESENT, True)
        major, minor = dm.decode_dev(call.header.dev)
        call.put_records([(0, sectors, "linear", f"{major}:{minor} 0" if call.has(dm.STATUS_TABLE) else "")])
        return
    device = call.find(mapper)
    call.describe(device)
    _put_status(call, device)


def _put_status(call: Call, device: MappedDevice) -> None:
    as_table, noflush, measured = call.has(dm.STATUS_TABLE), call.has(dm.NOFLUSH), call.has(dm.IMA_MEASUREMENT)
    records = []
    with device.using(inactive=call.has(dm.QUERY_INACTIVE)) as table:
        if table is None:
            return
        for entry in table.entries:
            target = entry.target
            if measured:
                text = target.measure_line()
            else:
                text = target.table_line() if as_table else target.status_line(noflush=noflush)
            records.append((entry.start, entry.length, target.name, text))
    call.put_records(records)


def list_versions(mapper: Mapper, call: Call) -> None:
    _put_versions(call, all_targets())


def get_target_version(mapper: Mapper, call: Call) -> None:
    _put_versions(call, [find_target(call.header.name)])


def _put_versions(call: Call, found: Sequence[type[Target]]) -> None:
    payload = lists.pack_versions((target.name, target.version) for target in found)
    # the kernel wants, and answers, as much room as a name could take with the worst of paddings
    room = sum(lists.VERSION_SIZE + len(os.fsencode(target.name)) + 8 for target in found)
    call.put(payload.ljust(room, b"\0"))


def target_msg(mapper: Mapper, call: Call) -> None:
    call.begin_answer()
    device = call.find(mapper)
    sector, text = lists.unpack_message(call.payload)
    words = split_arguments(text)
    if words and words[0].startswith("@"):
        answer = _core_message(mapper, device, words)
    else:
        answer = mapper.message(device, sector, text, force=call.caller.force)
    call.describe(device)
    if answer is not None:
        call.header.flags |= dm.DATA_OUT
        call.put_string(answer)


def _core_message(mapper: Mapper, device: MappedDevice, words: Sequence[str]) -> str | None:
    """What begins with @ goes to the core, not to a target. There are no statistics: the list of them is empty."""
    word = words[0].lower()
    if word == "@cancel_deferred_remove" and len(words) == 1:
        mapper.cancel_deferred_remove(device)
        return None
    if word == "@stats_list":
        return ""
    raise OSError(errno.EINVAL, f"message {' '.join(words)!r}: the core knows @cancel_deferred_remove and @stats_list")


def dev_set_geometry(mapper: Mapper, call: Call) -> None:
    device = call.find(mapper)
    text = call.string("geometry")
    numbers = _GEOMETRY.fullmatch(text)
    if numbers is None:
        raise OSError(errno.EINVAL, f"geometry {text!r}: must be <cylinders> <heads> <sectors> <start>")
    device.set_geometry(*(int(number) for number in numbers.groups()))


def dev_arm_poll(mapper: Mapper, call: Call) -> None:
    """What was sent comes back; the connection then stays until the next event: see `userdm.daemon.server`."""


@dataclass(frozen=True)
class Command:
    run: Callable[[Mapper, Call], None]
    one_name: bool = True
    """A name and a uuid exclude each other."""
    changes: bool = False
    """The state must be saved afterwards."""
    silent: bool = False
    """The buffer goes back as it was sent, but for the version."""


COMMANDS = {
    dm.DM_VERSION: Command(version, one_name=False, silent=True),
    dm.DM_REMOVE_ALL: Command(remove_all, one_name=False, changes=True, silent=True),
    dm.DM_LIST_DEVICES: Command(list_devices, one_name=False),
    dm.DM_DEV_CREATE: Command(dev_create, one_name=False, changes=True),
    dm.DM_DEV_REMOVE: Command(dev_remove, changes=True),
    dm.DM_DEV_RENAME: Command(dev_rename, changes=True),
    dm.DM_DEV_SUSPEND: Command(dev_suspend, changes=True),
    dm.DM_DEV_STATUS: Command(dev_status),
    dm.DM_DEV_WAIT: Command(dev_wait),
    dm.DM_TABLE_LOAD: Command(table_load, changes=True),
    dm.DM_TABLE_CLEAR: Command(table_clear, changes=True),
    dm.DM_TABLE_DEPS: Command(table_deps),
    dm.DM_TABLE_STATUS: Command(table_status),
    dm.DM_LIST_VERSIONS: Command(list_versions, one_name=False),
    dm.DM_TARGET_MSG: Command(target_msg),
    dm.DM_DEV_SET_GEOMETRY: Command(dev_set_geometry, changes=True, silent=True),
    dm.DM_DEV_ARM_POLL: Command(dev_arm_poll),
    dm.DM_GET_TARGET_VERSION: Command(get_target_version),
}
