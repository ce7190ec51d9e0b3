"""The house stands: a room imports only from the rooms below it, and from outside only what is declared."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "userdm"

# What each room may import; what those may import in turn is below it too.
ROOMS: dict[str, set[str]] = {
    "cli": {"api"},
    "api": {"mapper", "tools", "abi"},
    "daemon": {"mapper", "export", "abi"},
    "export": {"dataplane", "mapper"},
    "mapper": {"targets", "dataplane"},
    "targets": {"thin", "storage", "segment"},
    "tools": {"thin", "pdata", "storage"},
    "thin": {"pdata", "storage", "segment"},
    "pdata": {"storage"},
    "dataplane": {"segment", "storage"},
    "storage": set(),
    "segment": set(),
    "abi": set(),
}


def below(room: str) -> set[str]:
    """Every room under this one, and the room itself."""
    found = {room}
    for other in ROOMS[room]:
        found |= below(other)
    return found


def modules() -> list[Path]:
    return sorted(SOURCES.rglob("*.py"))


def room_of(path: Path) -> str:
    """The first folder; the package's own few files (its front door) count as the highest room."""
    parts = path.relative_to(SOURCES).parts
    return parts[0] if len(parts) > 1 else "cli"


def imports(text: str, package: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a module of ``package``, at any depth, none of them relative."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # "from userdm import thin" names the room in what it imports, not in where from
            for name in node.names:
                yield node.lineno, f"{origin}.{name.name}" if origin == "userdm" else origin


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    package = ("userdm", *path.relative_to(SOURCES).parent.parts)
    return imports(path.read_text(encoding="utf-8"), package)


def declared() -> set[str]:
    """The run-time dependencies of pyproject.toml, as import names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    return {name.lower().replace("-", "_") for name in re.findall(r'"([A-Za-z0-9_-]+)', match[1])}


def each_module(test: Callable[[Path], None]) -> Callable[[Path], None]:
    paths = modules()
    mark = pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(SOURCES)) for path in paths])
    return mark(test)


def test_every_module_lives_in_a_room() -> None:
    assert {room_of(path) for path in modules()} - ROOMS.keys() == set()
    assert {path.name for path in SOURCES.glob("*.py")} - {"__init__.py", "__main__.py"} == set()


@each_module
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    allowed = below(room)
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "userdm" and len(parts) > 1 and parts[1] in ROOMS:
            where = f"{path.relative_to(ROOT)}:{line}"
            assert parts[1] in allowed, f"{where}: {room} imports {name}, and may import only {sorted(allowed)}"


@each_module
def test_nothing_undeclared_is_imported(path: Path) -> None:
    # _typeshed exists for type checkers only
    allowed = declared() | sys.stdlib_module_names | {"userdm", "_typeshed"}
    for line, name in imports_of(path):
        assert name.split(".")[0] in allowed, f"{path.relative_to(ROOT)}:{line}: {name} is not declared"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import userdm.api.pool as pool", "userdm.api.pool"),
        ("from userdm import cli", "userdm.cli"),
        ("from userdm.mapper.table import Line", "userdm.mapper.table"),
        ("def late():\n    from ..daemon import server", "userdm.daemon"),
        ("from .. import daemon", "userdm.daemon"),
        ("from . import btree", "userdm.thin"),
    ],
)
def test_every_way_to_import_is_seen(line: str, name: str) -> None:
    assert [found for _, found in imports(line, ("userdm", "thin"))] == [name]
