"""The same sessions with dmsetup on a kernel and with userdm under dmsetup's name: the same output and exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import Daemon

HERE = Path(__file__).parent
PROGRAM = HERE.parents[1] / "bin" / "userdm"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("missing: root, for a loop device")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    made = subprocess.run(["losetup", "-f", "--show", disk], check=True, capture_output=True, text=True)
    node = made.stdout.strip()
    yield node
    subprocess.run(["losetup", "-d", node], check=True)


def comparable(text: str, nodes: str = "/dev/mapper") -> list[tuple[str, list[str]]]:
    """(command, its answer) pairs, device numbers and what follows from their width made equal.

    The read-ahead of a striped device is the stripes' in the kernel, a loop device's here.
    """
    text = text.replace(f"{nodes}/", "/dev/mapper/")
    text = re.sub(r"/tmp/tmp\.\w+", "TMP", text)
    text = re.sub(r"/dev/loop\d+", "LOOP", text)
    text = re.sub(r"\bdm-\d+|\bloop\d{4,}", "BLK", text)
    text = re.sub(r"\bloop\d{1,3}\b", "LOOP", text)

    def number(found: re.Match[str]) -> str:
        return "LOOP" if found[1] == "7" and int(found[2]) < 1000 else f"M{found[0][len(found[1]) : -len(found[2])]}m"

    text = re.sub(r"\b(253|7)(?::|, )(\d+)\b", number, text)
    text = re.sub(r"^(out: .{16}) (253|  7) +\d+ ", r"\1 Maj Min ", text, flags=re.MULTILINE)
    text = re.sub(r"([,:])(253|7)[,:]\d+[,:]", r"\1M\1m\1", text)
    text = re.sub(r"Maj Min +Stat", "Maj Min Stat", text)
    text = re.sub(r"(Read Ahead: +)\d+", r"\1N", text)
    # columns of numbers and of the kernel's names are as wide as those
    text = re.sub(r"(?<=[M:,]m|OP|LK) +(?=\||\w)", " ", text)
    pairs: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith(("$ ", "## ")):
            pairs.append((line, []))
        elif pairs:
            pairs[-1][1].append(line)
    return pairs


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("name", ["session", "reports", "verbs"])
def test_a_session_reads_as_with_dmsetup(daemon: Daemon, loop: str, name: str, tmp_path: Path) -> None:
    # a program as a shell calls it: one word
    program = daemon.base / "dmsetup"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {daemon.base}/bin/dmsetup "$@"\n')
    program.chmod(0o755)
    (daemon.base / "bin").mkdir()
    (daemon.base / "bin" / "dmsetup").symlink_to(PROGRAM)
    script = tmp_path / "script"
    script.write_text((HERE / "lib.sh").read_text() + (HERE / f"{name}.sh").read_text())
    done = subprocess.run(
        ["sh", script],
        env={**daemon.env, "DM": str(program), "LOOP": loop},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stderr == ""
    ours = comparable(done.stdout, str(daemon.nodes))
    theirs = comparable((HERE / f"{name}.expected").read_text())
    assert [command for command, _ in ours] == [command for command, _ in theirs]
    different = [
        f"{command}\n  dmsetup: {expected}\n  userdm:  {got}"
        for (command, got), (_, expected) in zip(ours, theirs, strict=True)
        if got != expected
    ]
    assert not different, "\n".join(different)
