"""The table parser and every target's constructor on generated lines: refused with a text, or the same again."""

from __future__ import annotations

import errno
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.buffers import KINDS, PARAMS, WORDS
from fuzz.test_abi import KERNELS, guarded
from support import budget
from userdm.cli.session import Failed
from userdm.cli.tabletext import parse_table
from userdm.mapper import places
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line, escape_argument, split_arguments
from userdm.storage import MemoryStorage
from userdm.targets.registry import all_targets

WORD = st.text(st.characters(exclude_characters="\0", exclude_categories=()), min_size=1, max_size=20)


@budget.examples(300)
@given(st.lists(WORD, max_size=8))
def test_words_survive_their_line(words: list[str]) -> None:
    assert split_arguments(" ".join(map(escape_argument, words))) == words


@budget.examples(300)
@given(st.text(st.sampled_from("ab \t\n\\'\"#\x85\u3000é") | st.characters(), max_size=60))
def test_every_line_has_its_words(line: str) -> None:
    words = split_arguments(line)
    assert split_arguments(" ".join(map(escape_argument, filter(None, words)))) == [word for word in words if word]
    assert all(word or "\\" in line for word in words)


@budget.examples(300)
@given(st.binary(max_size=200), st.booleans())
def test_text_of_a_table(raw: bytes, numbered: bool) -> None:
    """As it comes from the standard input."""
    text = ("0 8 " if numbered else "") + raw.decode(errors="surrogateescape")
    try:
        records = parse_table(text, "on stdin")
    except Failed as failure:
        assert str(failure) or failure.args
        return
    for start, length, kind, _ in records:
        assert 0 <= start < 1 << 64 and 0 <= length < 1 << 64 and len(kind.encode(errors="surrogateescape")) < 16


# ---- targets --------------------------------------------------------------------------------------------------------


def mapper_with_things() -> Mapper:
    mapper = Mapper()
    for name, size in (("m", 1 << 20), ("d", 8 << 20), ("disk", 1 << 20), ("other", 1 << 20), ("a b\\c", 1 << 20)):
        mapper.attached[name] = MemoryStorage(size)
    activate(mapper, "a", Line(0, 64, "linear", "disk 0"))
    activate(mapper, "pool", Line(0, 16384, "thin-pool", "m d 128 0"))
    mapper.message(mapper.find(name="pool"), 0, "create_thin 0")
    return mapper


def activate(mapper: Mapper, name: str, line: Line) -> MappedDevice:
    device = mapper.create(name)
    mapper.load(device, [line])
    mapper.resume(device)
    return device


PLACES = ("disk", "other", "d", "m", "a\\ b\\\\c", "/dev/mapper/a", "/dev/mapper/pool", "240:0", "nowhere", "240:77")
COUNTS = ("0", "1", "2", "3", "8", "16", "64", "128", "1024", "18446744073709551616", "-1", "x")


def arguments(rng: random.Random, kind: str) -> str:
    """Nearly right ones."""

    def place() -> str:
        return rng.choice(PLACES)

    def number() -> str:
        return rng.choice(COUNTS if rng.random() < 0.2 else COUNTS[:5])

    if rng.random() < 0.1:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(7)))
    if kind == "linear":
        return f"{place()} {number()}"
    if kind == "striped":
        stripes = rng.choice((1, 1, 2, 2, 3, 8))
        below = " ".join(f"{place()} {number()}" for _ in range(stripes))
        return f"{stripes} {rng.choice(('8', '16', number()))} {below}"
    if kind == "thin":
        return rng.choice((f"/dev/mapper/pool {number()}", f"{place()} 0", f"/dev/mapper/pool 0 {place()}"))
    if kind == "thin-pool":
        features = rng.choice(("", "0", "1 read_only", "2 skip_block_zeroing error_if_no_space", "3 ignore_discard"))
        return f"{rng.choice(('m', place()))} {rng.choice(('d', place()))} 128 {number()} {features}"
    return rng.choice(("", "", "", number(), rng.choice(PARAMS)))


def some_lines(rng: random.Random) -> list[Line]:
    lines, start = [], 0
    kinds = [target.name for target in all_targets()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        kind = rng.choice(kinds) if rng.random() < 0.95 else rng.choice(KINDS)
        length = rng.choice((8, 16, 64, 128, 1024, 16384))
        lines.append(Line(start, length, kind, arguments(rng, kind)))
        start += length if rng.random() < 0.97 else rng.choice((0, 1, -8))
    return lines


def printed(device: MappedDevice) -> list[Line]:
    assert device.inactive is not None
    return [
        Line(entry.start, entry.length, entry.target.name, entry.target.table_line())
        for entry in device.inactive.entries
    ]


def test_what_is_accepted_is_printed_and_accepted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "open_storage", guarded)
    before = threading.active_count()
    accepted: list[str] = []

    def example(rng: random.Random) -> None:
        mapper = mapper_with_things()
        # a pool's own device may load the pool again, any other may not
        device = mapper.find(name="pool") if rng.random() < 0.3 else mapper.create("new")
        for _ in range(5):
            lines = some_lines(rng)
            try:
                mapper.load(device, lines, folder="/nonexistent")
            except OSError as error:
                assert error.errno in KERNELS - {errno.EIO} and error.strerror, (lines, error)
                continue
            first = printed(device)
            for entry in device.inactive.entries if device.inactive is not None else ():
                assert "\n" not in entry.target.status_line()
            mapper.load(device, first, folder="/nonexistent")
            assert printed(device) == first, lines
            accepted.extend(line.type for line in first)
        mapper.close()
        assert mapper.storages._shared == {}

    budget.run(60, example)
    assert set(accepted) >= {"linear", "striped", "thin", "thin-pool", "zero", "error"}
    assert threading.active_count() == before
