"""The superblock of thin metadata: block 0, of which fewer than 512 bytes are used, so that it is written at once."""

from __future__ import annotations

import errno
import struct
from contextlib import suppress
from dataclasses import dataclass, replace

from userdm.pdata.block import BLOCK_SIZE, SUPERBLOCK_SALT, checksum, seal
from userdm.pdata.counts import Root
from userdm.storage import Storage

MAGIC = 27022010
VERSION = 2
NEEDS_CHECK = 1
"""Flag: the metadata must pass thin_check --clear-needs-check-flag before it is written again."""

METADATA_BLOCK_SECTORS = BLOCK_SIZE // 512
MIN_DATA_BLOCK_SECTORS = 128
MAX_DATA_BLOCK_SECTORS = 2097152

_LAYOUT = struct.Struct("<IIQ16sQIIQQ128s128sQQIIQIII")


@dataclass
class Superblock:
    """The record, with the kernel's names. Sizes of blocks are in sectors."""

    data_block_size: int
    metadata_nr_blocks: int
    data_space_map: Root
    metadata_space_map: Root
    data_mapping_root: int
    device_details_root: int
    time: int = 0
    trans_id: int = 0
    held_root: int = 0
    flags: int = 0
    uuid: bytes = bytes(16)
    version: int = VERSION
    compat_flags: int = 0
    compat_ro_flags: int = 0
    incompat_flags: int = 0

    def pack(self, blocknr: int = 0) -> bytes:
        """The whole block, with its checksum."""
        block = bytearray(BLOCK_SIZE)
        _LAYOUT.pack_into(
            block,
            0,
            0,
            self.flags,
            blocknr,
            self.uuid,
            MAGIC,
            self.version,
            self.time,
            self.trans_id,
            self.held_root,
            self.data_space_map.pack(),
            self.metadata_space_map.pack(),
            self.data_mapping_root,
            self.device_details_root,
            self.data_block_size,
            METADATA_BLOCK_SECTORS,
            self.metadata_nr_blocks,
            self.compat_flags,
            self.compat_ro_flags,
            self.incompat_flags,
        )
        seal(block, blocknr, SUPERBLOCK_SALT)
        return bytes(block)

    def snapshot(self, blocknr: int) -> bytes:
        """The block that holds a metadata snapshot: the superblock without space maps, which it does not keep."""
        nothing = Root(0, 0, 0, 0)
        copy = replace(self, data_space_map=nothing, metadata_space_map=nothing, held_root=0)
        return copy.pack(blocknr)

    @classmethod
    def unpack(cls, block: bytes | bytearray, blocknr: int = 0) -> Superblock:
        """The record of a block that was read from ``blocknr``. OSError for anything but intact thin metadata."""
        what = "superblock" if blocknr == 0 else f"metadata snapshot in block {blocknr}"
        fields = _LAYOUT.unpack_from(block)
        csum, flags, found, uuid, magic, version, time, trans_id, held_root, data_root, metadata_root = fields[:11]
        mapping_root, details_root, data_block, metadata_block, nr_blocks, compat, compat_ro, incompat = fields[11:]
        if magic != MAGIC:
            # the kernel looks at the block number first, so that is what it reports for most other contents
            number = errno.EILSEQ if found == blocknr else errno.ENOTBLK
            raise OSError(number, f"{what}: magic number is {magic}, expected {MAGIC}: not thin metadata")
        if found != blocknr:
            raise OSError(errno.ENOTBLK, f"{what}: says that it is block {found}, expected {blocknr}")
        wanted = checksum(block, SUPERBLOCK_SALT)
        if csum != wanted:
            raise OSError(errno.EILSEQ, f"{what}: checksum is {csum:#010x}, expected {wanted:#010x}: torn or damaged")
        if not 1 <= version <= VERSION:
            raise OSError(errno.EINVAL, f"{what}: version is {version}, allowed are 1 to {VERSION}")
        if metadata_block != METADATA_BLOCK_SECTORS:
            raise OSError(
                errno.EINVAL,
                f"{what}: metadata block size is {metadata_block} sectors, allowed is {METADATA_BLOCK_SECTORS}",
            )
        return cls(
            data_block_size=data_block,
            metadata_nr_blocks=nr_blocks,
            data_space_map=Root.unpack(data_root),
            metadata_space_map=Root.unpack(metadata_root),
            data_mapping_root=mapping_root,
            device_details_root=details_root,
            time=time,
            trans_id=trans_id,
            held_root=held_root,
            flags=flags,
            uuid=uuid,
            version=version,
            compat_flags=compat,
            compat_ro_flags=compat_ro,
            incompat_flags=incompat,
        )

    def check_features(self, readonly: bool) -> None:
        """Refuse (EINVAL) what a newer kernel may have put there and we do not know."""
        if self.incompat_flags:
            raise OSError(
                errno.EINVAL,
                f"superblock: unsupported incompatible features {self.incompat_flags:#x}, allowed are none",
            )
        if self.compat_ro_flags and not readonly:
            raise OSError(
                errno.EINVAL,
                f"superblock: features {self.compat_ro_flags:#x} allow reading only; writing is allowed with none",
            )


def mark_needs_check(storage: Storage) -> None:
    """Say in the superblock that is on disk, whichever that is, that the metadata must be checked. OSError when there
    is none to be read; one that cannot be written stays as it is."""
    block = bytearray(BLOCK_SIZE)
    storage.read(0, memoryview(block))
    superblock = Superblock.unpack(block)
    if superblock.flags & NEEDS_CHECK:
        return
    superblock.flags |= NEEDS_CHECK
    with suppress(OSError):
        storage.write(0, superblock.pack())
        storage.flush()


def check_data_block_size(sectors: int) -> None:
    """EINVAL unless it is what a thin-pool line may have."""
    if not MIN_DATA_BLOCK_SECTORS <= sectors <= MAX_DATA_BLOCK_SECTORS or sectors % MIN_DATA_BLOCK_SECTORS:
        raise OSError(
            errno.EINVAL,
            f"data block size is {sectors} sectors, allowed are multiples of {MIN_DATA_BLOCK_SECTORS} "
            f"from {MIN_DATA_BLOCK_SECTORS} to {MAX_DATA_BLOCK_SECTORS}",
        )
