"""The structures as bytes: sizes as the header's, round trips, and garbage that only ever raises OSError."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userdm.abi import dm_ioctl, lists, tables
from userdm.abi.dm_ioctl import Header

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def texts(room: int) -> st.SearchStrategy[str]:
    """What a file name may be, bytes that are not UTF-8 included, in fewer than ``room`` bytes."""
    raw = st.binary(max_size=room - 1).filter(lambda raw: b"\0" not in raw)
    return raw.map(lambda raw: raw.decode("utf-8", "surrogateescape"))


RECORDS = st.lists(st.tuples(U64, U64, texts(dm_ioctl.TYPE_LEN), texts(80)), max_size=8)


def equal(one: Header, other: Header) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in Header.__slots__)


@given(
    version=st.tuples(U32, U32, U32),
    numbers=st.tuples(U32, U32, U32, U32, U32, U64),
    open_count=st.integers(-(2**31), 2**31 - 1),
    name=texts(dm_ioctl.NAME_LEN),
    uuid=texts(dm_ioctl.UUID_LEN),
)
def test_header_round_trip(
    version: tuple[int, int, int], numbers: tuple[int, ...], open_count: int, name: str, uuid: str
) -> None:
    data_size, data_start, target_count, flags, event_nr, dev = numbers
    header = Header(
        version=version,
        data_size=data_size,
        data_start=data_start,
        target_count=target_count,
        open_count=open_count,
        flags=flags,
        event_nr=event_nr,
        dev=dev,
        name=name,
        uuid=uuid,
    )
    packed = header.pack()
    assert len(packed) == 312
    assert equal(Header.unpack(packed), header)
    assert equal(Header.unpack(packed[: dm_ioctl.DATA_OFFSET]), header)


def test_layout_is_the_documents() -> None:
    packed = Header(
        version=(4, 47, 0),
        data_size=0x11111111,
        data_start=0x22222222,
        target_count=0x33333333,
        open_count=-2,
        flags=0x55555555,
        event_nr=0x66666666,
        dev=0x7777777777777777,
        name="n" * 127,
        uuid="u" * 128,
    ).pack()
    assert packed[0:12] == bytes([4, 0, 0, 0, 47, 0, 0, 0, 0, 0, 0, 0])
    fields = {12: b"\x11" * 4, 16: b"\x22" * 4, 20: b"\x33" * 4, 24: b"\xfe\xff\xff\xff", 28: b"\x55" * 4}
    fields |= {32: b"\x66" * 4, 36: bytes(4), 40: b"\x77" * 8, 48: b"n" * 127 + b"\0", 176: b"u" * 128 + b"\0"}
    for offset, value in fields.items():
        assert packed[offset : offset + len(value)] == value, offset
    assert packed[305:] == bytes(7)


def test_sizes_are_the_kernels_headers(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler (cc)")
    if not Path("/usr/include/linux/dm-ioctl.h").exists():
        pytest.skip("needs <linux/dm-ioctl.h> (package linux-libc-dev)")
    names = ["struct dm_ioctl", "struct dm_target_spec", "struct dm_name_list", "struct dm_target_versions"]
    source = tmp_path / "sizes.c"
    prints = "".join(f'printf("%zu ", sizeof({name}));' for name in names)
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/dm-ioctl.h>\n"
        f'int main(void) {{ {prints} printf("%zu %d", offsetof(struct dm_ioctl, data), DM_IMA_MEASUREMENT_FLAG); }}\n'
    )
    subprocess.run(["cc", "-o", tmp_path / "sizes", source], check=True)
    answer = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    ours = [dm_ioctl.HEADER_SIZE, tables.SPEC_SIZE, 16, 16, dm_ioctl.DATA_OFFSET, dm_ioctl.IMA_MEASUREMENT]
    assert [int(word) for word in answer.split()] == ours


def test_a_name_without_a_nul_is_cut_as_the_kernel_cuts_it() -> None:
    packed = bytearray(Header().pack())
    packed[48:176] = b"n" * 128
    packed[176:305] = b"u" * 129
    header = Header.unpack(bytes(packed))
    assert (header.name, header.uuid) == ("n" * 127, "u" * 128)


@pytest.mark.parametrize("field", [{"name": "n" * 128}, {"uuid": "u" * 129}, {"name": "a\0b"}])
def test_what_does_not_fit_is_refused(field: dict[str, str]) -> None:
    header = Header(**field)  # type: ignore[arg-type]
    with pytest.raises(OSError) as caught:
        header.pack()
    assert caught.value.errno == errno.EINVAL


@given(major=st.integers(0, 0xFFF), minor=st.integers(0, 0xFFFFF))
def test_device_numbers(major: int, minor: int) -> None:
    dev = dm_ioctl.encode_dev((major, minor))
    assert dm_ioctl.decode_dev(dev) == (major, minor)
    # the C library's makedev() is another encoding, the same for what fits the old one
    if minor < 256:
        assert dev == major << 8 | minor


def test_device_number_seen_on_the_kernel() -> None:
    assert dm_ioctl.encode_dev((254, 77)) == 0xFE4D
    assert dm_ioctl.encode_dev((7, 2015)) == 0x7007DF


@given(RECORDS)
def test_load_round_trip(records: list[tuple[int, int, str, str]]) -> None:
    payload = tables.pack_load(records)
    assert len(payload) % 8 == 0
    assert tables.unpack_load(payload, len(records)) == records


@given(RECORDS)
def test_status_round_trip(records: list[tuple[int, int, str, str]]) -> None:
    payload, full = tables.pack_status(records, 1 << 20)
    assert not full
    assert tables.unpack_status(payload, len(records)) == records


@given(RECORDS, st.integers(0, 400))
def test_status_in_a_small_buffer(records: list[tuple[int, int, str, str]], room: int) -> None:
    payload, full = tables.pack_status(records, room)
    assert len(payload) <= room
    whole = tables.pack_status(records, 1 << 20)[0]
    # the padding after the last record must fit as well; one whose padding does not has no next one to tell of
    assert full == (len(payload) < len(whole) or dm_ioctl.align(len(whole)) > room)
    ends = [len(tables.pack_status(records[:count], 1 << 20)[0]) for count in range(len(records) + 1)]
    kept = ends.index(len(payload))
    last = dm_ioctl.align(ends[kept - 1]) if kept else 0
    assert payload[: last + 20] == whole[: last + 20][: len(payload)]
    assert payload[last + 24 :] == whole[last + 24 : len(payload)]
    if kept:
        following = dm_ioctl.align(len(payload))
        assert int.from_bytes(payload[last + 20 : last + 24], "little") == (following if following <= room else 0)


def test_next_counts_differently_in_the_two_directions() -> None:
    records = [(0, 8, "zero", ""), (8, 8, "linear", "7:0 0"), (16, 8, "error", "")]
    load = tables.pack_load(records)
    status, _ = tables.pack_status(records, 4096)
    assert [int.from_bytes(load[at + 20 : at + 24], "little") for at in (0, 48, 96)] == [48, 48, 48]
    assert [int.from_bytes(status[at + 20 : at + 24], "little") for at in (0, 48, 96)] == [48, 96, 144]


def test_a_loaded_table_may_not_turn_back() -> None:
    payload = bytearray(tables.pack_load([(0, 8, "zero", ""), (8, 8, "zero", "")]))
    payload[20:24] = bytes(4)
    with pytest.raises(OSError, match="table line 2") as caught:
        tables.unpack_load(bytes(payload), 2)
    assert caught.value.errno == errno.EINVAL


def test_a_table_of_more_lines_than_it_holds() -> None:
    payload = tables.pack_load([(0, 8, "zero", "")])
    with pytest.raises(OSError) as caught:
        tables.unpack_load(payload, 2**32 - 1)
    assert caught.value.errno == errno.EINVAL


NAMES = st.lists(st.builds(lists.Name, st.integers(1, 2**64 - 1), texts(128), U32, st.none() | texts(129)), max_size=6)


@given(NAMES)
def test_names_round_trip(names: list[lists.Name]) -> None:
    payload = lists.pack_names(names)
    assert len(payload) % 8 == 0
    assert lists.unpack_names(payload) == names


@given(st.lists(U64, max_size=20))
def test_deps_round_trip(devs: list[int]) -> None:
    assert lists.unpack_deps(lists.pack_deps(devs)) == devs


@given(st.lists(st.tuples(texts(16), st.tuples(U32, U32, U32)), max_size=8))
def test_versions_round_trip(versions: list[tuple[str, tuple[int, int, int]]]) -> None:
    assert lists.unpack_versions(lists.pack_versions(versions)) == versions


@given(U64, texts(300))
def test_message_round_trip(sector: int, text: str) -> None:
    assert lists.unpack_message(lists.pack_message(sector, text)) == (sector, text)


DECODERS: list[Callable[[bytes], Any]] = [
    Header.unpack,
    dm_ioctl.unpack_version,
    lambda data: tables.unpack_load(data, 3),
    lambda data: tables.unpack_load(data, 2**32 - 1),
    lambda data: tables.unpack_status(data, 3),
    lambda data: tables.unpack_status(data, 2**32 - 1),
    lists.unpack_names,
    lists.unpack_deps,
    lists.unpack_versions,
    lists.unpack_message,
    lambda data: lists.unpack_string(data, "string"),
]


def mutated(records: list[tuple[int, int, str, str]], position: int, byte: int) -> bytes:
    data = bytearray(tables.pack_load(records) + lists.pack_names([lists.Name(1, "a", 2, "b")]))
    data[position % len(data)] = byte
    return bytes(data)


@given(
    st.binary(max_size=600) | st.builds(mutated, RECORDS, st.integers(0, 10_000), st.integers(0, 255)),
    st.integers(0, len(DECODERS) - 1),
)
def test_garbage_raises_nothing_but_einval(data: bytes, which: int) -> None:
    try:
        DECODERS[which](data)
    except OSError as error:
        assert error.errno == errno.EINVAL
        assert error.strerror
