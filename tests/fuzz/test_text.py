"""What the command line makes of text: names and back, devices on one line and back; refused in dmsetup's words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import budget
from userdm.api.names import MODES, check_created_name, check_new_name, check_uuid, is_mangled, mangle, unmangle
from userdm.cli.concise import _quote, devices
from userdm.cli.fields import STRING
from userdm.cli.selection import Selection
from userdm.cli.session import Failed, Refused
from userdm.cli.tabletext import parse_table

LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
NAME = st.text(
    st.sampled_from("ab/x5c2 \\\t\x7fé\udc80-_.:") | LETTERS,
    max_size=40,
)
CHECKS = (check_created_name, check_new_name, check_uuid)


@budget.examples(300)
@given(NAME)
def test_a_name_is_what_it_was(name: str) -> None:
    try:
        mangled = mangle(name, "hex")
    except OSError as error:
        assert error.strerror and len(mangled_bytes(name)) >= 128
        return
    assert is_mangled(mangled)
    assert unmangle(mangled) == name


def mangled_bytes(name: str) -> bytes:
    return b"".join(b"\\x%02x" % byte for byte in name.encode(errors="surrogateescape"))


@budget.examples(300)
@given(NAME)
def test_a_name_that_is_mangled_is_left_as_it_is(name: str) -> None:
    """In the mode "auto": what comes out of it goes in again."""
    try:
        mangled = mangle(name)
    except OSError as error:
        assert error.strerror
        return
    assert mangle(mangled) == mangled


@budget.examples(300)
@given(NAME, st.sampled_from(MODES))
def test_names_are_taken_or_refused(name: str, mode: str) -> None:
    for check in CHECKS:
        try:
            taken = check(name, mode)
        except OSError as error:
            assert error.errno == 22 and error.strerror
        else:
            assert mode == "none" or is_mangled(taken)


OPERATORS = ("=~", "!~", "=", "!=", ">=", ">", "<=", "<", "since", "&&", ",", "||", "#", "!", "(", ")", " ", "'", '"')
FIELDS = (
    "name",
    "uuid",
    "major",
    "segments",
    "dm_name",
    "help",
    "all",
    "nobody",
    "12",
    "1.5",
    "3k",
    "50%",
    "[a-",
    "(a|b)*",
)


@budget.examples(500)
@given(st.lists(st.sampled_from(OPERATORS + FIELDS) | st.text(LETTERS, max_size=3), max_size=12))
def test_any_selection_of_rows(words: list[str]) -> None:
    text = "".join(words)
    try:
        selection = Selection(text)
    except Refused as refused:
        assert refused.lines and all(refused.lines)
        return
    selection.wants(lambda field: "12" if field.kind == STRING else 12)


@pytest.mark.parametrize("text", ["(" * 20_000, "!(" * 20_000, "name=~'" + "(" * 20_000 + "'"])
def test_a_selection_that_nests_for_ever(text: str) -> None:
    with budget.bounded(text[:10]), pytest.raises(Refused):
        Selection(text)


# ---- devices on one line --------------------------------------------------------------------------------------------

FIELD = st.text(st.sampled_from("ab ,;\\\t#é8") | LETTERS, max_size=12)


@budget.examples(300)
@given(st.lists(st.lists(FIELD, min_size=5, max_size=5), min_size=1, max_size=4))
def test_devices_on_one_line_are_what_they_were(wanted: list[list[str]]) -> None:
    # blanks before a field are passed over
    wanted = [[field.lstrip(" \t\n\v\f\r") for field in device] for device in wanted]
    # without the last semicolon, a line that ends in an escaped character is incomplete, for dmsetup as well
    text = "".join(",".join(_quote(field) for field in device) + ";" for device in wanted)
    assert list(devices(text)) == wanted


@budget.examples(500)
@given(st.text(st.sampled_from("ab ,,,,;\\\t#é8\n") | LETTERS, max_size=80))
def test_any_text_of_devices(text: str) -> None:
    try:
        found = list(devices(text))
        for device in found:
            parse_table(device[4], "")
    except Failed as failure:
        assert failure.args
        return
    assert all(len(device) == 5 for device in found)


def test_a_table_of_many_lines_on_one() -> None:
    """By the letter, not by the square of their number: that took minutes."""
    line = ",".join(f"{8 * number} 8 zero" for number in range(300_000))
    with budget.bounded("a line of 300,000"):
        (device,) = devices(f"wide,,,rw,{line}")
        assert len(parse_table(device[4], "")) == 300_000


def test_noise_for_tables() -> None:
    def example(rng: random.Random) -> None:
        words = ("0", "8", "zero", "linear", "#", "\\", "\n", "-1", "+8", "99999999999999999999999", "\t", "\x85", "é")
        text = rng.choice((" ", "")).join(rng.choice(words) for _ in range(rng.randrange(40)))
        try:
            records = parse_table(text, "on stdin")
        except Failed as failure:
            assert failure.args
            return
        assert all(0 <= start < 1 << 64 and 0 <= length < 1 << 64 for start, length, _, _ in records)

    budget.run(500, example)


@pytest.mark.parametrize("mode", MODES)
def test_a_name_at_its_limit(mode: str) -> None:
    assert check_created_name("x" * 127, mode) == "x" * 127
    with pytest.raises(OSError):
        check_created_name("x" * 128, mode)
