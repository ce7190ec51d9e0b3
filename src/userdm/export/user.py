"""A device without root: the FUSE file itself, mounted by fusermount3 on a regular file in the mapper folder."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from userdm.dataplane import Backend
from userdm.export import mount
from userdm.export.connection import Connection
from userdm.export.nodes import check_name

log = logging.getLogger(__name__)
POKE_SECONDS = 5.0


class UserExport:
    """Implements mapper.hooks.Export. The file is there from the first ``activate`` on."""

    def __init__(
        self,
        backend: Backend,
        devno: tuple[int, int],
        *,
        folder: Path,
        tag: str,
        gone: Callable[[UserExport], None],
    ) -> None:
        self.devno = devno
        self._backend = backend
        self._folder = folder
        self._tag = tag
        self._gone = gone
        self._name: str | None = None
        self._connection: Connection | None = None

    def _mounted(self, name: str) -> Connection:
        """A connection of its own for the file ``name``. EEXIST when the name is taken."""
        check_name(name)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / name
        _make_mount_point(path)
        try:
            fuse = mount.mount_user(path, f"{self._tag}{name}")
        except BaseException:
            path.unlink()
            raise
        connection = Connection(fuse, self._backend, self.devno, (os.getuid(), os.getgid()))
        connection.file.activate()
        connection.start()
        return connection

    def _unmount(self, name: str, connection: Connection) -> None:
        """EBUSY, and nothing changed, when the file is open."""
        path = self._folder / name
        mount.unmount_user(path)
        path.unlink()
        if not connection.join():
            log.error("%s: a serving thread is held up in its storage", path)

    readonly = False

    def activate(self, name: str, readonly: bool | None, uuid: str = "") -> None:
        if self._connection is None:
            self._connection = self._mounted(name)
            self._name = name
        else:
            self._connection.file.activate()
            self.rename(name)

    def settle(self) -> None:
        pass

    why_direct: str | None = "without root nothing is cached"

    def recache(self) -> None:
        pass

    def write_down(self) -> None:
        pass

    def rename(self, name: str, *, leave_node: bool = False) -> None:
        """A mount cannot be moved without root, so it is made anew; EBUSY when the file is open."""
        if self._connection is None or self._name is None or self._name == name:
            return
        fresh = self._mounted(name)
        try:
            self._unmount(self._name, self._connection)
        except BaseException:
            self._unmount(name, fresh)
            raise
        self._name, self._connection = name, fresh

    def open_count(self) -> int:
        return 0 if self._connection is None else len(self._connection.file.openers())

    def writers(self) -> list[str]:
        """Whoever has the file open for writing now; the opener may be gone, and his child have it still (fuse2fs)."""
        if self._connection is None or self._name is None:
            return []
        openers = [pid for pid, writing in self._connection.file.openers() if writing]
        if not openers:
            return []
        return _holders(self._folder / self._name) or [f"process {pid}" for pid in openers]

    def remove(self, later: Callable[[], None] | None = None) -> None:
        if self._connection is not None and self._name is not None:
            self._connection.file.closed = later
            try:
                self._unmount(self._name, self._connection)
            except OSError:
                if later is not None and not self.open_count():
                    # closed, and the mount does not know yet: that comes after the close that we are told of
                    threading.Timer(POKE_SECONDS / 50, later).start()
                raise
            self._connection = None
        self._gone(self)

    def stay(self) -> None:
        if self._connection is not None:
            self._connection.file.closed = None

    def serve(self) -> None:
        """It does, from its mount on."""

    def recover(self, later: Callable[[], None] | None, *, suspended: bool) -> None:
        """Nothing is taken over without root."""

    def abandon(self) -> None:
        self.close()

    def close(self) -> bool:
        """The end of the program that serves: whoever still has the file open gets errors. False then."""
        try:
            self.remove()
            return True
        except OSError as error:
            log.warning("%s: %s", self._name, error)
        assert self._connection is not None
        assert self._name is not None
        path = self._folder / self._name
        self._connection.stopping()
        self._poke(path, self._connection)
        self._connection.join()
        mount.unmount_user(path, lazy=True)
        path.unlink()
        self._gone(self)
        return False

    def _poke(self, path: Path, connection: Connection) -> None:
        """Give each serving thread a request, after which it ends: without root nothing else reaches it.

        A question that comes when the last thread has ended is answered by the closing of the descriptor.
        """
        deadline = time.monotonic() + POKE_SECONDS
        while connection.serving and time.monotonic() < deadline:
            asker = threading.Thread(target=_ask, args=(path,), daemon=True)
            asker.start()
            while asker.is_alive() and connection.serving and time.monotonic() < deadline:
                asker.join(0.01)


def _make_mount_point(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        info = path.lstat()
        # left there by a crash just before the mount; anything else is somebody's
        if not stat.S_ISREG(info.st_mode) or info.st_size or info.st_dev != path.parent.stat().st_dev:
            raise


def _ask(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            log.debug("%s: %s", path, error)


def _holders(path: Path) -> list[str]:
    """Processes of ours that have the file open for writing."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            for link in folder.iterdir():
                if os.readlink(link) != str(path):  # noqa: PTH115 - no stat, and no wait for ourselves
                    continue
                info = (folder.parent / "fdinfo" / link.name).read_text().split()
                flags = int(info[info.index("flags:") + 1], 8)
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    command = (folder.parent / "comm").read_text().rstrip("\n")
                    found.append(f"{command} (process {folder.parent.name})")
                    break
        except (OSError, ValueError):
            continue
    return found
