"""The daemon's two folders, made and checked: the runtime folder is its own, the mapper folder everybody's."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from userdm.abi import dm_ioctl, frames, runtime
from userdm.abi.dm_ioctl import Header

BACKLOG = 1024
"""Connections that wait to be accepted, also for as long as there is no worker: scripts start hundreds of commands
at once."""
MISC_MAJOR = 10
_DM_VERSION_IOCTL = 0xC138FD00
"""_IOWR(0xfd, 0, struct dm_ioctl)"""


def make_runtime_dir() -> Path:
    """The runtime folder, which nobody else can write to; EACCES otherwise."""
    path = Path(runtime.runtime_dir())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise OSError(
            errno.EACCES,
            f"runtime folder: uid {info.st_uid}, mode {stat.filemode(info.st_mode)}; "
            f"must be a folder of uid {os.geteuid()} that nobody else can write to",
            str(path),
        )
    return path


def choose_mapper_dir(runtime_dir: Path) -> Path:
    """Where the nodes go. A private runtime folder has a private mapper folder in it."""
    chosen = os.environ.get("USERDM_MAPPER_DIR")
    if chosen:
        return Path(os.path.abspath(chosen))  # noqa: PTH100 - a link to the folder stays a link
    if os.geteuid() != 0 or os.environ.get("USERDM_RUNTIME_DIR"):
        return runtime_dir / "mapper"
    return Path(runtime.ROOT_MAPPER_DIR if kernel_has_dm() else runtime.KERNEL_MAPPER_DIR)


def kernel_has_dm() -> bool:
    """Whether a device mapper of the kernel's can be used from here: then /dev/mapper is its own.

    What is asked is the control node itself, as libdevmapper asks it: a module that could be loaded is loaded by
    that, and has no name in /proc/misc before. Where the kernel has one (a container sees the host's /proc/misc) but
    neither the node nor the right to make one, its devices cannot get into our /dev, and /dev/mapper is free.
    """
    if _answers(Path(runtime.KERNEL_MAPPER_DIR) / "control"):
        return True
    minor = _misc_minor()
    if minor is None:
        return False
    # the kernel has one, and the node is missing: libdevmapper would make it
    node = Path(f"/dev/.userdm-probe-{os.getpid()}")
    try:
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(MISC_MAJOR, minor))
    except OSError:
        return False
    try:
        return _answers(node)
    finally:
        node.unlink()


def _answers(node: Path) -> bool:
    """Whether the node is a device mapper's that says its version."""
    try:
        if not stat.S_ISCHR(node.stat().st_mode):
            return False
        fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, _DM_VERSION_IOCTL, Header(data_size=dm_ioctl.HEADER_SIZE).pack())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _misc_minor() -> int | None:
    try:
        for line in Path("/proc/misc").read_text().splitlines():
            number, _, name = line.strip().partition(" ")
            if name == "device-mapper" and number.isdigit():
                return int(number)
    except OSError:
        pass
    return None


class Lock:
    """The runtime folder's lock: one daemon each. The kernel lets it go when the daemon dies."""

    def __init__(self, runtime_dir: Path) -> None:
        self._fd = os.open(runtime_dir / runtime.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def listen(runtime_dir: Path) -> socket.socket:
    """The control socket. Whoever calls has the lock: what is there is a dead daemon's."""
    path = runtime_dir / runtime.CONTROL
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with frames.ShortPath(str(path)) as address:
        listener.bind(address)
    path.chmod(0o600)
    listener.listen(BACKLOG)
    return listener


def check_namespace() -> None:
    """EPERM for root in a mount namespace that is not the first process's: what is mounted would not be seen there."""
    if os.geteuid() != 0 or os.environ.get("USERDM_ANY_NAMESPACE") or os.environ.get("USERDM_RUNTIME_DIR"):
        return
    try:
        first, own = (os.readlink(f"/proc/{pid}/ns/mnt") for pid in ("1", "self"))  # noqa: PTH115
    except OSError:
        return
    if first != own:
        raise OSError(
            errno.EPERM,
            f"this mount namespace ({own}) is not the first process's ({first}): devices made here would be missing "
            "there. Start the daemon from there, or set USERDM_ANY_NAMESPACE=1",
        )
