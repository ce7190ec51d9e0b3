"""Options, tables as text, names: what the command line takes apart before it asks the daemon anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userdm.api.names import MODES, check_name, check_uuid, mangle, unmangle
from userdm.cli.main import VERBS
from userdm.cli.options import LONG, SHORT, WrongOption, atoi, parse
from userdm.cli.session import Failed
from userdm.cli.tabletext import parse_table


def test_options_and_arguments_in_any_order() -> None:
    options, arguments = parse(["create", "-r", "name", "--table", "0 8 zero", "-vvu", "U", "--", "-x", "--table"])
    assert arguments == ["create", "name", "-x", "--table"]
    assert options.value("table") == "0 8 zero"
    assert options.value("uuid") == "U"
    assert (options.flag("verbose"), options.flag("readonly"), options.flag("force")) == (2, 1, 0)


@pytest.mark.parametrize(
    "words", [["-uX"], ["-u", "X"], ["--uuid", "X"], ["--uuid=X"], ["--uu", "X"], ["-vuX"], ["-uY", "-uX"]]
)
def test_ways_to_give_a_value(words: list[str]) -> None:
    assert parse(words)[0].value("uuid") == "X"


def test_an_empty_value_and_a_lone_hyphen() -> None:
    options, arguments = parse(["--table=", "-", "-o", "-name"])
    assert (options.value("table"), options.value("options"), arguments) == ("", "-name", ["-"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "unrecognized option '--bogus'"),
        (["-q"], "invalid option -- 'q'"),
        (["-vq"], "invalid option -- 'q'"),
        (["-u"], "option requires an argument -- 'u'"),
        (["--table"], "option '--table' requires an argument"),
        (["--force=1"], "option '--force' doesn't allow an argument"),
        (["--read"], "option '--read' is ambiguous; possibilities: '--readonly' '--readahead'"),
    ],
)
def test_wrong_options_in_getopts_words(words: list[str], message: str) -> None:
    with pytest.raises(WrongOption) as caught:
        parse(words)
    assert str(caught.value) == message


def test_the_tables_agree() -> None:
    assert set(SHORT.values()) <= LONG.keys()
    for module, least, most, _ in VERBS.values():
        assert 0 <= least <= most
        __import__(f"userdm.cli.{module}")


@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_words_are_parsed_or_refused(words: list[str]) -> None:
    try:
        parse(words)
    except WrongOption as error:
        assert str(error)


def test_a_table() -> None:
    text = "# a comment\n\n0 8 zero\n \t8\t8  linear   /dev/a\\ b 0  # why\n+16 08 error\r\n"
    assert parse_table(text, "on stdin") == [
        (0, 8, "zero", ""),
        (8, 8, "linear", "/dev/a\\\\ b 0"),
        (16, 8, "error", ""),
    ]


@pytest.mark.parametrize("line", ["0", "0 8", "x 8 zero", "0 y zero", "0x0 8 zero", "- 8 zero", "0 - zero"])
def test_a_line_that_is_none(line: str) -> None:
    with pytest.raises(Failed) as caught:
        parse_table(f"0 8 zero\n{line}\n", "FILE")
    assert caught.value.lines == ("Invalid format on line 2 of table FILE.",)


def test_numbers_as_scanf_takes_them() -> None:
    assert parse_table("0 8.5 zero", "") == [(0, 8, ".5", "zero")]
    assert parse_table("0 8z zero", "") == [(0, 8, "z", "zero")]
    assert parse_table("-1 99999999999999999999999 zero", "")[0][:2] == (2**64 - 1, 2**64 - 1)


@given(st.text(max_size=300))
def test_any_text_is_a_table_or_refused(text: str) -> None:
    try:
        records = parse_table(text, "")
    except Failed as failed:
        assert failed.lines
    else:
        assert all(0 <= number < 2**64 for record in records for number in record[:2])


def test_names_are_written_for_udev() -> None:
    assert mangle("vg-lv_1.x:y#+=@") == "vg-lv_1.x:y#+=@"
    assert mangle("sp ace/é") == "sp\\x20ace\\x2f\\xc3\\xa9"
    assert mangle("sp\\x20ace") == "sp\\x20ace"
    assert unmangle("sp\\x20ace\\x2f") == "sp ace/"
    with pytest.raises(OSError, match="mixed"):
        mangle("sp\\x20ace and more")


@given(st.text(max_size=30).filter(lambda text: "\\" not in text and "\0" not in text))
def test_names_go_there_and_back(text: str) -> None:
    assert unmangle(mangle(text, limit=1 << 10)) == text
    assert unmangle(mangle(text, "hex", limit=1 << 10)) == text


def test_names_in_every_mode() -> None:
    assert [check_name("a b", mode) for mode in MODES] == ["a\\x20b", "a\\x20b", "a b"]
    assert [check_name("a\\x20b", mode) for mode in MODES] == ["a\\x20b", "a\\x5cx20b", "a\\x20b"]
    with pytest.raises(OSError, match="more than once"):
        check_name("a\\x5cx20b")
    with pytest.raises(OSError, match="too long"):
        check_name("a" * 128)
    with pytest.raises(OSError, match="Mangled form"):
        check_name("*" * 32)
    with pytest.raises(OSError, match="Mangled form of the UUID"):
        check_uuid("u" * 129)
    assert check_uuid("u" * 128) == "u" * 128


@pytest.mark.parametrize(
    ("text", "value"), [("", 0), ("-1", -1), (" +7x", 7), ("4294967295", -1), ("12a", 12), ("--3", 0), ("x", 0)]
)
def test_numbers_as_atoi_takes_them(text: str, value: int) -> None:
    assert atoi(text) == value
