"""Running a module of the tests as a user without rights: oneself, or nobody when the tests run as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
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


def interpreter() -> str:
    """One that nobody may run: this one, unless it is installed in somebody's home."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 1 for parent in Path(sys.executable).resolve().parents):
        return sys.executable
    return "/usr/bin/python3"


def missing(*tools: str) -> str | None:
    """What a user's devices need, with ``tools`` besides, and this machine lacks."""
    for tool in ("fusermount3", *tools):
        if shutil.which(tool) is None:
            return tool
    if not Path("/dev/fuse").exists():
        return "/dev/fuse"
    if os.geteuid() == 0:
        for path in (Path(interpreter()), TESTS):
            if any(not parent.stat().st_mode & 1 for parent in path.parents):
                return f"a way for nobody to {path}"
        command = [interpreter(), "-c", "import sys; print(*sys.version_info[:2])"]
        version = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if version != [str(part) for part in sys.version_info[:2]]:
            return f"a python{sys.version_info[0]}.{sys.version_info[1]} that nobody may run"
    elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "permission for /dev/fuse"
    return None


def run_as_user(module: str, base: Path, *words: str, timeout: float = 60) -> str:
    """``python -m module words… base`` as that user, in a session of its own; what it said. It must end well.

    ``base`` is a folder; it becomes the user's.
    """
    command = [interpreter(), "-m", module, *words, str(base)]
    if os.geteuid() == 0:
        os.chown(base, NOBODY, NOBODY)
        unshare = ["unshare", "-m", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh", str(base / "fuse")]
        command = unshare + command
    paths = [str(TESTS), str(TESTS.parent / "src"), *site.getsitepackages()]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": ":".join(paths), "HOME": str(base)},
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        # with whatever it has started, so that nothing can keep a mount
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    return said
