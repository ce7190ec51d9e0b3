"""thin-pool: a metadata device and a data device, from which thin volumes take their blocks.

Table line:

    <start> <length> thin-pool <metadata device> <data device> <data block size> <low water mark>
        [<number of feature arguments> [<feature> ...]]

``data block size`` is in sectors: a multiple of 128 (64 KiB), from 128 to 2097152 (1 GiB); ``low water mark`` is in
data blocks. Features: skip_block_zeroing, ignore_discard, no_discard_passdown, read_only, error_if_no_space.
A metadata device whose first 4 KiB are zeros is formatted. At most 16 GiB of it are used.

Messages: create_thin ID; create_snap ID ORIGIN; delete ID; set_transaction_id OLD NEW; reserve_metadata_snap;
release_metadata_snap. Each is committed before it returns. A create_snap of an active origin freezes its file systems
for that moment.

Without a free data block the pool is out of data space: what needs none goes on, other writes wait until the device
has been made larger, or something was discarded or deleted. After 60 seconds they get ENOSPC, with error_if_no_space at
once. The daemon's environment variable USERDM_NO_SPACE_TIMEOUT says other seconds, 0 for ever. Without room for
metadata the pool is read-only until its metadata device is larger and it is resumed. When the metadata cannot be
written, it is read-only and needs thin_check --clear-needs-check-flag; when they cannot even be read, everything fails.
Each change of mode is an event, and so is each low water mark that is reached.

Status: <transaction id> <used>/<total metadata blocks> <used>/<total data blocks> <held metadata root or ->
<ro|rw|out_of_data_space> <discard_passdown|no_discard_passdown|ignore_discard>
<error_if_no_space|queue_if_no_space> <needs_check or -> <metadata low water mark>; or just Fail

I/O to the pool device itself goes to the data device.
Kernel document: Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from userdm.segment import Direct, Intent, Place, Segment, Wait
from userdm.targets.base import Context, Flushable, Target, TargetError, check_area, count, number
from userdm.thin.features import WORDS, Features
from userdm.thin.host import Host
from userdm.thin.modes import Mode
from userdm.thin.pool import Pool
from userdm.thin.water import metadata_low_water

BLOCK_MIN = 128
BLOCK_MAX = 2097152
MAX_DEV_ID = (1 << 24) - 1
MAX_U64 = (1 << 64) - 1
MAX_FEATURES = 4
"""One less than there are: so it is in the kernel."""


@dataclass(slots=True)
class _Open:
    """A pool, the mapped device that opened it, and how many tables of that device use it.

    Without a pool it is being opened or closed, outside of the lock: a slow disk holds up nobody else.
    """

    pool: Pool | None
    host: Host
    users: int


_pools: dict[int, _Open] = {}
"""Open pools by the id() of their metadata device, which they hold."""
_pools_lock = threading.Lock()


class ThinPool(Target):
    """The only line of its table; a live pool is replaced by a table of the same pool only."""

    name = "thin-pool"
    version = (1, 22, 0)
    syntax = "<metadata device> <data device> <data block size> <low water mark> [<#features> [<feature> ...]]"
    singleton = True
    immutable = True

    def __init__(self, context: Context, arguments: Sequence[str]) -> None:
        super().__init__(context, arguments)
        count(arguments, 4, None, self.syntax)
        if context.readonly:
            raise TargetError(errno.EINVAL, "a pool cannot be in a read-only table: the feature read_only is meant")
        if arguments[1] == arguments[0]:
            raise TargetError(errno.EINVAL, f"data device {arguments[1]!r}: is the metadata device, must be another")
        self.features = _features(arguments[4:])
        self.metadata_place = context.open("metadata device", arguments[0])
        self.data = context.open("data device", arguments[1])
        if self.data is self.metadata_place:
            raise TargetError(errno.EINVAL, f"data device {arguments[1]!r}: is the metadata device, must be another")
        check_area(context, "data device", arguments[1], self.data, 0, self.length)
        allowed = f"a number of sectors from {BLOCK_MIN} to {BLOCK_MAX}, a multiple of {BLOCK_MIN}"
        block = whole_number("data block size", arguments[2], BLOCK_MAX, what=allowed)
        if block < BLOCK_MIN or block % BLOCK_MIN:
            raise TargetError(errno.EINVAL, f"data block size {arguments[2]!r}: must be {allowed}")
        self.low_water = whole_number("low water mark", arguments[3], MAX_U64)
        self.pool = self._find_or_open(arguments, block)

    def _find_or_open(self, arguments: Sequence[str], block_sectors: int) -> Pool:
        host = self.context.host
        key = id(self.metadata_place)
        with _pools_lock:
            found = _pools.get(key)
            if found is not None:
                return self._share(found, host, arguments)
            if any(other.host is host for other in _pools.values()):
                raise TargetError(
                    errno.EINVAL, f"metadata device {arguments[0]!r}: a different pool cannot replace a pool"
                )
            mine = _pools[key] = _Open(None, host, 1)
        try:
            mine.pool = self._open(block_sectors)
            mine.pool.claims.restoring = self.context.restoring
        except BaseException:
            with _pools_lock:
                del _pools[key]
            raise
        return mine.pool

    def _share(self, found: _Open, host: Host, arguments: Sequence[str]) -> Pool:
        """Another table of the device that has the pool open."""
        if found.host is not host or found.pool is None:
            raise TargetError(errno.EBUSY, f"metadata device {arguments[0]!r}: already in use by a pool")
        if found.pool.data is not self.data:
            raise TargetError(errno.EBUSY, f"data device {arguments[1]!r}: must be the one that the pool has")
        if found.pool.mode is Mode.FAIL:
            raise TargetError(errno.EINVAL, f"metadata device {arguments[0]!r}: the pool has failed")
        if found.pool.features.discard != self.features.discard:
            raise TargetError(errno.EINVAL, "feature ignore_discard: must be as the pool has it, until it is removed")
        # a pool keeps its block size, whatever the line says
        found.users += 1
        return found.pool

    def _open(self, block_sectors: int) -> Pool:
        storage = self.context.storage(self.metadata_place)
        major, minor = self.context.host.devno
        keep, key = self.context.keep, f"redo:{major}:{minor}"
        try:
            return Pool(
                storage,
                self.data,
                self.context.storage(self.data),
                block_sectors,
                keep,
                key,
                may_format=not self.features.read_only,
            )
        except OSError as error:
            raise TargetError(error.errno, f"metadata device: {error.strerror}") from error

    @property
    def places(self) -> Sequence[Place]:
        return (self.data, self.metadata_place)

    @property
    def granule(self) -> int:
        return self.pool.block_bytes

    @property
    def discard_granularity(self) -> int:
        return self.pool.block_bytes

    @property
    def discards(self) -> bool:
        return self.features.discard and self.features.passdown and super().discards

    def resolve(self, offset: int, length: int, intent: Intent) -> Sequence[Segment]:
        gate = self.pool.claims.foreign()
        if gate is not None:
            return (Wait(length, gate),)
        # asked every time: what a volume's device has cached must be written down first
        return (Direct(length, self.data, offset, cacheable=False),)

    def above(self, place: Place, offset: int, length: int) -> Iterable[tuple[int, int]]:
        return [(offset, length)] if place is self.data else []

    def flush_points(self) -> Sequence[Flushable]:
        return (self.pool,)

    def table_line(self) -> str:
        words = self.features.words()
        listed = "".join(f"{word} " for word in words)
        where = f"{self.context.describe(self.metadata_place)} {self.context.describe(self.data)}"
        return f"{where} {self.pool.block_sectors} {self.low_water} {len(words)} {listed}"

    def status_line(self, *, noflush: bool = False) -> str:
        pool = self.pool
        if _failed(pool):
            return "Fail"
        if not noflush:
            pool.write_down()
        if not noflush and not pool.readonly and pool.gate is None:
            with suppress(OSError):  # the status says what became of it
                pool.commit()
        with pool.lock:
            if _failed(pool):
                return "Fail"
            used_metadata, metadata, used_data, data = pool.used()
            root = pool.metadata.held_root or "-"
            mode = "out_of_data_space" if pool.mode is Mode.OUT_OF_DATA_SPACE else "ro" if pool.readonly else "rw"
            discards = "discard_passdown" if pool.features.passdown else "no_discard_passdown"
            if not pool.features.discard:
                discards = "ignore_discard"
            full = "error_if_no_space" if pool.modes.error_if_no_space else "queue_if_no_space"
            check = "needs_check" if pool.metadata.needs_check else "-"
            return (
                f"{pool.metadata.transaction_id} {used_metadata}/{metadata} {used_data}/{data} {root} "
                f"{mode} {discards} {full} {check} {metadata_low_water(pool.device_metadata_blocks)} "
            )

    def message(self, arguments: Sequence[str], *, force: bool = False) -> str | None:
        pool = self.pool
        if pool.readonly:
            raise TargetError(errno.EOPNOTSUPP, "unable to service pool target messages in READ_ONLY or FAIL mode")
        messages = pool.messages
        match [arguments[0].lower(), *arguments[1:]]:
            case ["create_thin", dev_id]:
                messages.create_thin(device_id("device id", dev_id))
            case ["create_snap", dev_id, origin]:
                messages.create_snap(device_id("device id", dev_id), device_id("origin id", origin), force=force)
            case ["delete", dev_id]:
                messages.delete(device_id("device id", dev_id))
            case ["set_transaction_id", old, new]:
                messages.set_transaction_id(whole_number("old id", old, MAX_U64), whole_number("new id", new, MAX_U64))
            case ["reserve_metadata_snap"]:
                messages.reserve_metadata_snap()
            case ["release_metadata_snap"]:
                messages.release_metadata_snap()
            case _:
                raise TargetError(
                    errno.EINVAL,
                    f"message {' '.join(arguments)!r}: must be one of create_thin ID, create_snap ID ORIGIN, "
                    "delete ID, set_transaction_id OLD NEW, reserve_metadata_snap, release_metadata_snap",
                )
        return None

    def restored(self) -> None:
        self.pool.claims.restored()

    def presuspend(self) -> None:
        self.pool.suspend()

    def postsuspend(self) -> None:
        if not self.pool.readonly:
            self.pool.commit()

    def preresume(self) -> None:
        pool = self.pool
        features = self.features
        if features.passdown and not passdown_possible(self.data, pool.block_bytes):
            features = replace(features, passdown=False)
        pool.bind(self, features, self.low_water, self.context.host.event)
        pool.resize(self.length // pool.block_sectors)

    def resume(self) -> None:
        self.pool.resume()

    def close(self) -> None:
        key = id(self.metadata_place)
        with _pools_lock:
            mine = _pools[key]
            mine.users -= 1
            if mine.users:
                return
            mine.pool = None
        try:
            self.pool.close()
        finally:
            with _pools_lock:
                del _pools[key]


def _features(arguments: Sequence[str]) -> Features:
    """What follows the arguments that are counted is not looked at, as on the kernel."""
    if not arguments:
        return Features()
    wanted = number("number of feature arguments", arguments[0], 0, MAX_FEATURES)
    words = arguments[1 : 1 + wanted]
    if len(words) != wanted:
        raise TargetError(errno.EINVAL, f"number of feature arguments {wanted}: only {len(words)} follow")
    features = Features()
    for word in words:
        if word.lower() not in WORDS:
            raise TargetError(errno.EINVAL, f"feature {word!r}: must be one of {', '.join(WORDS)}")
        features = replace(features, **WORDS[word.lower()])
    return features


def whole_number(argument: str, value: str, most: int, *, what: str = "") -> int:
    """What kstrtoull of the kernel takes: digits, with a plus sign or without."""
    return number(argument, value[1:] if value.startswith("+") else value, 0, most, what=what)


def _failed(pool: Pool) -> bool:
    return pool.mode is Mode.FAIL


def device_id(argument: str, value: str) -> int:
    return whole_number(argument, value, MAX_DEV_ID)


def passdown_possible(data: Place, block_bytes: int) -> bool:
    """Whether the data device takes a discard, of a whole block at least: disable_passdown_if_not_supported."""
    most: int | None = getattr(data, "max_discard", None)
    return getattr(data, "discards", True) and (most is None or most >= block_bytes)
