"""The keeper itself: what may come to it, and what it must not die of."""

from __future__ import annotations

import os
import resource

import pytest

from support.stage import Stage


def test_more_descriptors_than_select_knows(stage: Stage) -> None:
    """A few hundred devices are enough; the keeper died with its worker then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("missing: a limit of 4096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        keeper = stage.daemon.start(pass_fds=many)
    finally:
        for fd in many:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stage.dm("create", "a", "--table", "0 8 zero")
    node = os.open(stage.node("a"), os.O_RDONLY)
    try:
        stage.daemon.kill_worker()
        assert stage.daemon.control.ping() == keeper
        assert os.pread(node, 4096, 0) == bytes(4096)
    finally:
        os.close(node)
