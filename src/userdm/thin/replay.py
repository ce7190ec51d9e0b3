"""Opening a pool's metadata as the process before us had it in memory: the last commit, and the redo log on top."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from userdm.pdata.block import BLOCK_SIZE
from userdm.storage import Storage
from userdm.storage.keep import Keep
from userdm.thin.metadata import PoolMetadata
from userdm.thin.redo import FORMAT, Kind, Record, RedoLog, changes_since


def open_metadata(
    storage: Storage, block_sectors: int, keep: Keep, key: str, *, may_format: bool = True
) -> PoolMetadata:
    """As PoolMetadata.open. With a keeper, what it has under the key is replayed, and a log goes on from there.

    Nothing is written to the storage, and the kept log stays as it is until the new one takes its place in one step:
    who is killed in between leaves everything to the next, who does the same again. EIO when the log does not fit.
    """
    if not keep.lasting:
        return PoolMetadata.open(storage, block_sectors, may_format=may_format, readonly=storage.readonly, whole=False)
    changes = _left(storage, keep, key)
    metadata = PoolMetadata.open(storage, block_sectors, may_format=may_format, readonly=storage.readonly, whole=False)
    if storage.readonly and not changes:
        return metadata
    log = metadata.redo = RedoLog(_superblock(storage))
    try:
        replay(metadata, changes)
        keep.put(key, log.fds, FORMAT)
    except BaseException:
        log.close()
        raise
    return metadata


def _superblock(storage: Storage) -> bytearray:
    block = bytearray(BLOCK_SIZE)
    storage.read(0, memoryview(block))
    return block


def _left(storage: Storage, keep: Keep, key: str) -> list[Record]:
    kept = keep.take(key)
    if kept is None:
        return []
    try:
        if kept.note != FORMAT:
            raise OSError(errno.EIO, f"redo log: it is a {kept.note[:40]!r}, expected {FORMAT!r}")
        return changes_since(_superblock(storage), kept.fds)
    finally:
        for fd in kept.fds:
            os.close(fd)


def replay(metadata: PoolMetadata, changes: Sequence[Record]) -> None:
    """Make the changes again, by the ordinary operations. EIO when one cannot be made.

    Two transactions become one, which takes no more room than they did; the estimates of room, which are made for
    less, are not asked.
    """
    opened: set[int] = set()
    metadata.room.trusting = True
    for record in changes:
        try:
            _again(metadata, record, opened)
        except OSError as error:
            raise OSError(
                errno.EIO, f"redo log: record {record.sequence}, kind {record.kind} {record.words}: {error.strerror}"
            ) from error
    metadata.room.trusting = False
    for dev in opened:
        metadata.close_thin(dev)


def _again(metadata: PoolMetadata, record: Record, opened: set[int]) -> None:
    a, b, c, d = record.words
    match record.kind:
        case Kind.MAP:
            opened.add(a)
            thin = metadata.open_thin(a)
            metadata.claim_data(c, d)
            thin.insert(b, c, d)
        case Kind.UNMAP:
            opened.add(a)
            metadata.open_thin(a).remove(b, c + 1)
        case Kind.CREATE_THIN:
            metadata.create_thin(a)
        case Kind.CREATE_SNAP:
            opened.add(b)
            metadata.create_snap(a, b)
        case Kind.DELETE:
            opened.discard(a)
            metadata.delete(a)
        case Kind.TRANSACTION_ID:
            metadata.set_transaction_id(a, b)
        case Kind.RESERVE:
            metadata.reserve_metadata_snap()
        case Kind.RELEASE:
            metadata.release_metadata_snap()
        case Kind.RESIZE_DATA:
            metadata.resize_data(a)
        case Kind.RESIZE_METADATA:
            metadata.resize_metadata(a)
        case Kind.NEEDS_CHECK:
            metadata.set_needs_check()
        case Kind.FAILED:
            metadata.fail(OSError(errno.EIO, "a flush or commit of the process before failed"))
        case _:
            raise OSError(errno.EINVAL, "no such kind")
