"""What the process asks of the kernel for itself: above all, as one who writes pages back, not to wait for that.

Threads that are started later inherit it: call before there are any.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys

log = logging.getLogger(__name__)

MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4
PR_SET_IO_FLUSHER = 57
SWITCH_SECONDS = 0.0005


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
