"""Full pools and failing ones: the real daemon says, word for word, what the kernel was seen to say to the same script.

`make` records the kernel's words beside the scripts.
"""

from __future__ import annotations

import re
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest

from support.daemon import Daemon, running_daemon
from support.stage import want_root_and

FOLDER = Path(__file__).resolve().parent
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.sh") if path.stem != "lib")
SECONDS = 240

PROLOGUE = f"""
M="$BASE/m" D="$BASE/d" N="$USERDM_MAPPER_DIR"
dmsetup() {{ {sys.executable} -m userdm "$@"; }}
after() {{ :; }}
"""


def run(name: str, daemon: Daemon) -> str:
    script = (FOLDER / f"{name}.sh").read_text()
    daemon.env["BASE"] = str(daemon.base)
    timeout = re.search(r"^# timeout: (\d+)$", script, re.MULTILINE)
    if timeout is not None:
        daemon.env["USERDM_NO_SPACE_TIMEOUT"] = timeout[1]
    for disk, size in (("m", 8 << 20), ("d", 1 << 30)):
        with (daemon.base / disk).open("wb") as file:
            file.truncate(size)
    try:
        done = subprocess.run(
            ["bash", "-c", PROLOGUE + (FOLDER / "lib.sh").read_text() + script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            cwd="/",
            env=daemon.env,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{name} hangs after:\n{(error.stdout or b'')[-2000:]!r}\n{daemon.log()}")
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_the_kernel(name: str) -> None:
    want_root_and("blkdiscard", "thin_check")
    expected = (FOLDER / f"{name}.expected").read_text()
    with running_daemon() as daemon:
        got = run(name, daemon)
        difference = "".join(unified_diff(expected.splitlines(True), got.splitlines(True), "the kernel", "userdm", n=4))
        assert not difference, f"{difference}\n{daemon.log()}"
