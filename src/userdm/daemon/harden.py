"""What the process asks of the kernel for itself: above all, as one who writes pages back, not to wait for that.

Threads that are started later inherit it: call before there are any.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys
from pathlib import Path

log = logging.getLogger(__name__)

MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4
PR_SET_IO_FLUSHER = 57
SWITCH_SECONDS = 0.0005


def set_oom_score(adjustment: int | None) -> int | None:
    """How likely we are to be killed for want of memory (-1000: never); returns what it was, None when unknown.

    A child begins with its parent's.
    """
    path = Path("/proc/self/oom_score_adj")
    try:
        before = int(path.read_text())
        if adjustment is not None:
            path.write_text(str(adjustment))
    except OSError as error:
        log.info("%s: %s", path, error.strerror)
        return None
    return before


def harden() -> None:
    """Switch threads often, open many files; as root lock our pages, and allocate as one who must not wait for I/O.

    Best effort: what is not allowed is said in the log.
    """
    # a serving thread should not wait the default 5 ms for one that computes
    sys.setswitchinterval(SWITCH_SECONDS)
    # each device takes a handful of descriptors
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    # only what is touched: each thread's stack would be 8 MiB otherwise
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0:
        log.info("mlockall: %s", os.strerror(ctypes.get_errno()))
    if libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        log.info("PR_SET_IO_FLUSHER: %s", os.strerror(ctypes.get_errno()))
