"""FUSE mounts of one regular file each: detached ones for root, fusermount3's for everybody else."""

from __future__ import annotations

import array
import errno
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from userdm.export import syscalls
from userdm.export.holders import superblock_of

DEV_FUSE = "/dev/fuse"
FUSERMOUNT_SECONDS = 20


def mount_detached(fuse: int, owner: tuple[int, int], source: str) -> int:
    """Mount the connection behind the descriptor ``fuse`` in no namespace at all; returns the mount's descriptor.

    No path leads there, so none can go stale; the mount lives while the descriptor, or a file in it, is open.
    """
    context = syscalls.fsopen("fuse")
    try:
        settings = {
            "source": source,
            "fd": str(fuse),
            "rootmode": f"{stat.S_IFREG | 0o600:o}",
            "user_id": str(owner[0]),
            "group_id": str(owner[1]),
        }
        for key, value in settings.items():
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
        # the loop driver asks for the file's attributes on behalf of whoever asks for the loop device's state
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "allow_other")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def open_in(mount: int, flags: int) -> int:
    """Open the file that a detached mount consists of."""
    return os.open(f"/proc/self/fd/{mount}", flags | os.O_CLOEXEC)


def connection_of(mount: int) -> int:
    """The number under which fusectl knows a mount. Nobody need serve it."""
    return superblock_of(f"/proc/self/fd/{mount}")[1]


def abort(connection: int) -> None:
    """End a FUSE connection: whatever waits for it gets an error. OSError ENOENT when there is none of this number."""
    try:
        control = os.open(f"/sys/fs/fuse/connections/{connection}/abort", os.O_WRONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        if os.geteuid() != 0:
            raise
        # fusectl need not be mounted anywhere for us to use it
        context = syscalls.fsopen("fusectl")
        try:
            syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
            mount = syscalls.fsmount(context)
        finally:
            os.close(context)
        try:
            control = os.open(f"{connection}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=mount)
        finally:
            os.close(mount)
    try:
        os.write(control, b"1")
    finally:
        os.close(control)


def _fusermount(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("fusermount3")
    if program is None:
        raise OSError(errno.ENOENT, "fusermount3 is not installed (package fuse3): without root it is what mounts")
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=FUSERMOUNT_SECONDS,
        **options,
    )


def mount_user(path: Path, source: str) -> int:
    """Have fusermount3 mount on the regular file ``path``; returns the /dev/fuse descriptor."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        done = _fusermount(
            "-o",
            f"fsname={source},subtype=userdm,nosuid,nodev,noexec",
            "--",
            str(path),
            pass_fds=[its.fileno()],
            env={**os.environ, "_FUSE_COMMFD": str(its.fileno()), "LC_ALL": "C"},
        )
        its.close()
        numbers = array.array("i")
        ours.settimeout(FUSERMOUNT_SECONDS)
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: numbers.itemsize])
            os.set_inheritable(numbers[0], False)
            return numbers[0]
    raise OSError(errno.EPERM, f"fusermount3 cannot mount on {path}: {done.stderr.strip()}")


def unmount_user(path: Path, *, lazy: bool = False) -> None:
    """Have fusermount3 unmount. OSError EBUSY, and nothing changed, when it is in use and ``lazy`` is not set."""
    done = _fusermount("-u", *(["-z"] if lazy else []), "--", str(path), env={**os.environ, "LC_ALL": "C"})
    if done.returncode == 0:
        return
    number = errno.EBUSY if "busy" in done.stderr else errno.EINVAL
    raise OSError(number, f"fusermount3 cannot unmount {path}: {done.stderr.strip()}")
