"""-S: which rows of a report are wanted.

any     := all { ("||" | "#") all }
all     := part { ("&&" | ",") part }
part    := "(" any ")" | "!" "(" any ")" | field operator value
"""

from __future__ import annotations

from userdm.cli.fields import NUMBER, SIZE, STRING, Field, find_field
from userdm.cli.session import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from userdm.cli.fields import Value

    Get = Callable[[Field], Value]
    """What a row has in a field."""

_BLANK = " \t\n\v\f\r"
# the longer before the shorter
_COMPARE = ("=~", "!~", "=", "!=", ">=", ">", "<=", "<", "since", "after", "until", "before")
_AND = ("&&", ",")
_OR = ("||", "#")
_UNITS = "hHrRbBsSkmgtpeKMGTPE"
_HELP = "Use 'help' for selection to get more help."
_U64 = 1 << 64

USAGE = """Selection operators
  = !=         equal or not: a number, or the whole text
  > >= < <=    numbers and sizes
  =~ !~        a regular expression matches the text or not
  && ,         both
  || #         one of them
  ! ( )        not, and grouping
  A text stands in ' or " when it has blanks or operators in it.
"""


class _Test:
    """Whether a row is wanted. To negate what is negated changes nothing, as in libdevmapper."""

    def __init__(self, wants: Callable[[Get], bool]) -> None:
        self._wants = wants
        self.negated = False

    def __call__(self, row: Get) -> bool:
        return self._wants(row) != self.negated


class Selection:
    """``fields`` are those that it asks for."""

    def __init__(self, text: str) -> None:
        self.fields: list[Field] = []
        self._text = text
        self._at = 0
        self._wanted = _Test(lambda row: True)
        if text == "" or text.lower() == "all":
            return
        try:
            self._wanted = self._any()
        except RecursionError:
            raise Refused("Selection is nested too deeply.", _HELP) from None
        self._skip()
        if self._rest():
            raise Refused("Expecting logical operator", *_syntax(self._rest()))

    def wants(self, row: Get) -> bool:
        return self._wanted(row)

    # ---- the text ---------------------------------------------------------------------------------------------

    def _rest(self) -> str:
        return self._text[self._at :]

    def _skip(self) -> None:
        while self._text[self._at : self._at + 1] and self._text[self._at] in _BLANK:
            self._at += 1

    def _take(self, *words: str) -> str:
        """The operator that comes next, when it is one of these."""
        before = self._at
        self._skip()
        for word in words:
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return word
        self._at = before
        return ""

    # ---- the grammar ------------------------------------------------------------------------------------------

    def _any(self) -> _Test:
        tests = [self._all()]
        while self._take(*_OR):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else _Test(lambda row: any(test(row) for test in tests))

    def _all(self) -> _Test:
        tests = [self._part()]
        while self._take(*_AND):
            tests.append(self._part())
        return tests[0] if len(tests) == 1 else _Test(lambda row: all(test(row) for test in tests))

    def _part(self) -> _Test:
        if self._take("!"):
            if not self._take("("):
                raise Refused(f"Syntax error: left parenthesis expected at '{self._rest()}'")
            test = self._any()
            test.negated = True
            self._close()
            return test
        if self._take("("):
            test = self._any()
            self._close()
            return test
        self._skip()
        return self._comparison()

    def _close(self) -> None:
        if not self._take(")"):
            raise Refused(f"Syntax error: right parenthesis expected at '{self._rest()}'")

    # ---- one comparison ---------------------------------------------------------------------------------------

    def _comparison(self) -> _Test:
        begin = self._rest()
        name = self._name()
        if not name:
            raise Refused("Expecting field name", *_syntax(begin))
        field = find_field(name)
        if field is None or field.kind == "help":
            what = "Unrecognised selection field: " + name
            if field is not None:
                what = f"Selection field is uncomparable: {name}."
            raise Refused(what, *_syntax(begin), fields=True)
        after_name = self._rest()
        operator = self._take(*_COMPARE)
        if not operator:
            raise Refused(f"Unrecognised comparison operator: {after_name}", *_syntax(begin))
        try:
            test = self._test(field, operator, begin)
        except Refused as refused:
            raise Refused(*refused.lines, *_syntax(begin)) from None
        except _Unusable as unusable:
            raise Refused(*unusable.lines) from None
        if field not in self.fields:
            self.fields.append(field)
        return _Test(lambda row: test(row(field)))

    def _name(self) -> str:
        begin = self._at
        while (letter := self._text[self._at : self._at + 1]) and (
            letter in "_-" or letter.isascii() and letter.isalnum()
        ):
            self._at += 1
        return self._text[begin : self._at]

    def _test(self, field: Field, operator: str, begin: str) -> Callable[[Value], bool]:
        if operator in ("=~", "!~"):
            return self._regex(field, operator)
        if operator in _COMPARE[8:]:
            raise Refused(f"Operator can be used only with time fields: {begin}")
        if operator[0] in "<>" and field.kind == STRING:
            raise Refused(f"Operator can be used only with number, size, time or percent fields: {begin}")
        self._skip()
        if field.kind == STRING:
            text = self._string(f"Failed to parse string value for selection field {field.name}.")
            return (lambda value: value == text) if operator == "=" else lambda value: value != text
        number = self._number(field)
        return {
            "=": lambda value: int(value) == number,
            "!=": lambda value: int(value) != number,
            ">": lambda value: int(value) > number,
            ">=": lambda value: int(value) >= number,
            "<": lambda value: int(value) < number,
            "<=": lambda value: int(value) <= number,
        }[operator]

    def _regex(self, field: Field, operator: str) -> Callable[[Value], bool]:
        from userdm.cli.regex import BadPattern, matcher

        self._skip()
        if not self._rest():
            raise Refused(f"Regular expression expected for selection field {field.name}")
        pattern = self._string(f"Failed to parse regex value for selection field {field.name}.", brackets=True)
        if field.kind != STRING:
            raise _Unusable(f"dm_report: incompatible comparison type for selection field {field.name}")
        try:
            matches = matcher(pattern)
        except BadPattern as bad:
            why = f"dm_report: failed to create regex matcher for selection field {field.name}"
            raise _Unusable(*bad.lines, why) from None
        return (lambda value: matches(str(value))) if operator == "=~" else lambda value: not matches(str(value))

    def _string(self, otherwise: str, *, brackets: bool = False) -> str:
        """In quotes, or up to a blank or an operator."""
        pairs = {"'": "'", '"': '"', **({"(": ")", "[": "]", "{": "}"} if brackets else {})}
        close = pairs.get(self._text[self._at : self._at + 1])
        if close:
            end = self._text.find(close, self._at + 1)
            if end < 0:
                raise Refused("Missing end quote.", otherwise)
            text, self._at = self._text[self._at + 1 : end], end + 1
            return text
        begin = self._at
        while self._at < len(self._text) and self._text[self._at] != " " and not self._ends_here():
            self._at += 1
        return self._text[begin : self._at]

    def _ends_here(self) -> bool:
        before = self._at
        found = self._take(*_AND, *_OR, ")")
        self._at = before
        return bool(found)

    def _number(self, field: Field) -> float:
        begin = self._at
        while (letter := self._text[self._at : self._at + 1]) and (
            letter in "0123456789" or (letter == "." and "." not in self._text[begin : self._at])
        ):
            self._at += 1
        text = self._text[begin : self._at]
        if not text:
            raise Refused(f"Failed to parse numeric value for selection field {field.name}.")
        kind = "size" if field.kind == SIZE else "numeric"
        unit = self._text[self._at : self._at + 1]
        if unit == "%":
            raise Refused(f"Found percent value but {kind} value expected for selection field {field.name}.")
        if unit and unit in _UNITS:
            if field.kind != SIZE:
                what = "Found size unit specifier but numeric value expected for selection field"
                raise Refused(f"{what} {field.name}.")
            self._at += 1
        whole = text.partition(".")[0]
        if field.kind == NUMBER and len(whole) > 19 and int(whole[:40]) >= _U64:
            raise _Unusable(f"Field selection value {text} out of supported range for field {field.name}.")
        return int(whole[:40] or "0") if field.kind == NUMBER else float(text.strip(".") or "0")


class _Unusable(Exception):
    """The value was understood and does not fit the field: where it stands is not said."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def _syntax(at: str) -> tuple[str, str]:
    return f"Selection syntax error at '{at}'.", _HELP
