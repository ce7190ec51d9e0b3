"""The same commands with dmsetup on a kernel and with userdm under that name: the same answers.

cases/GROUP.cases has the commands (see harness.sh), cases/GROUP.expected what dmsetup 1.02.185 and Linux 6.1 answered;
tests/parity/record makes it. `differences` names the cases that differ, with the reason: each must then really differ.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity import oracle
from parity.answers import LOOP, Side, from_text, parse
from support.daemon import Daemon, missing, running_daemon

HERE = Path(__file__).parent

SECONDS = 60
"""A case that takes longer hangs."""


def names() -> list[str]:
    """GROUP/NAME of every case."""
    found = []
    for group in oracle.groups():
        for line in (oracle.CASES / f"{group}.cases").read_text().splitlines():
            if line.startswith("== "):
                found.append(f"{group}/{line[3:]}")
    return found


def recorded(group: str) -> dict[str, list[str]]:
    path = oracle.CASES / f"{group}.expected"
    return from_text(path.read_text()) if path.exists() else {}


def differences() -> dict[str, str]:
    """Case: why it cannot answer as the kernel does."""
    found: dict[str, str] = {}
    for line in (HERE / "differences").read_text().splitlines():
        if line and not line.startswith("#"):
            case, _, reason = line.partition(": ")
            found[case] = reason
    return found


class Ours:
    """A daemon, the disks, and dmsetup first in PATH: a link to our program."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.temporary = daemon.base / "tmp"
        self.temporary.mkdir()
        self.folder = daemon.base / "disks"
        self.folder.mkdir()
        self.side = Side(str(daemon.nodes), str(self.temporary / "case"), LOOP)
        bin_folder = daemon.base / "bin"
        bin_folder.mkdir()
        program = Path(sys.executable).parent / "userdm"
        (bin_folder / "dmsetup").symlink_to(program)
        self.env = {
            **daemon.env,
            "PATH": f"{bin_folder}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "LC_ALL": "C",
            "D": str(daemon.nodes),
            "T": str(self.temporary),
        }
        self.env |= self._disks()

    def _disks(self) -> dict[str, str]:
        found = {}
        for line in self.sh('disks "$1"', str(self.folder)).splitlines():
            _, letter, node = line.split()
            self.side.disk(letter, node)
            found[letter] = node
        return found

    def sh(self, text: str, *words: str) -> str:
        done = subprocess.run(
            ["sh", "-c", f". {HERE}/harness.sh\n{text}", "sh", *words],
            env=self.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
        # bytes as they are, like a terminal
        said = done.stdout.decode(errors="surrogateescape")
        assert done.stderr == b"", done.stderr.decode(errors="replace")
        return said

    def answer(self, group: str, name: str) -> list[str]:
        said = self.sh('cases "$1" "$2"', str(oracle.CASES / f"{group}.cases"), name)
        return parse(said, self.side)[name]


@pytest.fixture(scope="module")
def ours() -> Iterator[Ours]:
    if os.geteuid() != 0:
        pytest.skip("missing: root, for loop devices")
    if (what := missing()) is not None:
        pytest.skip(f"missing: {what}")
    if not (Path(sys.executable).parent / "userdm").exists():
        pytest.skip("missing: the installed program userdm")
    if shutil.which("losetup", path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
        pytest.skip("missing: losetup")
    with running_daemon() as daemon:
        made = Ours(daemon)
        try:
            yield made
        finally:
            daemon.userdm("daemon", "stop", "--force", code=None)
            made.sh("undisk")


KNOWN = differences()
RECORDED = {group: recorded(group) for group in oracle.groups()}


@pytest.mark.root
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.xfail(strict=True, reason=KNOWN[case])) if case in KNOWN else case
        for case in names()
    ],
)
def test_answers_as_the_kernel(ours: Ours, case: str) -> None:
    group, _, name = case.partition("/")
    assert ours.answer(group, name) == RECORDED[group][name]


def test_the_differences_are_cases() -> None:
    assert set(KNOWN) <= set(names())


@pytest.mark.oracle
@pytest.mark.slow
def test_the_recordings_are_what_the_kernel_answers() -> None:
    assert oracle.ask(oracle.groups()) == RECORDED
