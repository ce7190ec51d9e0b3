"""The worker: `python -m userdm.daemon.worker SOCKET LOCK KEEPER`, started by the keeper only.

``SOCKET`` is the descriptor on which the keeper is spoken to, ``LOCK`` holds the runtime folder's lock for as long as
there is something of us, ``KEEPER`` is the keeper's pid: when that dies, so do we.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from userdm.abi import runtime
from userdm.daemon.folders import choose_mapper_dir
from userdm.daemon.harden import harden, set_oom_score
from userdm.daemon.link import Link
from userdm.daemon.log import open_log
from userdm.daemon.service import Service, describe

PR_SET_PDEATHSIG = 1
PIDFD_THREAD = os.O_EXCL
"""Of pidfd_open(2), kernel 6.9: look at this thread alone, not at its whole process."""

log = logging.getLogger("userdm.daemon")


def die_with(keeper: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:
        os._exit(1)


def idle_thread() -> int | None:
    """A descriptor of a thread that never waits for a device, by which the keeper sees that we are dead. Not of the
    first one: kernels from 6.15 on tell of its end only when the others have ended, too."""
    thread = threading.Thread(target=threading.Event().wait, name="idle", daemon=True)
    thread.start()
    assert thread.native_id is not None
    try:
        return os.pidfd_open(thread.native_id, PIDFD_THREAD)
    except OSError:
        return None


def main(arguments: list[str]) -> None:
    """Never returns: a thread that is held up in a storage must not keep us."""
    sock, lock, keeper = map(int, arguments)
    die_with(keeper)
    for fd in (sock, lock):
        os.set_inheritable(fd, False)
    link = Link(socket.socket(fileno=sock))
    go, fds = link.loaded(idle_thread())
    listener = socket.socket(fileno=fds[0])
    os.dup2(fds[1], 2)
    os.close(fds[1])
    status = 1
    try:
        runtime_dir = Path(runtime.runtime_dir())
        open_log(runtime_dir, foreground=go["foreground"])
        harden()
        set_oom_score(go.get("oom_score"))
        os.umask(0o022)
        link.inherit(go["before"])
        service = Service(runtime_dir, choose_mapper_dir(runtime_dir), listener, link, replaced=go["replaced"])
        service.start()
        link.ready()
        service.run()
        status = 0
    except OSError as error:
        log.exception("start")
        link.failed(describe(error))
    except BaseException:
        log.exception("the worker ends")
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
