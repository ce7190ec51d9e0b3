"""Who has a block device open: as often as it was opened, not as often as a descriptor of it was inherited."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from userdm.export.holders import count_openers

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, for a loop device"),
]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    made = subprocess.run(["losetup", "-f", "--show", disk], check=True, capture_output=True, text=True)
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


def opens(loop: Path) -> int:
    number = loop.stat().st_rdev
    return count_openers((os.major(number), os.minor(number)), lambda: False)


def test_what_is_inherited_or_duplicated_counts_once(loop: Path) -> None:
    assert opens(loop) == 0
    with loop.open("rb") as first:
        assert opens(loop) == 1
        again = os.dup(first.fileno())
        words = [sys.executable, "-c", "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"]
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[again])
        try:
            assert child.stdout is not None
            assert child.stdout.read(1) == b"x"
            assert opens(loop) == 1
            with loop.open("rb"):
                assert opens(loop) == 2
            os.close(again)
            first.close()
            # the child has it still
            assert opens(loop) == 1
        finally:
            child.communicate()
    assert opens(loop) == 0
