"""Tables checked as the kernel checks them, live and inactive, nested, in this process."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from userdm.dataplane.plane import BlockingWorker
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line, TableError, escape_argument, split_arguments
from userdm.storage import MemoryStorage

MIB_SECTORS = 2048


@pytest.fixture
def mapper() -> Iterator[Mapper]:
    mapper = Mapper()
    for name in "abc":
        mapper.attached[name] = MemoryStorage(1 << 20)
    yield mapper
    mapper.close()
    assert mapper.devices() == []


def make(mapper: Mapper, name: str, *lines: tuple[int, int, str, str]) -> MappedDevice:
    device = mapper.create(name)
    try:
        mapper.load(device, [Line(*line) for line in lines])
        mapper.resume(device)
    except OSError:
        mapper.remove(device)
        raise
    return device


def read(device: MappedDevice, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    BlockingWorker(device.worker()).read(offset, memoryview(buffer))
    return bytes(buffer)


def write(device: MappedDevice, offset: int, data: bytes) -> None:
    BlockingWorker(device.worker()).write(offset, data)


REFUSED = [
    # lines, errno, words that must be said
    ([], errno.EINVAL, ["0 lines"]),
    ([(1, 8, "zero", "")], errno.EINVAL, ["line 1", "start 1", "must be 0", "a gap"]),
    ([(0, 8, "zero", ""), (9, 8, "zero", "")], errno.EINVAL, ["line 2", "start 9", "must be 8", "a gap"]),
    ([(0, 8, "zero", ""), (7, 8, "zero", "")], errno.EINVAL, ["line 2", "start 7", "must be 8", "an overlap"]),
    ([(0, 0, "zero", "")], errno.EINVAL, ["line 1", "length 0", "at least 1"]),
    ([(0, 1 << 62, "zero", "")], errno.EINVAL, ["line 1", "length", "must end at"]),
    ([(0, 8, "nought", "")], errno.EINVAL, ["line 1", "'nought'", "linear"]),
    ([(0, 8, "zero", "x")], errno.EINVAL, ["1 arguments", "must be 0"]),
    ([(0, 8, "linear", "a")], errno.EINVAL, ["line 1: linear", "1 arguments", "must be 2", "<device> <offset>"]),
    ([(0, 8, "linear", "a -1")], errno.EINVAL, ["offset '-1'", "from 0 to"]),
    ([(0, 8, "linear", "a 1x")], errno.EINVAL, ["offset '1x'"]),
    ([(0, 8, "linear", "a 99999999999999999999999")], errno.EINVAL, ["offset"]),
    ([(0, 8, "linear", "/no/such/file 0")], errno.ENODEV, ["device '/no/such/file'", "must be a block device"]),
    ([(0, 8, "linear", "/dev/null 0")], errno.ENODEV, ["device '/dev/null'", "must be a block device"]),
    ([(0, 8, "linear", "/dev/null/x 0")], errno.ENODEV, ["device '/dev/null/x'"]),
    ([(0, 8, "linear", "/dev/mapper/nobody 0")], errno.ENODEV, ["device '/dev/mapper/nobody'", "nobody"]),
    ([(0, 8, "linear", "4095:77777 0")], errno.ENXIO, ["device '4095:77777'"]),
    ([(0, 8, "linear", "4096:0 0")], errno.EOVERFLOW, ["device '4096:0'", "below 4096:1048576"]),
    ([(0, 8, "linear", "7:1048576 0")], errno.EOVERFLOW, ["device '7:1048576'"]),
    ([(0, 8, "linear", "7:1:2 0")], errno.ENODEV, ["device '7:1:2'"]),
    ([(0, 8, "linear", "7: 0")], errno.ENODEV, ["device '7:'"]),
    ([(0, 8, "linear", "7fffff7 0")], errno.ENXIO, ["device '7fffff7'"]),
    ([(0, 8, "linear", "/dev/mapper/d 0")], errno.ENODEV, ["d has never had a table"]),
    ([(0, 8, "linear", "240:0 0")], errno.ENXIO, ["d has never had a table"]),
    ([(0, 1 << 54, "zero", "")], errno.EINVAL, ["length", "must end at"]),
    ([(0, 2049, "linear", "a 0")], errno.EINVAL, ["'a' is too small", "2048"]),
    ([(0, 2048, "linear", "a 1")], errno.EINVAL, ["'a' is too small", "2049"]),
    ([(0, 8, "zero", ""), (8, 8, "linear", "a x")], errno.EINVAL, ["line 2: linear", "offset 'x'"]),
    ([(0, 9, "striped", "2 8 a 0 b 0")], errno.EINVAL, ["length 9", "number of stripes 2"]),
    ([(0, 24, "striped", "2 8 a 0 b 0")], errno.EINVAL, ["12", "chunk size 8"]),
    ([(0, 32, "striped", "0 8 a 0 b 0")], errno.EINVAL, ["number of stripes '0'", "from 1"]),
    ([(0, 32, "striped", "2 0 a 0 b 0")], errno.EINVAL, ["chunk size '0'"]),
    ([(0, 32, "striped", "2 8 a 0")], errno.EINVAL, ["2 arguments after chunk size", "must be 4"]),
    ([(0, 32, "striped", "2 8 a 0 b x")], errno.EINVAL, ["offset of stripe 1 'x'"]),
    ([(0, 2048, "thin-pool", "a b 128")], errno.EINVAL, ["3 arguments"]),
    ([(0, 2048, "thin-pool", "a b 64 0")], errno.EINVAL, ["data block size '64'", "from 128 to 2097152"]),
    ([(0, 2048, "thin-pool", "a b 129 0")], errno.EINVAL, ["data block size '129'", "multiple of 128"]),
    ([(0, 2048, "thin-pool", "a b 128 x")], errno.EINVAL, ["low water mark 'x'"]),
    ([(0, 2048, "thin-pool", "a b 128 0 1 nonsense")], errno.EINVAL, ["feature 'nonsense'", "skip_block_zeroing"]),
    ([(0, 2048, "thin-pool", "a b 128 0 2 read_only")], errno.EINVAL, ["number of feature arguments 2"]),
    ([(0, 2048, "thin-pool", "a a 128 0")], errno.EINVAL, ["data device 'a'", "must be another"]),
    ([(0, 8, "thin-pool", "a b 128 0"), (8, 8, "zero", "")], errno.EINVAL, ["only line"]),
    ([(0, 8, "thin", "a 0")], errno.EINVAL, ["pool device 'a'", "no live thin-pool"]),
    ([(0, 8, "thin", "a 16777216")], errno.EINVAL, ["device id '16777216'", "16777215"]),
    ([(0, 8, "thin", "a 0 a")], errno.EINVAL, ["external origin device 'a'"]),
]


@pytest.mark.parametrize(("lines", "number", "words"), REFUSED, ids=lambda value: str(value)[:50])
def test_refused(mapper: Mapper, lines: list[tuple[int, int, str, str]], number: int, words: list[str]) -> None:
    device = mapper.create("d")
    with pytest.raises(TableError) as caught:
        mapper.load(device, [Line(*line) for line in lines])
    assert caught.value.errno == number, caught.value
    for word in words:
        assert word in str(caught.value)
    assert device.inactive is None
    assert not device.users


def test_lines_of_many_targets(mapper: Mapper) -> None:
    device = make(
        mapper,
        "d",
        (0, 8, "linear", "a 16"),
        (8, 8, "zero", ""),
        (16, 16, "striped", "2 4 b 0 c 8"),
        (32, 8, "error", ""),
    )
    assert device.size == 40 * 512
    data = os.urandom(32 * 512)
    write(device, 0, data)
    expected = data[: 8 * 512] + bytes(8 * 512) + data[16 * 512 :]
    assert read(device, 0, 32 * 512) == expected
    for start, length in ((0, 1), (7 * 512 + 500, 40), (15 * 512, 1024), (18 * 512, 9 * 512)):
        assert read(device, start, length) == expected[start : start + length]
    raw = bytearray(16 * 512)
    mapper.attached["b"].read(0, memoryview(raw)[: 8 * 512])
    assert raw[: 4 * 512] == data[16 * 512 : 20 * 512]
    assert raw[4 * 512 : 8 * 512] == data[24 * 512 : 28 * 512]
    with pytest.raises(OSError) as caught:
        read(device, 31 * 512, 1024)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError) as caught:
        read(device, 40 * 512, 1)
    assert caught.value.errno == errno.EIO
    assert [entry.target.table_line() for entry in device.live.entries] == ["a 16", "", "2 4 b 0 c 8", ""]  # type: ignore[union-attr]


def test_live_and_inactive(mapper: Mapper) -> None:
    device = make(mapper, "d", (0, 8, "linear", "a 0"))
    write(device, 0, b"A" * 512)
    write_b = make(mapper, "e", (0, 8, "linear", "b 0"))
    write(write_b, 0, b"B" * 512)
    mapper.load(device, [Line(0, 16, "linear", "b 0")])
    assert read(device, 0, 1) == b"A", "a loaded table is not live"
    mapper.resume(device)
    assert read(device, 0, 1) == b"B"
    assert device.size == 16 * 512
    mapper.load(device, [Line(0, 8, "zero", "")])
    mapper.clear(device)
    mapper.resume(device)
    assert read(device, 0, 1) == b"B", "a cleared table never gets live"
    empty = mapper.create("empty")
    mapper.resume(empty)
    mapper.suspend(empty)
    with pytest.raises(OSError) as caught:
        mapper.resume(empty)
    assert caught.value.errno == errno.EINVAL
    assert empty.suspended


def test_suspend_holds_and_resume_lets_go(mapper: Mapper) -> None:
    lower = make(mapper, "lower", (0, 64, "linear", "a 0"))
    upper = make(mapper, "upper", (0, 32, "linear", "/dev/mapper/lower 32"))
    write(upper, 0, b"1" * 512)
    mapper.suspend(lower)
    thread = threading.Thread(target=write, args=(upper, 0, b"2" * 512))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive(), "a write through a suspended device waits"
    mapper.load(lower, [Line(0, 64, "linear", "b 0")])
    mapper.resume(lower)
    thread.join(10)
    assert not thread.is_alive()
    assert read(lower, 32 * 512, 512) == b"2" * 512
    raw = bytearray(512)
    mapper.attached["a"].read(32 * 512, memoryview(raw))
    assert raw == b"1" * 512, "the old table's storage is left alone after the swap"


def test_swap_under_load(mapper: Mapper) -> None:
    """Readers through two layers never see a byte of a table that is not the one that was live then."""
    write(make(mapper, "wa", (0, 8, "linear", "a 0")), 0, b"A" * 4096)
    write(make(mapper, "wb", (0, 8, "linear", "b 0")), 0, b"B" * 4096)
    lower = make(mapper, "lower", (0, 8, "linear", "a 0"))
    upper = make(mapper, "upper", (0, 8, "linear", "/dev/mapper/lower 0"))
    swapping = threading.Event()
    current = [b"A"]
    faults: list[bytes] = []
    stop = False

    def reader() -> None:
        while not stop:
            before, quiet = current[0], not swapping.is_set()
            got = read(upper, 0, 4096)
            if quiet and not swapping.is_set() and before is current[0] and got != before * 4096:
                faults.append(got[:1])

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for round_ in range(200):
        letter = b"BA"[round_ % 2 : round_ % 2 + 1]
        swapping.set()
        mapper.load(lower, [Line(0, 8, "linear", f"{'ba'[round_ % 2]} 0")])
        mapper.resume(lower)
        current[0] = letter
        swapping.clear()
        time.sleep(0.001)
    stop = True
    for thread in threads:
        thread.join(10)
    assert not faults


def test_nested_and_loops(mapper: Mapper) -> None:
    make(mapper, "d0", (0, 2048, "linear", "a 0"))
    for level in range(1, 60):
        make(mapper, f"d{level}", (0, 2048, "linear", f"/dev/mapper/d{level - 1} 0"))
    top, bottom = mapper.find(name="d59"), mapper.find(name="d0")
    write(top, 1000, b"deep")
    assert read(bottom, 1000, 4) == b"deep"
    number = "{}:{}".format(*top.devno)
    for path in ("/dev/mapper/d59", number, "/dev/mapper/d0"):
        with pytest.raises(TableError) as caught:
            mapper.load(bottom, [Line(0, 8, "linear", f"{path} 0")])
        assert caught.value.errno == errno.EINVAL
        assert "loop" in str(caught.value)
    with pytest.raises(OSError) as busy:
        mapper.remove(bottom)
    assert busy.value.errno == errno.EBUSY
    assert bottom.open_count() == 1
    assert bottom.devno in mapper.find(name="d1").live.deps()  # type: ignore[union-attr]


def test_names(mapper: Mapper) -> None:
    first = mapper.create("one", "UUID-1")
    for name, uuid in (("one", ""), ("two", "UUID-1")):
        with pytest.raises(OSError) as caught:
            mapper.create(name, uuid)
        assert caught.value.errno == errno.EBUSY
    for name in ("", "a/b", ".", "..", "x" * 128, "a\0b"):
        with pytest.raises(OSError) as caught:
            mapper.create(name)
        assert caught.value.errno == errno.EINVAL
    mapper.create("x" * 127)
    assert mapper.find(uuid="UUID-1") is first is mapper.find(devno=first.devno)
    with pytest.raises(OSError) as caught:
        mapper.find(name="one", uuid="UUID-1")
    assert caught.value.errno == errno.ENXIO
    mapper.rename(first, "uno")
    assert mapper.find(name="uno").event_nr == 0, "an event is the live table's"
    mapper.load(first, [Line(0, 8, "zero", "")])
    mapper.resume(first)
    mapper.rename(first, "un")
    assert first.event_nr == 1
    mapper.set_uuid(mapper.find(name="x" * 127), "with/slash")
    with pytest.raises(OSError) as caught:
        mapper.set_uuid(first, "with/slash")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError) as caught:
        mapper.set_uuid(first, "another")
    assert caught.value.errno == errno.EINVAL


def test_storage_is_shared_and_claimed(tmp_path: Path, mapper: Mapper) -> None:
    path = tmp_path / "with blank"
    path.write_bytes(bytes(1 << 20))
    word = escape_argument(str(path))
    one = make(mapper, "one", (0, 8, "linear", f"{word} 0"), (8, 8, "linear", f"{word} 8"))
    make(mapper, "two", (0, 8, "linear", f"{word} 0"))
    write(one, 0, b"x")
    assert split_arguments(one.live.entries[0].target.table_line()) == [str(path), "0"]  # type: ignore[union-attr]
    other = Mapper()
    with pytest.raises(TableError) as caught:
        make(other, "three", (0, 8, "linear", f"{word} 0"))
    assert caught.value.errno == errno.EBUSY
    mapper.close()
    make(other, "three", (0, 8, "linear", f"{word} 0"))
    other.close()


def test_read_only_table(tmp_path: Path, mapper: Mapper) -> None:
    device = mapper.create("r")
    mapper.load(device, [Line(0, 8, "linear", "a 0")], readonly=True)
    mapper.resume(device)
    assert device.readonly
    with pytest.raises(OSError) as caught:
        write(device, 0, b"x")
    assert caught.value.errno == errno.EROFS


def test_a_file_and_its_loop_exclude_each_other(tmp_path: Path, mapper: Mapper) -> None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and /dev/loop-control")
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    loop = subprocess.run(["losetup", "-f", "--show", path], check=True, capture_output=True, text=True).stdout.strip()
    other = Mapper()
    try:
        make(mapper, "by-loop", (0, 8, "linear", f"{loop} 0"))
        for way in (str(path), loop):
            with pytest.raises(TableError) as caught:
                make(other, "by-file", (0, 8, "linear", f"{way} 0"))
            assert caught.value.errno == errno.EBUSY, way
        mapper.close()
        make(other, "by-file", (0, 8, "linear", f"{path} 0"))
        with pytest.raises(TableError) as caught:
            make(mapper, "by-loop", (0, 8, "linear", f"{loop} 0"))
        assert caught.value.errno == errno.EBUSY
    finally:
        other.close()
        mapper.close()
        subprocess.run(["losetup", "-d", loop], check=True)


def test_ranges_lie_on_the_bounds_of_logical_blocks(tmp_path: Path, mapper: Mapper) -> None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and /dev/loop-control")
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    command = ["losetup", "-b", "4096", "-f", "--show", str(path)]
    loop = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        for start, length, word in ((4, 8, "start 4"), (8, 12, "length 12")):
            with pytest.raises(TableError) as caught:
                make(mapper, "off", (0, length, "linear", f"{loop} {start}"))
            assert caught.value.errno == errno.EINVAL
            assert word in str(caught.value) and "multiple of its logical block 8" in str(caught.value)
        make(mapper, "on", (0, 16, "linear", f"{loop} 8"))
    finally:
        mapper.close()
        subprocess.run(["losetup", "-d", loop], check=True)
