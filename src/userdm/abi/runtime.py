"""Where the two ends meet: the runtime folder with the control socket, and the mapper folders with the nodes."""

from __future__ import annotations

import os

CONTROL = "control"
"""The socket's name in the runtime folder."""
LOCK = "lock"
"""Locked (flock) by the daemon of this runtime folder for as long as it lives."""
PID = "pid"
"""The keeper's; without root, where there is none, the daemon's."""
WORKER = "worker"
"""The worker's pid, while it serves; missing while the next one starts."""
LOG = "log"
STATE = "state.json"

KERNEL_MAPPER_DIR = "/dev/mapper"
ROOT_MAPPER_DIR = "/dev/userdm"
"""Root's mapper folder where the kernel has a device mapper of its own."""


def runtime_dir() -> str:
    """The runtime folder of this user, whether or not it exists."""
    chosen = os.environ.get("USERDM_RUNTIME_DIR")
    if chosen:
        return os.path.abspath(chosen)  # noqa: PTH100
    uid = os.geteuid()
    if uid == 0:
        return "/run/userdm"
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    return f"{base}/userdm" if os.path.isdir(base) else f"/tmp/userdm-{uid}"  # noqa: PTH112


def cached() -> bool:
    """Whether a daemon that starts in this environment may have the kernel cache writes: see docs/cached.md."""
    return os.environ.get("USERDM_CACHED") == "1"


def mapper_dirs() -> list[str]:
    """Every folder that a device's node may be named by, the most particular first."""
    chosen = os.environ.get("USERDM_MAPPER_DIR")
    own = [os.path.abspath(chosen)] if chosen else []  # noqa: PTH100
    return [*own, f"{runtime_dir()}/mapper", KERNEL_MAPPER_DIR, ROOT_MAPPER_DIR]
