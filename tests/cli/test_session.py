"""The same session with dmsetup on a kernel and with userdm: the same output, the same exit codes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import Daemon

HERE = Path(__file__).parent


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


def comparable(text: str) -> list[tuple[str, list[str]]]:
    """(command, its answer) pairs, device numbers and what follows from their width made equal.

    The read-ahead of a striped device is the stripes' in the kernel, a loop device's here.
    """
    text = re.sub(r"/dev/loop\d+", "LOOP", text)
    text = re.sub(
        r"\b(253|7):(\d+)\b", lambda found: "LOOP" if found[1] == "7" and int(found[2]) < 1000 else "M:m", text
    )
    text = re.sub(
        r"\b(253|7), (\d+)\b", lambda found: "LOOP" if found[1] == "7" and int(found[2]) < 1000 else "M, m", text
    )
    text = re.sub(r"^(out: .{16}) (253|  7) +\d+ ", r"\1 Maj Min ", text, flags=re.MULTILINE)
    text = re.sub(r",(253|7),\d+,", ",M,m,", text)
    text = re.sub(r"Maj Min +Stat", "Maj Min Stat", text)
    text = re.sub(r"(Read Ahead: +)\d+", r"\1N", text)
    pairs: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            pairs.append((line, []))
        elif pairs:
            pairs[-1][1].append(line)
    return pairs


@pytest.mark.root
def test_a_session_reads_as_with_dmsetup(daemon: Daemon, loop: str) -> None:
    # a program as a shell calls it: one word
    program = daemon.base / "userdm"
    words = " ".join(daemon.command())
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", HERE / "session.sh"],
        env={**daemon.env, "DM": str(program), "LOOP": loop},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stderr == ""
    ours = comparable(done.stdout)
    theirs = comparable((HERE / "session.expected").read_text())
    assert [command for command, _ in ours] == [command for command, _ in theirs]
    different = [
        f"{command}\n  dmsetup: {expected}\n  userdm:  {got}"
        for (command, got), (_, expected) in zip(ours, theirs, strict=True)
        if got != expected
    ]
    assert not different, "\n".join(different)
