"""A suspended or full device: its requests wait, and nothing else does."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from userdm.export.exporter import DeviceExporter

from .backends import Awkward, MiB, raises, sh, wait_for

pytestmark = pytest.mark.root


def in_background(work) -> tuple[threading.Thread, list[BaseException]]:  # type: ignore[no-untyped-def]
    errors: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, errors


def test_requests_wait_and_go_on(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    backend.storage.write(MiB, b"here" * 1024)
    export = exporter.create("vol", backend, None)
    export.activate("vol", False)
    node = os.open(mapper_dir / "vol", os.O_RDWR | os.O_DIRECT)
    backend.close_gate()
    results: dict[int, bytes] = {}

    def write(number: int) -> None:
        data = mmap.mmap(-1, 8192)
        data.write(bytes([number]) * 8192)
        assert os.pwritev(node, [data], number * 8192) == 8192

    def read() -> None:
        data = mmap.mmap(-1, 4096)
        os.preadv(node, [data], MiB)
        results[0] = data[:]

    def large() -> None:
        data = mmap.mmap(-1, 2 * MiB)
        data.write(b"L" * 2 * MiB)
        assert os.pwritev(node, [data], 8 * MiB) == 2 * MiB

    works = [lambda number=number: write(number) for number in range(1, 9)]
    started = [in_background(work) for work in [*works, read, large]]
    try:
        wait_for(lambda: len(backend.calls) >= 11, "every request was tried once")
        # the size is answered while everything waits: also a new size
        assert sh("blockdev", "--getsize64", mapper_dir / "vol", timeout=5).strip() == str(32 * MiB)
        backend.size = 48 * MiB
        export.activate("vol", False)
        assert os.lseek(node, 0, os.SEEK_END) == 48 * MiB
        assert all(thread.is_alive() for thread, _ in started)
    finally:
        backend.size = 32 * MiB
        backend.open_gate()
        for thread, _ in started:
            thread.join(10)
    assert [errors for _, errors in started if errors] == []
    assert results[0] == b"here" * 1024
    for number in range(1, 9):
        assert backend.storage._bytes[number * 8192 : (number + 1) * 8192] == bytes([number]) * 8192
    assert backend.storage._bytes[8 * MiB : 10 * MiB] == b"L" * 2 * MiB
    os.close(node)


def test_a_request_may_be_parked_again(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    exporter.create("vol", backend, None).activate("vol", False)
    backend.close_gate()
    thread, errors = in_background(lambda: sh("blkdiscard", "-f", "-l", "65536", mapper_dir / "vol"))

    def tried(times: int) -> bool:
        return sum(what == "discard" for what, _, _ in backend.calls) == times

    for tries in range(1, 5):
        wait_for(partial(tried, tries), f"try {tries}")
        old = backend.gate
        assert old is not None
        if tries < 4:
            backend.close_gate()
        else:
            backend.gate = None
        old.open()
    thread.join(10)
    assert not errors
    assert sum(call[0] == "discard" for call in backend.calls) == 5


def test_the_gate_may_be_opened_under_any_lock(exporter: DeviceExporter, mapper_dir: Path) -> None:
    """What is parked is tried again on a thread of its own: the opener may hold a lock that the backend wants."""
    backend = Awkward()
    lock = threading.Lock()
    plain = backend.storage.read

    def read(offset: int, view: memoryview) -> None:
        with lock:
            plain(offset, view)

    backend.storage.read = read  # type: ignore[method-assign]
    exporter.create("vol", backend, None).activate("vol", False)
    backend.close_gate()
    command = ["dd", f"if={mapper_dir / 'vol'}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]
    thread, errors = in_background(lambda: sh(*command))
    wait_for(lambda: ("read", 0, 4096) in backend.calls, "the read was tried")
    with lock:
        backend.open_gate()
        time.sleep(0.1)
    thread.join(10)
    assert not errors


def test_busy_while_requests_wait(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    export = exporter.create("vol", backend, None)
    export.activate("vol", False)
    backend.close_gate()
    thread, errors = in_background(lambda: sh("blkdiscard", "-f", "-l", "65536", mapper_dir / "vol"))
    wait_for(lambda: export._connection.parked == 1, "the discard waits")  # type: ignore[union-attr]
    started = time.monotonic()
    with raises(errno.EBUSY):
        export.remove()
    assert time.monotonic() - started < 1
    export.rename("other")
    assert export.open_count() == 1
    backend.open_gate()
    thread.join(10)
    assert not errors


def test_the_end_does_not_wait_for_parked_requests(exporter: DeviceExporter, mapper_dir: Path) -> None:
    backend = Awkward()
    exporter.create("vol", backend, None).activate("vol", False)
    backend.close_gate()
    command = ["dd", f"if={mapper_dir / 'vol'}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]
    reader = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: ("read", 0, 4096) in backend.calls, "the read was tried")
    started = time.monotonic()
    exporter.close()
    assert time.monotonic() - started < 5
    assert reader.wait(5) != 0
    exporter.clear_stale()


def test_a_killed_reader_of_the_file_is_let_go(exporter: DeviceExporter) -> None:
    """A read of the FUSE file itself, as without root: the kernel waits for the answer even of a killed process."""
    from userdm.export.mount import open_in

    backend = Awkward()
    export = exporter.create("vol", backend, None)
    export.activate("vol", False)
    backend.close_gate()
    file = open_in(export._mount, os.O_RDONLY)  # type: ignore[union-attr]
    reader = subprocess.Popen([sys.executable, "-c", f"import os; os.pread({file}, 4096, 0)"], pass_fds=[file])
    os.close(file)
    wait_for(lambda: export._connection.parked == 1, "the read waits")  # type: ignore[union-attr]
    reader.send_signal(signal.SIGKILL)
    assert reader.wait(5) == -signal.SIGKILL
    wait_for(lambda: export._connection.parked == 0, "the read is forgotten")  # type: ignore[union-attr]
    backend.open_gate()
