"""Options in the shape of getopt_long(3): permuted with the arguments, long ones abbreviated, short ones bundled.

They are dmsetup's, in its order (an ambiguous abbreviation lists them so), and at the end our own.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FLAGS = frozenset(
    """readonly alldevices allprograms allregions area checks clear columns concise deferred filemap force foreground
    group help histogram inactive nameprefixes nogroup noflush noheadings nolockfs noopencount nosuffix notable
    notimesuffix nomonitor noudevrules noudevsync precise raw region relative retry rows segments setuuid showkeys tree
    unbuffered unquoted verifyudev version yes addnodeonresume addnodeoncreate kill""".split()
)
_ORDER = """readonly alias alldevices allprograms allregions area areas areasize bounds checks clear columns concise
    count deferred select exec filemap follow force foreground gid group groupid help histogram inactive interval length
    manglename major minor mode nameprefixes nogroup noflush noheadings nolockfs noopencount nosuffix notable
    notimesuffix udevcookie nomonitor noudevrules noudevsync options precise programid raw readahead region regions
    regionid relative retry rows segments separator setuuid showkeys sort start table target tree uid units uuid
    unbuffered unquoted userdata verbose verifyudev version yes addnodeonresume addnodeoncreate kill""".split()

LONG = {name: name not in _FLAGS for name in _ORDER}
"""Long options, and whether each takes a value. `--verbose` takes one, as dmsetup's does: -v does not."""
SHORT = {
    "C": "columns",
    "G": "gid",
    "M": "mode",
    "O": "sort",
    "S": "select",
    "U": "uid",
    "c": "columns",
    "f": "force",
    "h": "help",
    "j": "major",
    "m": "minor",
    "n": "notable",
    "o": "options",
    "r": "readonly",
    "u": "uuid",
    "v": "verbose",
    "y": "yes",
}
_BARE = "Cchfnrvy"
"""The short options without a value."""


class WrongOption(Exception):
    """In getopt's words, or in dmsetup's when it ends with a full stop."""


class Options:
    """What was given: how often each, and the last value."""

    __slots__ = ("_given", "_values")

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._values: dict[str, str] = {}

    def flag(self, name: str) -> int:
        return self._given.get(name, 0)

    def value(self, name: str) -> str | None:
        return self._values.get(name)

    def add(self, name: str, value: str | None) -> None:
        self._given[name] = self.flag(name) + 1
        if value is not None:
            self._values[name] = value


def parse(words: Sequence[str]) -> tuple[Options, list[str]]:
    """(options, arguments). A word "--" ends the options, "-" is an argument."""
    options = Options()
    arguments: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            arguments += rest
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            full = _long(name)
            if not LONG[full]:
                if equals:
                    raise WrongOption(f"option '--{full}' doesn't allow an argument")
                options.add(full, None)
                continue
            if not equals:
                value = _next(rest, f"option '--{full}' requires an argument")
            options.add(full, value)
        elif word.startswith("-") and len(word) > 1:
            _bundle(word, rest, options)
        else:
            arguments.append(word)
    return options, arguments


def _bundle(word: str, rest: object, options: Options) -> None:
    """-nrv, -uUUID, -u UUID."""
    for at in range(1, len(word)):
        letter = word[at]
        name = SHORT.get(letter)
        if name is None:
            raise WrongOption(f"invalid option -- '{letter}'")
        if letter in _BARE:
            options.add(name, None)
            continue
        value = word[at + 1 :] or _next(rest, f"option requires an argument -- '{letter}'")
        options.add(name, value)
        return


def _next(rest: object, otherwise: str) -> str:
    value = next(rest, None)  # type: ignore[call-overload]
    if value is None:
        raise WrongOption(otherwise)
    return str(value)


def _long(name: str) -> str:
    if name in LONG:
        return name
    found = [each for each in LONG if each.startswith(name)]
    if not found:
        raise WrongOption(f"unrecognized option '--{name}'")
    if len(found) > 1:
        possible = " ".join(f"'--{each}'" for each in found)
        raise WrongOption(f"option '--{name}' is ambiguous; possibilities: {possible}")
    return found[0]


def atoi(text: str) -> int:
    """As C reads an int: blanks, a sign, digits; what follows does not matter, and none is 0."""
    text = text.lstrip(" \t\n\v\f\r")
    sign, digits = (-1, text[1:]) if text[:1] == "-" else (1, text[text[:1] == "+" :])
    end = 0
    while end < len(digits) and digits[end] in "0123456789":
        end += 1
    value = sign * min(int(digits[:end][:20] or "0"), (1 << 63) - 1) & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def abbreviated(option: str | None, words: Sequence[str], otherwise: str) -> Iterator[str]:
    """The words between the commas of -o; one that is cut short means the first that it fits."""
    rest = option or ""
    while rest:
        begun, _, after = rest.partition(",")
        word = next((each for each in words if each.startswith(begun)), None)
        if word is None:
            raise WrongOption(f"{otherwise}: {rest}.")
        yield word
        rest = after


def check(options: Options) -> None:
    """What dmsetup refuses before it looks at the command."""
    count, interval, mode = options.value("count"), options.value("interval"), options.value("mode")
    if count is not None and atoi(count) < 0:
        raise WrongOption("Count must be zero or greater.")
    if interval is not None and atoi(interval) <= 0:
        raise WrongOption("Interval must be a positive integer.")
    if mode is not None and not (mode.strip("01234567") == "" and int(mode or "0", 8)):
        raise WrongOption(f"Invalid argument for --mode: {mode}. ")
    if (options.value("manglename") or "auto").lower() not in ("auto", "hex", "none"):
        raise WrongOption("Unknown name mangling mode.")
    ahead = options.value("readahead")
    if ahead is not None and atoi(ahead) < -1:
        raise WrongOption(f"Negative read ahead value ({atoi(ahead)}) is not understood.")
    if (options.value("major") is None) != (options.value("minor") is None):
        raise WrongOption("Please specify both major number and minor number.")
    if options.flag("table") and options.flag("notable"):
        raise WrongOption("--table and --notable are incompatible.")
    if options.flag("addnodeonresume") and options.flag("addnodeoncreate"):
        raise WrongOption("--addnodeonresume and --addnodeoncreate are incompatible.")
