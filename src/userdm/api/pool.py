"""A thin pool in this process: no daemon, no root, no kernel.

    import userdm
    with userdm.Pool("meta.img", "data.img", create=10 << 30) as pool:
        base = pool.create_thin(0, 1 << 30)
        with base.open() as disk:
            disk.write(b"hello")
        snap = pool.create_snap(1, base)

Sizes and offsets here are in bytes; block sizes, as in tables, in sectors.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from userdm.dataplane.plane import BlockingWorker
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line, escape_argument
from userdm.segment import SECTOR
from userdm.storage import Storage

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

METADATA_MIN = 2 << 20
METADATA_MAX = 255 * (1 << 14) * 4096
"""Bytes of metadata device that can be used, as THIN_METADATA_MAX_SECTORS of dm-thin-metadata.h."""


class Thin:
    """An active thin volume of a `Pool`."""

    def __init__(self, pool: Pool, dev_id: int, device: MappedDevice) -> None:
        self.pool = pool
        self.dev_id = dev_id
        self.device = device

    @property
    def size(self) -> int:
        """Bytes."""
        return self.device.size

    def open(self) -> DeviceFile:
        """The volume as an unbuffered binary file. One thread at a time may use it; open as many as there are."""
        return DeviceFile(self.device)

    def status(self) -> str:
        """<sectors mapped> <highest mapped sector>, as ``dmsetup status`` has it."""
        assert self.device.live is not None
        return self.device.live.entries[0].target.status_line()

    def close(self) -> None:
        """Deactivate it; the volume stays in the pool. EBUSY while another device stands on it."""
        self.pool.mapper.remove(self.device)

    def __enter__(self) -> Thin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Pool:
    """A pool over a metadata and a data device: paths of files or block devices, or storage objects.

    ``create``: make both files, sparse, the data file with this many bytes; FileExistsError when there is one.
    ``block_sectors`` and ``features`` as in the table line of thin-pool. OSError with the kernel's errno and a text
    that says which argument is wrong. Every change is durable when its call, or a file's flush, returns.
    """

    def __init__(
        self,
        metadata: str | os.PathLike[str] | Storage,
        data: str | os.PathLike[str] | Storage,
        *,
        create: int | None = None,
        block_sectors: int = 128,
        low_water_blocks: int = 0,
        features: Sequence[str] = (),
    ) -> None:
        self.mapper = Mapper()
        if create is not None:
            _make_files(metadata, data, create, block_sectors)
        names = [self._name(metadata, "metadata"), self._name(data, "data")]
        size = _size(data) // SECTOR
        words = f"{len(features)} {' '.join(features)}"
        params = f"{names[0]} {names[1]} {block_sectors} {low_water_blocks} {words}"
        self.device = self._activate("pool", Line(0, size, "thin-pool", params))

    def _name(self, what: str | os.PathLike[str] | Storage, role: str) -> str:
        if isinstance(what, str | os.PathLike):
            return escape_argument(os.fspath(Path(what).absolute()))
        self.mapper.attached[role] = what
        return role

    def _activate(self, name: str, line: Line) -> MappedDevice:
        device = self.mapper.create(name)
        try:
            self.mapper.load(device, [line])
            self.mapper.resume(device)
        except BaseException:
            self.mapper.remove(device)
            raise
        return device

    def message(self, text: str) -> None:
        """A message in the kernel's words, for example ``set_transaction_id 0 1``."""
        self.mapper.message(self.device, 0, text)

    def create_thin(self, dev_id: int, size: int) -> Thin:
        """A new empty volume of ``size`` bytes, active. EEXIST for an id in use."""
        _check_size(size)
        self.message(f"create_thin {dev_id}")
        return self.open_thin(dev_id, size)

    def create_snap(self, dev_id: int, origin: Thin | int, size: int | None = None) -> Thin:
        """A snapshot of ``origin`` (a volume, or its id with a ``size`` in bytes), active."""
        if isinstance(origin, Thin):
            size, origin = size if size is not None else origin.size, origin.dev_id
        if size is None:
            raise ValueError("size: a snapshot of an origin that is given by its id needs one")
        _check_size(size)
        self.message(f"create_snap {dev_id} {origin}")
        return self.open_thin(dev_id, size)

    def open_thin(self, dev_id: int, size: int) -> Thin:
        """Activate a volume that the pool has, with ``size`` bytes of it. ENODATA for an unknown id."""
        _check_size(size)
        line = Line(0, size // SECTOR, "thin", f"/dev/mapper/pool {dev_id}")
        return Thin(self, dev_id, self._activate(f"thin-{dev_id}", line))

    def delete(self, dev_id: int) -> None:
        """Delete a volume. EBUSY while it is active."""
        self.message(f"delete {dev_id}")

    def status(self) -> str:
        """As ``dmsetup status`` prints it for a thin-pool."""
        assert self.device.live is not None
        return self.device.live.entries[0].target.status_line()

    def close(self) -> None:
        """Deactivate every volume, commit, and close."""
        self.mapper.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeviceFile(io.RawIOBase):
    """A mapped device as an unbuffered binary file; ``flush`` makes durable what was written."""

    def __init__(self, device: MappedDevice) -> None:
        super().__init__()
        self._device = device
        self._worker = BlockingWorker(device.worker())
        self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return not self._device.readonly

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._device.size}[whence]
        if base + offset < 0:
            raise ValueError(f"offset {offset}: must not lead before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = max(min(len(view), self._device.size - self._at), 0)
        if length:
            self._worker.read(self._at, view[:length])
        self._at += length
        return length

    def write(self, buffer: ReadableBuffer) -> int:
        """All of it, or OSError; ENOSPC past the end, with nothing written there."""
        view = memoryview(buffer).cast("B")
        length = max(min(len(view), self._device.size - self._at), 0)
        if length < len(view) and not length:
            raise OSError(errno.ENOSPC, "no space behind the end of the device")
        self._worker.write(self._at, view[:length])
        self._at += length
        return length

    def discard(self, offset: int, length: int) -> None:
        """Give the space of these bytes back; they read as zeros."""
        self._worker.discard(offset, length)

    def flush(self) -> None:
        if not self.closed:
            self._worker.flush()

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                self._worker.close()


def _check_size(size: int) -> None:
    if size <= 0 or size % SECTOR:
        raise ValueError(f"size {size}: must be a multiple of {SECTOR} bytes, and not 0")


def _size(data: str | os.PathLike[str] | Storage) -> int:
    if not isinstance(data, str | os.PathLike):
        return data.size
    with open(data, "rb") as file:
        return file.seek(0, os.SEEK_END)


def _make_files(
    metadata: str | os.PathLike[str] | Storage, data: str | os.PathLike[str] | Storage, size: int, block_sectors: int
) -> None:
    """Sparse files; the metadata's size by the rule of the kernel's document: 48 bytes a data block, 2 MiB at least."""
    if not isinstance(metadata, str | os.PathLike) or not isinstance(data, str | os.PathLike):
        raise TypeError("create: makes files, so metadata and data must be paths")
    if Path(data).exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(data))
    wanted = min(max(48 * size // (block_sectors * SECTOR), METADATA_MIN), METADATA_MAX)
    for path, length in ((metadata, -(-wanted // 4096) * 4096), (data, size)):
        with open(path, "xb") as file:
            file.truncate(length)
