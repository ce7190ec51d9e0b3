"""The metadata of a pool: what the kernel's dm-thin-metadata.c does, for one owner of the metadata device.

Not thread-safe: the pool holds one lock around every call, except SealedCommit.write().
Nothing here waits for a clean shutdown: what is not in a commit never happened.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from userdm.pdata.bitmap import Mask
from userdm.pdata.block import BLOCK_SIZE, SUPERBLOCK_SALT, Block, corrupt
from userdm.pdata.btree import BTree, ValueType
from userdm.pdata.data_map import DataSpaceMap
from userdm.pdata.manager import BlockManager
from userdm.pdata.metadata_map import MAX_BLOCKS, MetadataSpaceMap
from userdm.pdata.prune import delete, remove
from userdm.pdata.transaction import Transaction
from userdm.storage import Storage
from userdm.thin.details import Details
from userdm.thin.mapping import MAX_DATA_BLOCKS, MAX_TIME, MappingTrees, Run, ThinMetadata
from userdm.thin.redo import Kind, RedoLog
from userdm.thin.room import Room
from userdm.thin.sealed import SealedCommit
from userdm.thin.superblock import NEEDS_CHECK, Superblock, check_data_block_size

__all__ = ["Details", "PoolMetadata", "Run", "SealedCommit", "ThinMetadata"]

MAX_DEV_ID = (1 << 24) - 1

MIN_BLOCKS = 8
"""Metadata blocks that formatting takes. What data blocks want besides is found at the resume, as on the kernel."""


class HeldRoot(Block):
    """The metadata snapshot: a copy of the superblock in an ordinary block."""

    __slots__ = ()

    salt = SUPERBLOCK_SALT
    kind = "metadata snapshot"


class PoolMetadata:
    """An open pool's metadata. Data blocks and metadata blocks are counted in blocks."""

    def __init__(
        self, storage: Storage, superblock: Superblock, space: MetadataSpaceMap, data: DataSpaceMap, *, readonly: bool
    ) -> None:
        self.storage = storage
        self.readonly = readonly
        self.failed: OSError | None = None
        """Why nothing can be changed any more; what is in memory can still be read."""
        self.redo: RedoLog | None = None
        """Where changes are written down for the process that comes after this one."""
        self.superblock = superblock
        self.space = space
        self.data = data
        self.tx = space.tx
        self.root = superblock.data_mapping_root
        self.details_root = superblock.device_details_root
        self.trees = MappingTrees(self.tx, data)
        self.details_tree = BTree(self.tx, ValueType(Details.SIZE))
        self.room = Room(self)
        self._thins: dict[int, ThinMetadata] = {}
        self._touched: dict[int, ThinMetadata] = {}
        """Devices whose root or details the trees do not know yet."""
        self._closed: set[int] = set()
        """Devices to be forgotten as soon as the trees know them."""
        self.era = 0
        """Counts the moments from which on a way in the top level may be shared again."""
        self._superblock_changed = False
        self._sealed: SealedCommit | None = None

    # opening

    @classmethod
    def open(
        cls,
        storage: Storage,
        data_block_sectors: int | None,
        *,
        may_format: bool = True,
        readonly: bool = False,
        whole: bool = True,
    ) -> PoolMetadata:
        """Open a metadata device, or format it when its superblock is all zeros.

        ``data_block_sectors`` None takes what the superblock says. Nothing is written to what is refused: EPERM for
        an unformatted device that may not be formatted, EILSEQ or ENOTBLK for something else or a torn superblock,
        EINVAL for another block size, a newer version, unknown features, or a device that became smaller; who does
        not insist on a ``whole`` one gets that for reading only.
        """
        if storage.size < BLOCK_SIZE:
            raise OSError(errno.EINVAL, f"metadata device has {storage.size} bytes, at least {BLOCK_SIZE} are wanted")
        first = bytearray(BLOCK_SIZE)
        storage.read(0, memoryview(first))
        if not any(first):
            if not may_format or readonly or data_block_sectors is None:
                raise OSError(errno.EPERM, "metadata device is not formatted: its superblock is all zeros")
            return cls._format(storage, data_block_sectors)
        superblock = Superblock.unpack(first)
        if data_block_sectors is not None and superblock.data_block_size != data_block_sectors:
            raise OSError(
                errno.EINVAL,
                f"data block size is {data_block_sectors} sectors, but the pool was made with "
                f"{superblock.data_block_size}: changing it is not supported",
            )
        superblock.check_features(readonly)
        return cls._load(storage, superblock, readonly, whole)

    @classmethod
    def _load(cls, storage: Storage, superblock: Superblock, readonly: bool, whole: bool) -> PoolMetadata:
        check_data_block_size(superblock.data_block_size)
        metadata, data = superblock.metadata_space_map, superblock.data_space_map
        blocks = storage.size // BLOCK_SIZE
        if metadata.nr_blocks > blocks:
            if whole:
                raise OSError(
                    errno.EINVAL, f"metadata device has {blocks} blocks, too few: expected {metadata.nr_blocks}"
                )
            if metadata.bitmap_root >= blocks:
                raise OSError(
                    errno.EIO, f"metadata device has {blocks} blocks, its index is block {metadata.bitmap_root}"
                )
            readonly = True
        for what, root, most in (("metadata", metadata, MAX_BLOCKS), ("data", data, MAX_DATA_BLOCKS)):
            if root.nr_blocks > most or root.nr_allocated > root.nr_blocks:
                raise corrupt(
                    0,
                    f"{what} space map has {root.nr_blocks} blocks, {root.nr_allocated} in use; "
                    f"expected at most {most}, and no more in use than there are",
                )
        if superblock.time > MAX_TIME and not readonly:
            raise corrupt(0, f"the superblock's time is {superblock.time}, but mappings have room for {MAX_TIME}")
        if not readonly:
            # a process before us may have been killed between writing the superblock and flushing it: before a block
            # that only the state before needs is used again, that state must be the past on the medium too
            storage.flush()
        tx = Transaction(BlockManager(storage, metadata.nr_blocks))
        space = tx.space = MetadataSpaceMap(tx, metadata)
        return cls(storage, superblock, space, DataSpaceMap(tx, data), readonly=readonly)

    @classmethod
    def _format(cls, storage: Storage, data_block_sectors: int) -> PoolMetadata:
        check_data_block_size(data_block_sectors)
        nr_blocks = min(storage.size // BLOCK_SIZE, MAX_BLOCKS)
        if nr_blocks < MIN_BLOCKS:
            raise OSError(errno.ENOSPC, f"metadata device has {nr_blocks} blocks, at least {MIN_BLOCKS} are wanted")
        tx = Transaction(BlockManager(storage, nr_blocks))
        space = MetadataSpaceMap.create(tx, nr_blocks)
        data = DataSpaceMap.create(tx)
        superblock = Superblock(
            data_block_size=data_block_sectors,
            metadata_nr_blocks=nr_blocks,
            data_space_map=data.counts.root(),
            metadata_space_map=space.counts.root(),
            data_mapping_root=BTree(tx, ValueType(8)).empty(),
            device_details_root=BTree(tx, ValueType(Details.SIZE)).empty(),
        )
        pool = cls(storage, superblock, space, data, readonly=False)
        sealed = pool.seal()
        assert sealed is not None
        sealed.write(storage, lambda: None)
        pool.finish(sealed, True)
        return pool

    # what the pool is

    @property
    def transaction_id(self) -> int:
        return self.superblock.trans_id

    @property
    def time(self) -> int:
        """How many snapshots were taken."""
        return self.superblock.time

    @property
    def needs_check(self) -> bool:
        return bool(self.superblock.flags & NEEDS_CHECK)

    @property
    def held_root(self) -> int:
        """The block of the metadata snapshot; 0 for none."""
        return self.superblock.held_root

    @property
    def data_block_sectors(self) -> int:
        return self.superblock.data_block_size

    @property
    def nr_data_blocks(self) -> int:
        return self.data.counts.nr_blocks

    @property
    def free_data_blocks(self) -> int:
        """Neither mapped nor reserved; those freed lately count, though they wait for their commit."""
        return self.data.nr_free

    @property
    def nr_metadata_blocks(self) -> int:
        return self.space.nr_blocks

    @property
    def free_metadata_blocks(self) -> int:
        """As in the status line: without the kernel's reserve."""
        return max(self.space.nr_free - self.room.reserve, 0)

    @property
    def nr_touched(self) -> int:
        """Devices that the commit will write down."""
        return len(self._touched)

    @property
    def drops_pending(self) -> bool:
        """Whether a shared tree node lost an owner that the last durable state still has."""
        return self.tx.dropped or (self._sealed is not None and self._sealed.dropped)

    def shared_node(self, blocknr: int) -> bool:
        """Whether a tree node has more than one owner."""
        return blocknr not in self.tx.fresh and self.space.count(blocknr) != 1

    def sole_reference(self, pblock: int) -> bool:
        """Whether a data block has one reference, now and in the last durable state."""
        if self.data.counts.get(pblock) != 1 or self.data.dropped.any(pblock, 1):
            return False
        return self._sealed is None or not self._sealed.dropped_data.any(pblock, 1)

    def devices(self) -> Iterator[tuple[int, Details]]:
        """Every thin device in order: (device id, details)."""
        for leaf, start, stop in self.details_tree.pieces(self.details_root):
            for at in range(start, stop):
                dev = leaf.keys[at]
                thin = self._thins.get(dev)
                yield dev, thin.details if thin else Details.unpack(leaf.value_bytes(at, at + 1))

    def open_thin(self, dev: int) -> ThinMetadata:
        """The device, the same object until it is closed; ENODATA."""
        self._closed.discard(dev)
        thin = self._thins.get(dev)
        if thin is not None:
            return thin
        details = self.details_tree.get(self.details_root, dev)
        if details is None:
            raise OSError(errno.ENODATA, f"there is no thin device {dev}")
        found = self.trees.top.find(self.root, dev)
        if found is None:
            raise corrupt(self.root, f"thin device {dev} has details, but no mapping tree")
        thin = ThinMetadata(self, dev, Details.unpack(details), found[0].values[found[1]])
        self._thins[dev] = thin
        return thin

    def close_thin(self, dev: int) -> None:
        """The device is not used any more; what was changed stays."""
        self._closed.add(dev)
        self._forget_closed()

    def _forget_closed(self) -> None:
        for dev in self._closed - self._touched.keys():
            self._closed.remove(dev)
            self._thins.pop(dev, None)

    # changing

    def check_writable(self) -> None:
        """EIO after a failure, EROFS when opened read-only, ENOMEM when the redo log has no room for a change."""
        self._check_usable()
        if self.redo is not None:
            self.redo.make_room()

    def _check_usable(self) -> None:
        if self.failed is not None:
            raise OSError(errno.EIO, f"metadata cannot be changed after an error: {self.failed.strerror}")
        if self.readonly:
            raise OSError(errno.EROFS, "metadata is open for reading only")

    def fail(self, error: OSError) -> None:
        """Nothing may be changed or committed any more; the first reason stays."""
        if self.failed is None:
            self.failed = error
            if self.redo is not None:
                self.redo.failed()

    def log(self, kind: Kind, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> None:
        """A change was made, and is to outlive this process."""
        if self.redo is not None:
            self.redo.append(kind, a, b, c, d)

    @contextmanager
    def all_or_broken(self) -> Iterator[None]:
        """An error from here on leaves a change half done: nothing may be changed or committed any more."""
        try:
            yield
        except OSError as error:
            self.fail(error)
            raise
        except BaseException as error:
            self.fail(OSError(errno.EIO, f"internal error: {error!r}"))
            raise

    def touch(self, thin: ThinMetadata) -> None:
        """The device's root or details changed."""
        self._touched[thin.dev_id] = thin

    def own(self, thin: ThinMetadata) -> None:
        """Make the way to the device in the top level ours, before its own tree is changed.

        Otherwise another holder of the top level (the metadata snapshot) would see its tree change.
        """
        if thin.owned != self.era:
            self.root = self.trees.top.own(self.root, thin.dev_id)
            thin.owned = self.era

    def _settle(self) -> None:
        """Tell the trees of every device that changed."""
        for dev, thin in sorted(self._touched.items()):
            root = thin.root.to_bytes(8, "little")
            self.root = self.trees.top.insert(self.root, dev, root)
            self.details_root = self.details_tree.insert(self.details_root, dev, thin.details.pack())
        self._touched.clear()
        self._forget_closed()
        self.era += 1

    def _check_new(self, dev: int) -> None:
        self.check_writable()
        if not 0 <= dev <= MAX_DEV_ID:
            raise OSError(errno.EINVAL, f"device id is {dev}, allowed are 0 to {MAX_DEV_ID}")
        if self.details_tree.find(self.details_root, dev) is not None:
            raise OSError(errno.EEXIST, f"thin device {dev} exists already")

    def _add(self, dev: int, root: int, details: Details) -> None:
        self.root = self.trees.top.insert(self.root, dev, root.to_bytes(8, "little"))
        self.details_root = self.details_tree.insert(self.details_root, dev, details.pack())

    def create_thin(self, dev: int) -> None:
        """A new device without any mapping. EEXIST, EINVAL, ENOSPC."""
        self._check_new(dev)
        self.room.create()
        with self.all_or_broken():
            details = Details(0, self.transaction_id, self.time, self.time)
            self._add(dev, self.trees.bottom.empty(), details)
        self.log(Kind.CREATE_THIN, dev)

    def create_snap(self, dev: int, origin: int) -> None:
        """A device that shares all blocks with another one as it is now. EEXIST, ENODATA, EINVAL, ENOSPC."""
        self._check_new(dev)
        thin = self.open_thin(origin)
        if self.time >= MAX_TIME:
            raise OSError(errno.EINVAL, f"the pool has seen {self.time} snapshots, as many as mappings can tell apart")
        self.room.create()
        with self.all_or_broken():
            self._settle()
            self.superblock.time += 1
            self.tx.inc(thin.root)
            details = Details(thin.mapped_blocks, self.transaction_id, self.time, self.time)
            self._add(dev, thin.root, details)
            thin.details.snapshotted_time = self.time
            self.touch(thin)
        self.log(Kind.CREATE_SNAP, dev, origin)

    def delete(self, dev: int) -> None:
        """Take a device away. ENODATA, ENOSPC."""
        self.check_writable()
        thin = self.open_thin(dev)
        self.room.delete(thin)
        with self.all_or_broken():
            self._settle()
            self.details_root = remove(self.details_tree, self.details_root, dev, dev + 1)
            self.root = remove(self.trees.top, self.root, dev, dev + 1)
            thin.deleted = True
            del self._thins[dev]
        self.log(Kind.DELETE, dev)

    def set_transaction_id(self, old: int, new: int) -> None:
        """EINVAL unless the pool's id is ``old``."""
        self.check_writable()
        if old != self.transaction_id:
            raise OSError(errno.EINVAL, f"transaction id is {self.transaction_id}, not {old}")
        if not 0 <= new < 1 << 64:
            raise OSError(errno.EINVAL, f"new transaction id is {new}, allowed are 0 to {(1 << 64) - 1}")
        self.superblock.trans_id = new
        self._superblock_changed = True
        self.log(Kind.TRANSACTION_ID, old, new)

    def set_needs_check(self) -> None:
        """The next commit says that the metadata must be checked."""
        self.superblock.flags |= NEEDS_CHECK
        self._superblock_changed = True
        self.log(Kind.NEEDS_CHECK)

    def resize_data(self, nr_blocks: int) -> None:
        """Grow the data device. EINVAL when it would shrink."""
        old = self.nr_data_blocks
        if nr_blocks == old:
            return
        self.check_writable()
        if not old <= nr_blocks <= MAX_DATA_BLOCKS:
            raise OSError(errno.EINVAL, f"data device has {nr_blocks} blocks, allowed are {old} to {MAX_DATA_BLOCKS}")
        self.room.grow(nr_blocks)
        with self.all_or_broken():
            self.data.extend(nr_blocks)
            self._superblock_changed = True
        self.log(Kind.RESIZE_DATA, nr_blocks)

    def resize_metadata(self, nr_blocks: int) -> None:
        """Grow into a larger metadata device, of which at most ``MAX_BLOCKS`` are used. EINVAL when it would shrink."""
        nr_blocks = min(nr_blocks, MAX_BLOCKS)
        old = self.nr_metadata_blocks
        if nr_blocks == old:
            return
        self.check_writable()
        most = self.storage.size // BLOCK_SIZE
        if not old <= nr_blocks <= most:
            raise OSError(errno.EINVAL, f"metadata device has {nr_blocks} blocks, allowed are {old} to {most}")
        with self.all_or_broken():
            self.space.extend(nr_blocks)
            self._superblock_changed = True
        self.log(Kind.RESIZE_METADATA, nr_blocks)

    # the metadata snapshot

    def reserve_metadata_snap(self) -> None:
        """Keep the trees as they are now, for programs that read them; EBUSY when there is one already."""
        self.check_writable()
        if self.held_root:
            raise OSError(errno.EBUSY, f"there is a metadata snapshot already, in block {self.held_root}")
        self.room.want(0, 1)
        with self.all_or_broken():
            self._settle()
            self.tx.inc(self.root)
            self.tx.inc(self.details_root)
            blocknr = self.space.allocate()
            self.tx.add(HeldRoot(blocknr, bytearray(self._image().snapshot(blocknr))))
            self.superblock.held_root = blocknr
            self._superblock_changed = True
        self.log(Kind.RESERVE)

    def release_metadata_snap(self) -> None:
        """Let go of it. EINVAL without one."""
        self.check_writable()
        held = self.held_root
        if not held:
            raise OSError(errno.EINVAL, "there is no metadata snapshot to release")
        snapshot = Superblock.unpack(self.tx.blocks.get(held, HeldRoot, HeldRoot).buffer, held)
        self.room.release()
        with self.all_or_broken():
            self._settle()
            delete(self.trees.top, snapshot.data_mapping_root)
            delete(self.details_tree, snapshot.device_details_root)
            self.tx.dec(held)
            self.superblock.held_root = 0
            self._superblock_changed = True
        self.log(Kind.RELEASE)

    # data blocks

    def reserve_data(self, count: int) -> tuple[int, int]:
        """Set free blocks aside, in memory: (first, how many up to ``count``), in one run; ENOSPC."""
        self.check_writable()
        if count < 1:
            raise OSError(errno.EINVAL, f"number of blocks is {count}, at least 1 is wanted")
        return self.data.reserve(count)

    def claim_data(self, block: int, count: int) -> None:
        """Set these very blocks aside, for a log that is replayed; EBUSY when they are not free."""
        self.check_writable()
        self.data.claim(block, count)

    def unreserve_data(self, block: int, count: int) -> None:
        """Reserved blocks are free again. EINVAL when they are not reserved."""
        self.data.unreserve(block, count)

    def release_data(self, runs: list[tuple[int, int]]) -> None:
        """Blocks that `finish` told of may be used again."""
        for block, count in runs:
            self.data.release(block, count)

    # committing

    def _image(self) -> Superblock:
        """The superblock, brought up to date."""
        superblock = self.superblock
        superblock.data_mapping_root = self.root
        superblock.device_details_root = self.details_root
        superblock.data_space_map = self.data.counts.root()
        superblock.metadata_space_map = self.space.counts.root()
        return superblock

    @property
    def uncommitted(self) -> bool:
        """Whether anything has changed since the last seal."""
        return bool(self.tx.blocks.dirty or self._touched or self._superblock_changed)

    def seal(self) -> SealedCommit | None:
        """End the transaction in memory; what follows belongs to the next one. None when nothing has changed.

        The result is to be written, and then given to `finish`; until then there is no other.
        """
        self._check_usable()
        if self._sealed is not None:
            raise RuntimeError("the last commit is not finished")
        if not self.uncommitted:
            return None
        with self.all_or_broken():
            self._settle()
            self.data.flush()
            self.space.fold()
            image = self._image().pack()
        self._superblock_changed = False
        self._sealed = SealedCommit(
            blocks=self.tx.blocks.seal(),
            superblock=image,
            freed_metadata=self.space.seal(),
            freed_data=self.data.freed,
            dropped=self.tx.dropped,
            dropped_data=self.data.dropped,
        )
        if self.redo is not None:
            self.redo.mark(image)
        self.tx.fresh.clear()
        self.tx.dropped = False
        self.data.freed, self.data.dropped = [], Mask()
        return self._sealed

    def finish(self, sealed: SealedCommit, ok: bool) -> list[tuple[int, int]]:
        """The write of a sealed commit has ended. The runs of data blocks that it freed: `release_data` is due.

        After a failure (not ``ok``) the metadata cannot be changed any more, as nobody knows what is on disk.
        """
        if sealed is not self._sealed:
            raise RuntimeError("that commit is not the one under way")
        if not ok:
            self.fail(OSError(errno.EIO, "a commit could not be written"))
            return []
        self._sealed = None
        self.tx.blocks.written()
        self.space.release(sealed.freed_metadata)
        return sealed.freed_data
