"""The daemon of somebody who is not root: run as the user of the tests, or by root as nobody."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import userdm

HERE = Path(__file__).parent
NOBODY = 65534

# /dev/fuse is open to everybody where udev runs; elsewhere only for this test, in a mount namespace of its own.
AS_NOBODY = """
set -e
mknod -m 666 "$1" c 10 229
mount --bind "$1" /dev/fuse
rm "$1"
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""

EXPECTED = """\
device-mapper: message ioctl on pool  failed: Device or resource busy
Command failed.
hello
stopped; the next start brings 3 devices back
pool:L--w:2
snap:L--r:0
vol:L--w:0
there
dead
0 32768 thin 240:N 1
hello
device-mapper: remove ioctl on vol  failed: Device or resource busy
userdm: without root nothing outlives the daemon: stop it, and start it again
stopped; the next start brings 0 devices back
userdm: no daemon runs for HERE/userdm
Command failed.
"""


@pytest.fixture
def base() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="userdm-test-"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & 1 for parent in path.resolve().parents)


def interpreter() -> str:
    """One that nobody may run: this one, unless it is installed in somebody's home."""
    return sys.executable if os.geteuid() != 0 or reachable(Path(sys.executable)) else "/usr/bin/python3"


def missing() -> str | None:
    for tool in ("fusermount3", "setpriv"):
        if shutil.which(tool) is None:
            return tool
    if os.geteuid() != 0:
        return None if os.access("/dev/fuse", os.R_OK | os.W_OK) else "permission for /dev/fuse"
    if not Path("/dev/fuse").exists():
        return "/dev/fuse"
    return None if reachable(HERE) else f"a way for nobody to {HERE}"


def test_a_session_without_root(base: Path) -> None:
    if (what := missing()) is not None:
        pytest.skip(f"missing: {what}")
    command = ["sh", str(HERE / "as_user.sh"), str(base), interpreter()]
    if os.geteuid() == 0:
        unshare = ["unshare", "-m", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh", str(base / "fuse")]
        command = unshare + command
    # the packages of this interpreter serve another one of the same version as well
    folders = [str(Path(userdm.__file__).parents[1]), *(path for path in sys.path if path.endswith("site-packages"))]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ":".join(folders), "HOME": str(base)},
    )
    log = base / "userdm" / "log"
    words = log.read_text() if log.exists() else "(no log)"
    assert re.sub(r"240:\d+", "240:N", done.stdout) == EXPECTED, f"{done.stdout}\n{words}"
