"""The commands of the dm ioctl interface, on a Mapper: one function each, in the interface's order.

Follows drivers/md/dm-ioctl.c. UEVENT_GENERATED is never set: there is no uevent, and libdevmapper then waits for none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from userdm.abi import dm_ioctl as dm
from userdm.abi import lists, tables
from userdm.daemon.call import Call
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line, split_arguments
from userdm.targets.registry import all_targets, find_target


def version(mapper: Mapper, call: Call) -> None:
    """The version is in every answer."""


def remove_all(mapper: Mapper, call: Call) -> None:
    """Every device that is not in use, over and over while that makes others free."""
    progress = True
    while progress:
        progress = False
        for device in mapper.devices():
            try:
                mapper.remove(device, deferred=call.has(dm.DEFERRED_REMOVE))
                progress = True
            except OSError:
                continue


def list_devices(mapper: Mapper, call: Call) -> None:
    wants_uuid = call.has(dm.UUID)
    names = [
        lists.Name(dm.encode_dev(device.devno), device.name, device.event_nr, device.uuid if wants_uuid else None)
        for device in mapper.devices()
    ]
    call.put(lists.pack_names(names))


def dev_create(mapper: Mapper, call: Call) -> None:
    header = call.header
    minor = dm.decode_dev(header.dev)[1] if call.has(dm.PERSISTENT_DEV) else None
    call.describe(mapper.create(header.name, header.uuid, minor))


def dev_remove(mapper: Mapper, call: Call) -> None:
    device = call.device(mapper)
    mapper.remove(device, deferred=call.has(dm.DEFERRED_REMOVE))
    call.header.name, call.header.uuid, call.header.dev = device.name, device.uuid, 0
    call.header.flags &= ~dm.DEFERRED_REMOVE


def dev_rename(mapper: Mapper, call: Call) -> None:
    new = lists.unpack_string(call.payload, "new name or uuid")
    by_uuid = call.has(dm.UUID)
    limit = dm.UUID_LEN if by_uuid else dm.NAME_LEN
    if not new or len(os.fsencode(new)) >= limit or (not by_uuid and "/" in new):
        raise OSError(
            errno.EINVAL, f"new {'uuid' if by_uuid else 'name'} {new!r}: must be 1 to {limit - 1} bytes, no '/'"
        )
    # a name in use is noticed before a device that does not exist
    if not by_uuid and any(device.name == new for device in mapper.devices()):
        raise OSError(errno.EBUSY, f"new name {new!r}: is in use")
    device = call.device(mapper)
    old = device.name
    if by_uuid:
        mapper.set_uuid(device, new)
    else:
        mapper.rename(device, new)
    call.describe(device)
    call.header.name = old


def dev_suspend(mapper: Mapper, call: Call) -> None:
    """Suspend, or without the flag resume."""
    device = call.device(mapper)
    flush, lockfs = not call.has(dm.NOFLUSH), not call.has(dm.SKIP_LOCKFS)
    if call.has(dm.SUSPEND):
        mapper.suspend(device, flush=flush, lockfs=lockfs)
    elif device.suspended or device.inactive is not None:
        mapper.resume(device, flush=flush, lockfs=lockfs)
    call.describe(device)


def dev_status(mapper: Mapper, call: Call) -> None:
    call.describe(call.device(mapper))


def dev_wait(mapper: Mapper, call: Call) -> None:
    device = call.device(mapper)
    device.wait_event(call.header.event_nr, call.caller.gone)
    if device.removed:
        raise OSError(errno.ENXIO, f"{device.name} was removed")
    if call.caller.gone():
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))
    call.describe(device)
    _put_status(call, device)


def table_load(mapper: Mapper, call: Call) -> None:
    device = call.device(mapper)
    records = tables.unpack_load(call.payload, call.header.target_count)
    if not records:
        raise OSError(errno.EINVAL, "table has no lines, must be 1 or more")
    mapper.load(
        device,
        [Line(*record) for record in records],
        readonly=call.has(dm.READONLY),
        root=call.caller.root,
        folder=call.caller.folder,
    )
    call.describe(device)


def table_clear(mapper: Mapper, call: Call) -> None:
    device = call.device(mapper)
    mapper.clear(device)
    call.describe(device)


def table_deps(mapper: Mapper, call: Call) -> None:
    device = call.device(mapper)
    call.describe(device)
    table = call.table(device)
    if table is not None:
        call.put(lists.pack_deps([dm.encode_dev(devno) for devno in table.deps()]))


def table_status(mapper: Mapper, call: Call) -> None:
    device = call.device(mapper)
    call.describe(device)
    _put_status(call, device)


def _put_status(call: Call, device: MappedDevice) -> None:
    as_table, noflush = call.has(dm.STATUS_TABLE), call.has(dm.NOFLUSH)
    records = []
    with device.using(inactive=call.has(dm.QUERY_INACTIVE)) as table:
        if table is None:
            return
        for entry in table.entries:
            target = entry.target
            text = target.table_line() if as_table else target.status_line(noflush=noflush)
            records.append((entry.start, entry.length, target.name, text))
    call.put_records(records)


def list_versions(mapper: Mapper, call: Call) -> None:
    call.put(lists.pack_versions((target.name, target.version) for target in all_targets()))


def target_msg(mapper: Mapper, call: Call) -> None:
    device = call.device(mapper)
    sector, text = lists.unpack_message(call.payload)
    words = split_arguments(text)
    if words and words[0].startswith("@"):
        answer = _core_message(device, words[0])
    else:
        answer = mapper.message(device, sector, text, force=call.caller.force)
    call.describe(device)
    if answer is not None:
        call.header.flags |= dm.DATA_OUT
        call.put(lists.pack_string(answer))


def _core_message(device: MappedDevice, word: str) -> str | None:
    """What begins with @ goes to the core, not to a target. There are no statistics: the list of them is empty."""
    if word.lower() == "@cancel_deferred_remove":
        device.deferred_remove = False
        return None
    if word.lower() == "@stats_list":
        return ""
    raise OSError(errno.EINVAL, f"message {word!r}: the core knows @cancel_deferred_remove and @stats_list")


def get_target_version(mapper: Mapper, call: Call) -> None:
    target = find_target(call.header.name)
    call.put(lists.pack_versions([(target.name, target.version)]))


@dataclass(frozen=True)
class Command:
    run: Callable[[Mapper, Call], None]
    device: bool = True
    """It names a device, by one of name, uuid and number."""
    changes: bool = False
    """The state must be saved afterwards."""
    keeps_size: bool = False
    """``data_size`` stays as it was sent."""


COMMANDS = {
    dm.DM_VERSION: Command(version, device=False, keeps_size=True),
    dm.DM_REMOVE_ALL: Command(remove_all, device=False, changes=True, keeps_size=True),
    dm.DM_LIST_DEVICES: Command(list_devices, device=False),
    dm.DM_DEV_CREATE: Command(dev_create, device=False, changes=True),
    dm.DM_DEV_REMOVE: Command(dev_remove, changes=True),
    dm.DM_DEV_RENAME: Command(dev_rename, changes=True),
    dm.DM_DEV_SUSPEND: Command(dev_suspend, changes=True),
    dm.DM_DEV_STATUS: Command(dev_status),
    dm.DM_DEV_WAIT: Command(dev_wait),
    dm.DM_TABLE_LOAD: Command(table_load, changes=True),
    dm.DM_TABLE_CLEAR: Command(table_clear, changes=True),
    dm.DM_TABLE_DEPS: Command(table_deps),
    dm.DM_TABLE_STATUS: Command(table_status),
    dm.DM_LIST_VERSIONS: Command(list_versions, device=False),
    dm.DM_TARGET_MSG: Command(target_msg),
    dm.DM_GET_TARGET_VERSION: Command(get_target_version, device=False),
}
