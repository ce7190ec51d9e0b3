"""The ioctl interface on bent buffers: an errno of the kernel's with a text, or a right answer; never our own error."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.buffers import Buffers
from support import budget
from userdm.abi import dm_ioctl as dm
from userdm.abi import frames, lists, tables
from userdm.abi.dm_ioctl import Header
from userdm.daemon.call import Caller
from userdm.daemon.ioctls import Ioctls
from userdm.mapper import places
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import FileStorage, MemoryStorage, open_storage

KERNELS = {
    errno.EINVAL, errno.ENXIO, errno.EBUSY, errno.ENOTTY, errno.ENOMEM, errno.ENODEV, errno.EEXIST, errno.ENODATA,
    errno.EPERM, errno.EOPNOTSUPP, errno.ENOTBLK, errno.EACCES, errno.EINTR, errno.ENOSPC, errno.ENAMETOOLONG,
    errno.EILSEQ, errno.EROFS, errno.EIO, errno.EOVERFLOW,
}  # fmt: skip

DECODERS = (
    Header.unpack,
    dm.unpack_version,
    lambda raw: tables.unpack_load(raw, int.from_bytes(raw[:4], "little")),
    lambda raw: tables.unpack_load(raw, 3),
    lambda raw: tables.unpack_status(raw, int.from_bytes(raw[:4], "little")),
    lists.unpack_names,
    lists.unpack_deps,
    lists.unpack_versions,
    lists.unpack_message,
    lambda raw: lists.unpack_string(raw, "string"),
)


def decode(raw: bytes) -> None:
    for decoder in DECODERS:
        try:
            decoder(raw)
        except OSError as error:
            assert error.errno == errno.EINVAL and error.strerror, error


@budget.examples(300)
@given(st.binary(max_size=600))
def test_decoders_on_noise(raw: bytes) -> None:
    decode(raw)


def test_decoders_on_bent_buffers() -> None:
    def example(rng: random.Random) -> None:
        nr, buffer = Buffers(rng).command()
        decode(buffer)
        decode(buffer[dm.HEADER_SIZE :])

    budget.run(1000, example)


def test_a_load_of_many_records_in_little_room() -> None:
    """No count and no step makes one byte be read over and over."""
    text = b"x" * (frames.MAX_BUFFER - 1000)
    spec = (0).to_bytes(8, "little") + (8).to_bytes(8, "little") + bytes(4) + (40).to_bytes(4, "little") + b"zero" * 4
    with budget.bounded("steps of 40 bytes over a long string"):
        for payload in (spec * 100 + text, (spec + b"y" * 40) * (len(text) // 80)):
            with pytest.raises(OSError) as error:
                tables.unpack_load(payload, (1 << 32) - 1)
            assert error.value.errno == errno.EINVAL


# ---- commands -------------------------------------------------------------------------------------------------------


def guarded(path: str, *, readonly: bool = False) -> FileStorage:
    """A fuzz target that runs as root opens nothing of this machine's."""
    if Path(path).resolve().is_relative_to("/nonexistent"):
        return open_storage(path, readonly=readonly)
    raise OSError(errno.EACCES, "outside of the test", path)


class Target:
    def __init__(self, rng: random.Random) -> None:
        self.mapper = Mapper()
        for name, size in (("m", 1 << 20), ("d", 8 << 20), ("disk", 1 << 20), ("other", 1 << 20)):
            self.mapper.attached[name] = MemoryStorage(size)
        for name, uuid, line in (
            ("a", "U", Line(0, 64, "linear", "disk 0")),
            ("pool", "", Line(0, 16384, "thin-pool", "m d 128 0")),
            ("thin", "V", Line(0, 1024, "thin", "/dev/mapper/pool 0")),
        ):
            device = self.mapper.create(name, uuid)
            if name == "thin":
                self.mapper.message(self.mapper.find(name="pool"), 0, "create_thin 0")
            self.mapper.load(device, [line])
            self.mapper.resume(device)
        self.ioctls = Ioctls(self.mapper, lambda: None)
        self.buffers = Buffers(rng)
        self.caller = Caller("/", "/nonexistent", force=False, gone=lambda: True)

    def one(self) -> str:
        nr, buffer = self.buffers.command()
        number, reply, detail = self.ioctls.execute(nr, bytearray(buffer), self.caller)
        what = f"ioctl {nr}: {number} {detail[:300]}"
        assert "internal error" not in detail, what
        size = int.from_bytes(buffer[12:16], "little")
        if number:
            assert number in KERNELS, what
            assert len(reply) in (0, 12), what
            return what
        assert len(reply) <= max(size, dm.HEADER_SIZE), what
        assert dm.unpack_version(reply) == dm.VERSION
        return what

    def settle(self) -> None:
        """Everything can still be listed, resumed and taken down: nothing blocks a name for ever."""
        for device in self.mapper.devices():
            if device.live is not None and device.suspended:
                # a pool whose table became too small stays suspended
                with contextlib.suppress(OSError):
                    self.mapper.resume(device)
        self.mapper.close()
        assert self.mapper.devices() == []
        assert self.mapper.storages._shared == {}
        assert self.mapper._reserved == set()


def test_commands_on_bent_buffers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(places, "open_storage", guarded)
    caplog.set_level(logging.ERROR)
    before = threading.active_count()

    def example(rng: random.Random) -> None:
        target = Target(rng)
        said = [target.one() for _ in range(40)]
        target.settle()
        assert not caplog.records, (caplog.text, said)

    budget.run(60, example)
    assert threading.active_count() == before
