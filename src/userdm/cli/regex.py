"""The regular expressions of a selection, as libdevmapper understands them.

( ) | * + ?, sets in [ ] with ranges and ^, a dot, \\n \\r \\t; any other character after a backslash stands for
itself, and { } are plain characters. ^ and $ are two characters of their own, in front of the text and behind it, so
[^a] matches them as well. Everything is bytes.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_BEGIN, _END = 2, 3
_CONTROL = {"n": 10, "r": 13, "t": 9}
_NOTHING = ""


class BadPattern(Exception):
    """``lines`` in libdevmapper's words."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(*lines)
        self.lines = lines


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether the pattern matches anywhere in a text."""
    import re

    found = re.compile(_Parser(os.fsencode(pattern).decode("latin-1")).translate().encode("latin-1"), re.DOTALL)
    return lambda text: found.search(b"\x02" + os.fsencode(text) + b"\x03") is not None


class _Parser:
    """Turns a pattern into one for Python's re, a set of bytes at a time."""

    def __init__(self, pattern: str) -> None:
        self._rest = pattern
        self._token = _NOTHING
        self._charset = _NOTHING
        self._lines: list[str] = []

    def translate(self) -> str:
        # libdevmapper puts two pairs of parentheses around it: an error is said once for each that it leaves open
        text = self._rest
        self._rest = text + ")"
        self._advance()
        result = self._alternatives()
        if self._token != ")":
            self._lines.append("missing ')' in regular expression")
        if self._token != ")" or self._rest or not result:
            self._lines.append("missing ')' in regular expression")
        if self._lines:
            raise BadPattern([*self._lines, "Parse error in regex", "Couldn't parse regex"])
        return result

    def _alternatives(self) -> str:
        result = self._sequence()
        if not result or self._token != "|":
            return result
        self._advance()
        other = self._alternatives()
        if not other:
            self._lines.append("Badly formed 'or' expression")
            return _NOTHING
        return f"(?:{result}|{other})"

    def _sequence(self) -> str:
        result = _NOTHING
        while part := self._repeated():
            result += part
            if self._token == "|":
                break
        return result

    def _repeated(self) -> str:
        result = self._single()
        if not result:
            return result
        star = plus = False
        while self._token in ("*", "+", "?"):
            star, plus = star or self._token != "+", plus or self._token != "?"
            self._advance()
        return f"(?:{result}){'*' if star and plus else '?' if star else '+'}" if star or plus else result

    def _single(self) -> str:
        if self._token == "set":
            result = self._charset
            self._advance()
            return result
        if self._token != "(":
            return _NOTHING
        self._advance()
        result = self._alternatives()
        if self._token != ")":
            self._lines.append("missing ')' in regular expression")
            return _NOTHING
        self._advance()
        return result

    def _advance(self) -> None:
        """The next token: one of the special characters, "set", or nothing at the end."""
        self._token = _NOTHING
        if not self._rest:
            return
        letter, self._rest = self._rest[0], self._rest[1:]
        if letter in "()*+?|":
            self._token = letter
            return
        if letter == "[":
            members = self._members()
        elif letter == "^":
            members = {_BEGIN}
        elif letter == "$":
            members = {_END}
        elif letter == ".":
            members = set(range(1, 256)) - {10, 13}
        elif letter == "\\":
            if len(self._rest) < 2:
                self._lines.append("Badly quoted character at end of expression")
                return
            letter, self._rest = self._rest[0], self._rest[1:]
            members = {_CONTROL.get(letter, ord(letter))}
        else:
            members = {ord(letter)}
        self._token = "set"
        # no byte at all is a set that never matches
        self._charset = "[" + "".join(f"\\x{code:02x}" for code in sorted(members)) + "]" if members else r"(?!)"

    def _members(self) -> set[int]:
        """What stands between the brackets, the first of which is read."""
        inverted = self._rest.startswith("^")
        at = int(inverted)
        members: set[int] = set()
        last = 0
        while at < len(self._rest) and self._rest[at] != "]":
            low = last
            is_range = self._rest[at] == "-" and last > 0
            escaped = self._rest[at] == "\\"
            if is_range or escaped:
                at += 1
                if at >= len(self._rest):
                    break
            letter = self._rest[at]
            last = _CONTROL.get(letter, ord(letter)) if escaped else ord(letter)
            members |= set(range(min(low, last), max(low, last) + 1)) if is_range else {last}
            at += 1
        if at >= len(self._rest):
            self._lines.append("missing ')' in regular expression")
            self._rest = _NOTHING
            return members
        self._rest = self._rest[at + 1 :]
        return set(range(1, 256)) - members if inverted else members
