"""The parts of a report on their own: selections, regular expressions, concise devices, the tree's lines."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userdm.cli.concise import devices
from userdm.cli.fields import FIELDS, find_field, list_fields, section_fields, split_lvm, statistics
from userdm.cli.regex import BadPattern, matcher
from userdm.cli.selection import Selection
from userdm.cli.session import Failed, Refused
from userdm.cli.tree import WORDS, View, chosen

ROW: dict[str, str | int] = {"name": "vg-lv", "open": 2, "uuid": "", "segments": 1}


def wants(text: str) -> bool:
    return Selection(text).wants(lambda field: ROW[field.name])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("open=2", True),
        ("open>2", False),
        ("open>=2 && open<3, segments=1", True),
        ("name=vg || name=vg-lv", True),
        ("name='vg-lv' # open=9", True),
        ("!(open=2)", False),
        # libdevmapper marks an expression as negated, once or twice
        ("!(!(open=2))", False),
        ("!(!(open=2) || open=9)", True),
        ("(open=1 || open=2) && uuid=''", True),
        ("name=~'^vg-' && name!~x", True),
    ],
)
def test_a_selection(text: str, wanted: bool) -> None:
    assert wants(text) is wanted


@given(st.text("nameopen=~!<>&|#,()[]{}'\" 0123.k%", max_size=30))
def test_any_text_is_a_selection_or_refused(text: str) -> None:
    try:
        assert wants(text) in (True, False)
    except KeyError:
        pass  # a field that the row has not
    except Refused as refused:
        assert refused.lines


@given(st.text(r"ab^$.*+?|()[]-\n{}", max_size=12), st.text("ab.{}-n", max_size=6))
def test_any_text_is_a_pattern_or_refused(pattern: str, text: str) -> None:
    try:
        assert matcher(pattern)(text) in (True, False)
    except BadPattern as bad:
        assert bad.lines[-1] == "Couldn't parse regex"


@given(st.text("ab", max_size=5), st.sampled_from(["a", "^a", "b$", "^$", "a*b", "(a|b)+", "a?b", "[ab]b", "^(ab)*$"]))
def test_patterns_mean_what_they_mean_elsewhere(text: str, pattern: str) -> None:
    assert matcher(pattern)(text) == bool(re.search(pattern, text))


def test_fields_are_found_by_any_way_to_write_them() -> None:
    for field in (*FIELDS, *statistics()):
        for name in (field.name, field.name.upper(), field.name.replace("_", ""), f"_{field.name}"):
            found = find_field(name)
            assert found is not None
            assert found.name == field.name
        assert f"  {field.name} " in list_fields()
    assert find_field("bogus") is None
    assert len(section_fields("name_all")) == 7
    assert section_fields("bogusall") == []


def test_the_parts_of_a_name() -> None:
    assert split_lvm("vg--a-lv--b-layer") == ("vg-a", "lv-b", "layer")
    assert split_lvm("vg-lv-a-b") == ("vg", "lv", "a")
    assert split_lvm("-") == ("-", "", "")


def test_concise_devices() -> None:
    text = r"a\,b,u\;id,7, ro,0 8 zero,8 8 error; c,,,,0 8 linear /dev/x 0"
    assert list(devices(text)) == [
        ["a,b", "u;id", "7", "ro", "0 8 zero\n8 8 error"],
        ["c", "", "", "", "0 8 linear /dev/x 0"],
    ]


@given(st.text(",;\\ abc\n", max_size=40))
def test_any_text_is_devices_or_refused(text: str) -> None:
    try:
        assert all(len(fields) == 5 for fields in devices(text))
    except Failed as failed:
        assert failed.lines


def test_words_of_a_tree() -> None:
    assert "utf" not in chosen("ascii")
    assert {"compact", "vt100"} <= chosen("c,v")
    for word in WORDS:
        chosen(word)


@pytest.mark.parametrize(
    ("line", "cut"), [("a" * 80, "a" * 80), ("a" * 81, "a" * 79 + "..."), ("a" * 79 + "─", "a" * 79 + "...")]
)
def test_a_line_of_a_tree_is_cut(line: str, cut: str) -> None:
    view = View(set())
    view._limit = 80
    view._line = line
    assert view._cut() == cut
    view._words.add("notrunc")
    assert view._cut() == line
