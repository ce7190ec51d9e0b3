"""The ioctl interface on a mapper in this process: what goes wrong, and how much fits."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from userdm.abi import dm_ioctl as dm
from userdm.abi import lists, tables
from userdm.abi.dm_ioctl import Header
from userdm.daemon.call import Caller
from userdm.daemon.commands import COMMANDS
from userdm.daemon.ioctls import Ioctls
from userdm.mapper.registry import Mapper

ZERO = [(0, 8, "zero", "")]


class Driver:
    """Sends ioctls as libdevmapper does, with a buffer of ``size`` bytes."""

    def __init__(self) -> None:
        self.mapper = Mapper()
        self.saved = 0
        self.ioctls = Ioctls(self.mapper, self._save)

    def _save(self) -> None:
        self.saved += 1

    def raw(self, nr: int, buffer: bytes, gone: Callable[[], bool] = lambda: False) -> tuple[int, bytes, str]:
        return self.ioctls.execute(nr, bytearray(buffer), Caller("/", None, force=False, gone=gone))

    def __call__(self, nr: int, payload: bytes = b"", *, size: int = 16384, **fields: object) -> tuple[Header, bytes]:
        header = Header(data_size=size, **fields)  # type: ignore[arg-type]
        number, reply, detail = self.raw(nr, header.pack() + payload)
        if number:
            assert reply in (b"", dm.pack_version(dm.VERSION))
            raise OSError(number, detail)
        answer = Header.unpack(reply)
        assert answer.version == dm.VERSION
        if nr not in (dm.DM_VERSION, dm.DM_REMOVE_ALL):
            assert answer.data_size == len(reply)
        return answer, reply[answer.data_start :]

    def load(self, name: str, records: list[tuple[int, int, str, str]] = ZERO, flags: int = 0) -> Header:
        payload = tables.pack_load(records)
        return self(dm.DM_TABLE_LOAD, payload, name=name, target_count=len(records), flags=flags)[0]

    def device(self, name: str, records: list[tuple[int, int, str, str]] = ZERO, uuid: str = "") -> None:
        self(dm.DM_DEV_CREATE, name=name, uuid=uuid)
        self.load(name, records)
        self(dm.DM_DEV_SUSPEND, name=name)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def fails(number: int, act: Callable[[], object]) -> str:
    with pytest.raises(OSError) as caught:
        act()
    assert caught.value.errno == number, caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("version", "number"),
    [((4, 0, 0), 0), ((4, 47, 9), 0), ((4, 48, 0), errno.EINVAL), ((3, 0, 0), errno.EINVAL), ((5, 0, 0), errno.EINVAL)],
)
def test_version_handshake(driver: Driver, version: tuple[int, int, int], number: int) -> None:
    got, reply, _ = driver.raw(dm.DM_VERSION, Header(version=version, data_size=16384).pack())
    assert got == number
    assert dm.unpack_version(reply) == (4, 47, 0)
    if not number:
        assert Header.unpack(reply).data_size == 16384


@pytest.mark.parametrize("nr", [18, 255, 2**32 - 1])
def test_an_unknown_command(driver: Driver, nr: int) -> None:
    assert driver.raw(nr, Header().pack())[:2] == (errno.ENOTTY, dm.pack_version(dm.VERSION))
    assert driver.raw(nr, Header(version=(5, 0, 0)).pack())[:2] == (errno.EINVAL, dm.pack_version(dm.VERSION))


@pytest.mark.parametrize("size", [0, 304, 2**30 + 1, 2**32 - 1])
def test_a_data_size_that_cannot_be(driver: Driver, size: int) -> None:
    number, reply, _ = driver.raw(dm.DM_LIST_DEVICES, Header(data_size=size).pack())
    assert (number, reply) == (errno.EINVAL, dm.pack_version(dm.VERSION))
    assert driver.raw(dm.DM_VERSION, Header(data_size=size).pack())[0] == 0, "of which only the version is looked at"


def test_a_data_size_above_what_we_hold(driver: Driver) -> None:
    assert driver.raw(dm.DM_LIST_DEVICES, Header(data_size=2**30).pack())[0] == errno.ENOMEM


def test_a_reply_without_payload_is_305_bytes(driver: Driver) -> None:
    header, _ = driver(dm.DM_DEV_CREATE, name="a")
    assert header.data_size == 305
    assert header.name == "a"


def test_naming_a_device(driver: Driver) -> None:
    driver.device("a", uuid="U")
    dev = driver(dm.DM_DEV_STATUS, name="a")[0].dev
    assert driver(dm.DM_DEV_STATUS, uuid="U")[0].name == "a"
    assert driver(dm.DM_DEV_STATUS, dev=dev)[0].uuid == "U"
    fails(errno.EINVAL, lambda: driver(dm.DM_DEV_STATUS, name="a", uuid="U"))
    fails(errno.ENXIO, lambda: driver(dm.DM_DEV_STATUS, name="a", dev=dev))
    fails(errno.ENXIO, lambda: driver(dm.DM_DEV_STATUS, uuid="U", dev=dev))
    fails(errno.ENXIO, lambda: driver(dm.DM_DEV_STATUS))
    fails(errno.ENXIO, lambda: driver(dm.DM_DEV_STATUS, dev=dev + 1))


def test_flags_of_a_devices_life(driver: Driver) -> None:
    shown = dm.SUSPEND | dm.READONLY | dm.ACTIVE_PRESENT | dm.INACTIVE_PRESENT

    def flags(asked: int = 0) -> int:
        return driver(dm.DM_DEV_STATUS, name="a", flags=asked)[0].flags & shown

    driver(dm.DM_DEV_CREATE, name="a")
    assert flags() == 0
    assert driver.load("a", flags=dm.READONLY).flags & shown == dm.INACTIVE_PRESENT
    assert flags(dm.QUERY_INACTIVE) == dm.INACTIVE_PRESENT | dm.READONLY
    driver(dm.DM_DEV_SUSPEND, name="a")
    assert flags() == dm.ACTIVE_PRESENT | dm.READONLY
    driver(dm.DM_DEV_SUSPEND, name="a", flags=dm.SUSPEND)
    assert flags() == dm.ACTIVE_PRESENT | dm.READONLY | dm.SUSPEND
    # an output flag that comes in goes no further
    assert not driver(dm.DM_DEV_STATUS, name="a", flags=dm.BUFFER_FULL)[0].flags & dm.BUFFER_FULL
    assert driver(dm.DM_DEV_STATUS, name="a")[0].target_count == 1
    driver.load("a", [(0, 8, "zero", ""), (8, 8, "error", "")])
    assert driver(dm.DM_DEV_STATUS, name="a")[0].target_count == 1
    assert driver(dm.DM_DEV_STATUS, name="a", flags=dm.QUERY_INACTIVE)[0].target_count == 2
    driver(dm.DM_TABLE_CLEAR, name="a")
    assert not flags() & dm.INACTIVE_PRESENT


def test_names(driver: Driver) -> None:
    fails(errno.EINVAL, lambda: driver(dm.DM_DEV_CREATE))
    fails(errno.EINVAL, lambda: driver(dm.DM_DEV_CREATE, name="a/b"))
    driver(dm.DM_DEV_CREATE, name="n" * 127, uuid="u" * 128)
    fails(errno.EBUSY, lambda: driver(dm.DM_DEV_CREATE, name="n" * 127))
    fails(errno.EBUSY, lambda: driver(dm.DM_DEV_CREATE, name="b", uuid="u" * 128))
    driver(dm.DM_DEV_CREATE, name="b")
    assert [device.name for device in driver.mapper.devices()] == ["b", "n" * 127]


def test_rename(driver: Driver) -> None:
    driver.device("a")
    driver.device("b", uuid="B")
    assert driver(dm.DM_DEV_RENAME, b"c\0", name="a")[0].name == "a"  # the old one, as the kernel
    assert driver(dm.DM_DEV_STATUS, name="c")[0].event_nr == 1
    fails(errno.EBUSY, lambda: driver(dm.DM_DEV_RENAME, b"b\0", name="c"))
    fails(errno.EBUSY, lambda: driver(dm.DM_DEV_RENAME, b"b\0", name="nope"))
    fails(errno.ENXIO, lambda: driver(dm.DM_DEV_RENAME, b"d\0", name="nope"))
    for new in (b"\0", b"x/y\0", b"n" * 128 + b"\0"):
        fails(errno.EINVAL, lambda new=new: driver(dm.DM_DEV_RENAME, new, name="c"))  # type: ignore[misc]
    driver(dm.DM_DEV_RENAME, b"C\0", name="c", flags=dm.UUID)
    assert driver(dm.DM_DEV_STATUS, uuid="C")[0].event_nr == 2
    fails(errno.EINVAL, lambda: driver(dm.DM_DEV_RENAME, b"D\0", name="c", flags=dm.UUID))


def test_a_payload_in_front_of_the_data(driver: Driver) -> None:
    driver.device("a")
    for start in (0, 40, 304, 2**32 - 1):
        fails(errno.EINVAL, lambda start=start: driver(dm.DM_DEV_RENAME, b"b\0", name="a", data_start=start))  # type: ignore[misc]
        fails(errno.EINVAL, lambda start=start: driver(dm.DM_TABLE_LOAD, name="a", data_start=start, target_count=1))  # type: ignore[misc]


def test_loads_that_are_refused(driver: Driver) -> None:
    driver.device("a")
    fails(errno.EINVAL, lambda: driver(dm.DM_TABLE_LOAD, name="a"))
    fails(errno.EINVAL, lambda: driver(dm.DM_TABLE_LOAD, tables.pack_load(ZERO), name="a", target_count=2))
    text = fails(errno.EINVAL, lambda: driver.load("a", [(0, 8, "zero", ""), (9, 8, "zero", "")]))
    assert "table line 2" in text
    assert "9" in text
    assert fails(errno.ENODEV, lambda: driver.load("a", [(0, 8, "linear", "/nonexistent 0")]))
    assert not driver(dm.DM_DEV_STATUS, name="a")[0].flags & dm.INACTIVE_PRESENT


def test_list(driver: Driver) -> None:
    header, payload = driver(dm.DM_LIST_DEVICES)
    assert (header.data_size, payload) == (312, b"")
    for name in "zab":
        driver(dm.DM_DEV_CREATE, name=name, uuid="Z" if name == "z" else "")
    header, payload = driver(dm.DM_LIST_DEVICES)
    names = lists.unpack_names(payload)
    assert [(entry.name, entry.uuid) for entry in names] == [("a", None), ("b", None), ("z", None)]
    _, payload = driver(dm.DM_LIST_DEVICES, flags=dm.UUID)
    assert [entry.uuid for entry in lists.unpack_names(payload)] == ["", "", "Z"]
    # in the order of bytes, whatever they mean, and by what name and uuid begin with
    for raw in (b"a\xc3\xa9", b"a\x80", b"a\xee\x80\x80", b"a\xff", b"A"):
        driver(dm.DM_DEV_CREATE, name=os.fsdecode(raw))
    found = [os.fsencode(entry.name) for entry in lists.unpack_names(driver(dm.DM_LIST_DEVICES)[1])]
    assert found == sorted(found)
    _, payload = driver(dm.DM_LIST_DEVICES, name="a")
    assert len(lists.unpack_names(payload)) == 5
    _, payload = driver(dm.DM_LIST_DEVICES, uuid="Z")
    assert [entry.name for entry in lists.unpack_names(payload)] == ["z"]


@pytest.mark.parametrize("nr", [dm.DM_LIST_DEVICES, dm.DM_LIST_VERSIONS, dm.DM_TABLE_DEPS])
def test_a_buffer_that_is_full_is_no_error(driver: Driver, nr: int) -> None:
    driver.device("a")
    name = "a" if nr == dm.DM_TABLE_DEPS else ""
    whole = driver(nr, name=name)[0].data_size
    header, payload = driver(nr, size=whole, name=name)
    assert not header.flags & dm.BUFFER_FULL
    assert len(payload) == whole - 312
    header, payload = driver(nr, size=whole - 1, name=name)
    assert header.flags & dm.BUFFER_FULL
    assert (header.data_size, payload) == (305, b"")


def test_a_table_in_a_buffer_of_every_size(driver: Driver) -> None:
    records = [(0, 8, "zero", ""), (8, 8, "error", ""), (16, 8, "zero", "")]
    driver.device("a", records)
    whole = None
    for size in range(305, 700):
        header, payload = driver(dm.DM_TABLE_STATUS, name="a", size=size, flags=dm.STATUS_TABLE)
        assert header.data_size <= max(size, 305)
        assert header.target_count == 3
        if not header.flags & dm.BUFFER_FULL:
            whole = whole or size
            assert tables.unpack_status(payload, 3) == records
    assert whole is not None


def test_messages(driver: Driver) -> None:
    driver.device("a")

    def send(text: str, sector: int = 0) -> tuple[Header, bytes]:
        return driver(dm.DM_TARGET_MSG, lists.pack_message(sector, text), name="a")

    fails(errno.EINVAL, lambda: send(""))
    fails(errno.EINVAL, lambda: send("bogus"))
    fails(errno.EINVAL, lambda: send("bogus", 8))
    fails(errno.EINVAL, lambda: send("@bogus"))
    assert not send("@cancel_deferred_remove")[0].flags & dm.DATA_OUT
    header, payload = send("@stats_list")
    assert header.flags & dm.DATA_OUT
    assert payload == b"\0"


def test_remove(driver: Driver) -> None:
    driver.device("a", uuid="U")
    header, _ = driver(dm.DM_DEV_REMOVE, name="a")
    assert (header.name, header.uuid, header.dev) == ("a", "U", 0)
    assert not header.flags & dm.UEVENT_GENERATED
    fails(errno.ENXIO, lambda: driver(dm.DM_DEV_REMOVE, name="a"))


def test_remove_all_takes_a_stack_down(driver: Driver) -> None:
    driver.device("a")
    dev = driver.mapper.find(name="a").devno
    driver.device("b", [(0, 8, "linear", f"{dev[0]}:{dev[1]} 0")])
    assert driver(dm.DM_DEV_STATUS, name="a")[0].open_count == 1
    fails(errno.EBUSY, lambda: driver(dm.DM_DEV_REMOVE, name="a"))
    assert lists.unpack_deps(driver(dm.DM_TABLE_DEPS, name="b")[1]) == [dm.encode_dev(dev)]
    driver(dm.DM_REMOVE_ALL)
    assert driver.mapper.devices() == []


def test_wait(driver: Driver) -> None:
    driver.device("a")
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(driver(dm.DM_DEV_WAIT, name="a", event_nr=0)[0].event_nr))
    thread.start()
    time.sleep(0.1)
    assert answers == []
    driver(dm.DM_DEV_RENAME, b"b\0", name="a")
    thread.join(10)
    assert answers == [1]
    assert driver(dm.DM_DEV_WAIT, name="b", event_nr=0)[0].event_nr == 1


def test_wait_ends_when_the_client_goes(driver: Driver) -> None:
    driver.device("a")
    number, _, _ = driver.raw(dm.DM_DEV_WAIT, Header(data_size=16384, name="a").pack(), gone=lambda: True)
    assert number == errno.EINTR


def test_the_state_is_saved_after_what_changes_it(driver: Driver) -> None:
    driver.device("a")
    assert driver.saved == 3
    driver(dm.DM_TABLE_STATUS, name="a")
    driver(dm.DM_LIST_DEVICES)
    assert driver.saved == 3
    fails(errno.ENODEV, lambda: driver.load("a", [(0, 8, "linear", "/nonexistent 0")]))
    assert driver.saved == 4


NUMBERS = st.sampled_from([0, 1, 39, 40, 304, 305, 311, 312, 320, 16384, 2**31, 2**32 - 1])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    nr=st.sampled_from(sorted(COMMANDS)),
    numbers=st.tuples(NUMBERS, NUMBERS, NUMBERS),
    flags=st.integers(0, 2**20 - 1),
    name=st.sampled_from(["", "a", "b", "n" * 127]),
    uuid=st.sampled_from(["", "U"]),
    payload=st.binary(max_size=200)
    | st.just(tables.pack_load([(0, 8, "zero", ""), (8, 8, "linear", "/dev/null 0")]))
    | st.just(lists.pack_message(0, "x y")),
    cut=st.integers(0, 400),
)
def test_whatever_comes_is_answered(
    nr: int, numbers: tuple[int, int, int], flags: int, name: str, uuid: str, payload: bytes, cut: int
) -> None:
    driver = Driver()
    driver.device("a")
    size, start, count = numbers
    header = Header(data_size=size, data_start=start, target_count=count, flags=flags, name=name, uuid=uuid, event_nr=1)
    buffer = header.pack() + payload
    number, reply, detail = driver.raw(nr, buffer[: max(cut, len(buffer) - cut)], gone=lambda: True)
    assert "internal error" not in detail
    assert len(reply) <= max(size, 312)
    assert driver(dm.DM_VERSION)[0].version == dm.VERSION
    assert number >= 0
