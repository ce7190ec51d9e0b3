"""The metadata of a pool as XML, byte for byte as thin_dump writes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from userdm.storage import Storage
from userdm.thin.mapping import MAX_TIME, TIME_BITS
from userdm.thin.metadata import PoolMetadata


def _ranges(pool: PoolMetadata, dev: int) -> Iterator[tuple[int, int, int, int]]:
    """(first virtual block, first data block, length, time) of the mappings of a device, in order."""
    first = data = time = -1
    length = 0
    for leaf, start, stop in pool.trees.bottom.pieces(pool.open_thin(dev).root):
        for at in range(start, stop):
            vblock, value = leaf.keys[at], leaf.values[at]
            if vblock == first + length and value == data + length << TIME_BITS | time:
                length += 1
                continue
            if length:
                yield first, data, length, time
            first, data, time, length = vblock, value >> TIME_BITS, value & MAX_TIME, 1
    if length:
        yield first, data, length, time


def dump(pool: PoolMetadata, out: TextIO) -> None:
    """Write an open pool's metadata."""
    write = out.write
    sb = pool.superblock
    write(
        f'<superblock uuid="" time="{sb.time}" transaction="{sb.trans_id}" flags="{sb.flags}" '
        f'version="{sb.version}" data_block_size="{sb.data_block_size}" nr_data_blocks="{pool.nr_data_blocks}">\n'
    )
    for dev, details in pool.devices():
        write(
            f'  <device dev_id="{dev}" mapped_blocks="{details.mapped_blocks}" '
            f'transaction="{details.transaction_id}" creation_time="{details.creation_time}" '
            f'snap_time="{details.snapshotted_time}">\n'
        )
        for vblock, data, length, time in _ranges(pool, dev):
            if length == 1:
                write(f'    <single_mapping origin_block="{vblock}" data_block="{data}" time="{time}"/>\n')
            else:
                write(
                    f'    <range_mapping origin_begin="{vblock}" data_begin="{data}" '
                    f'length="{length}" time="{time}"/>\n'
                )
        write("  </device>\n")
    write("</superblock>\n")


def dump_storage(storage: Storage, out: TextIO) -> None:
    """Write the metadata that is on a device; nothing on it is changed. OSError where it is damaged."""
    dump(PoolMetadata.open(storage, None, may_format=False, readonly=True), out)
