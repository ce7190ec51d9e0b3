"""Options in the shape of getopt_long(3): permuted with the arguments, long ones abbreviated, short ones bundled."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Long options, and whether each takes a value. Those that concern udev, the kernel's read-ahead or its checks are
# accepted, since scripts pass them, and mean nothing here.
LONG = {
    "addnodeoncreate": False,
    "addnodeonresume": False,
    "checks": False,
    "columns": False,
    "deferred": False,
    "force": False,
    "help": False,
    "inactive": False,
    "kill": False,
    "major": True,
    "minor": True,
    "noflush": False,
    "noheadings": False,
    "nolockfs": False,
    "noopencount": False,
    "notable": False,
    "noudevrules": False,
    "noudevsync": False,
    "options": True,
    "readahead": True,
    "readonly": False,
    "retry": False,
    "separator": True,
    "setuuid": False,
    "showkeys": False,
    "sort": True,
    "table": True,
    "target": True,
    "udevcookie": True,
    "uuid": True,
    "verbose": False,
    "verifyudev": False,
    "version": False,
    "yes": False,
}
SHORT = {
    "C": "columns",
    "O": "sort",
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


class WrongOption(Exception):
    """In getopt's words."""


class Options:
    """What was given: flags by how often, values by the last."""

    __slots__ = ("_flags", "_values")

    def __init__(self) -> None:
        self._flags: dict[str, int] = {}
        self._values: dict[str, str] = {}

    def flag(self, name: str) -> int:
        return self._flags.get(name, 0)

    def value(self, name: str) -> str | None:
        return self._values.get(name)

    def add(self, name: str, value: str | None) -> None:
        if value is None:
            self._flags[name] = self.flag(name) + 1
        else:
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
        if not LONG[name]:
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
