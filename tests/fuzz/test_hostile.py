"""Hostile and careless clients of a real daemon: it goes on, and nothing of them stays."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from fuzz.buffers import Buffers
from support import budget
from support.daemon import SECONDS, Daemon
from userdm.abi import dm_ioctl as dm
from userdm.abi import frames, lists, tables
from userdm.abi.dm_ioctl import Header
from userdm.api.control import Control
from userdm.api.errors import HungDaemon

ZERO = [(0, 8, "zero", "")]
GREETING = 8
NOBODY = 65534


class Guest:
    """One connection, spoken by hand."""

    def __init__(self, daemon: Daemon) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(daemon.run / "control"))
        self.socket.settimeout(SECONDS)

    def greeted(self) -> int:
        return frames.receive_greeting(self.socket)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def frame(nr: int, buffer: bytes, *, kind: int = frames.IOCTL, length: int | None = None) -> bytes:
    return struct.pack("<4sHHII", b"UDM1", kind, 0, nr, len(buffer) if length is None else length) + buffer


def ioctl(nr: int, payload: bytes = b"", **fields: object) -> bytes:
    return frame(nr, Header(data_size=16384, **fields).pack() + payload)  # type: ignore[arg-type]


class Watch:
    """What a daemon has: descriptors, threads, devices; of the keeper, and of the worker that serves."""

    def __init__(self, daemon: Daemon, keeper: int) -> None:
        self.daemon = daemon
        self.worker = daemon.worker_pid
        self.processes = {keeper, self.worker}
        self.before = self.count()

    def count(self) -> tuple[int, int]:
        kinds = ("fd", "task")
        descriptors, threads = (sum(len(os.listdir(f"/proc/{pid}/{kind}")) for pid in self.processes) for kind in kinds)
        return descriptors, threads

    def memory(self) -> int:
        """Bytes of the worker that are really there."""
        return int(Path(f"/proc/{self.worker}/statm").read_text().split()[1]) * 4096

    def check(self, *, devices: int = 0) -> None:
        """Everything is as it was, and the daemon answers."""
        assert len(self.daemon.control.devices()) == devices
        assert self.daemon.worker_pid == self.worker, f"the worker died:\n{self.daemon.log()}"
        end = time.monotonic() + SECONDS
        while any(now > then for now, then in zip(self.count(), self.before, strict=True)):
            assert time.monotonic() < end, f"descriptors and threads: {self.before} before, {self.count()} now"
            time.sleep(0.05)
        assert "Traceback" not in self.daemon.log(), self.daemon.log()


@pytest.fixture
def watch(daemon: Daemon) -> Iterator[Watch]:
    keeper = daemon.start()
    # what the first device of a daemon brings with it stays: the process that freezes, say
    control = daemon.control
    control.create("first")
    control.load("first", ZERO)
    control.resume("first")
    control.suspend("first")
    control.resume("first")
    remove(control, "first")
    yield Watch(daemon, keeper)


def test_hang_ups_between_any_two_bytes(watch: Watch) -> None:
    whole = ioctl(dm.DM_DEV_CREATE, name="halved")
    assert len(whole) == 16 + dm.HEADER_SIZE
    for cut in range(len(whole)):
        with Guest(watch.daemon) as guest:
            if cut % 2:
                assert guest.greeted() == 0
            with contextlib.suppress(ConnectionError):
                guest.socket.sendall(whole[:cut])
    watch.check()


def test_half_a_frame_and_silence(watch: Watch) -> None:
    """Nobody else waits for them; when they hang up they are gone."""
    with contextlib.ExitStack() as stack:
        for cut in (0, 1, 15, 16, 17, 300):
            for _ in range(5):
                guest = stack.enter_context(Guest(watch.daemon))
                assert guest.greeted() == 0
                guest.socket.sendall(ioctl(dm.DM_DEV_CREATE, name="silent")[:cut])
        for name in ("one", "two"):
            watch.daemon.control.create(name)
            watch.daemon.control.remove(name)
    watch.check()


def test_lengths_that_cannot_be(watch: Watch) -> None:
    """Nothing is made room for that has not come."""
    before = watch.memory()
    with contextlib.ExitStack() as stack:
        for length in (frames.MAX_BUFFER + 1, 1 << 31, (1 << 32) - 1):
            guest = stack.enter_context(Guest(watch.daemon))
            assert guest.greeted() == 0
            guest.socket.sendall(frame(dm.DM_VERSION, b"", length=length))
            assert guest.socket.recv(100) == b""
        for _ in range(40):
            guest = stack.enter_context(Guest(watch.daemon))
            assert guest.greeted() == 0
            guest.socket.sendall(frame(dm.DM_VERSION, b"x", length=frames.MAX_BUFFER))
        assert watch.daemon.control.devices() == []
        assert watch.memory() - before < 200 << 20
    watch.check()


def test_five_hundred_at_once(watch: Watch) -> None:
    with contextlib.ExitStack() as stack:
        guests = [stack.enter_context(Guest(watch.daemon)) for _ in range(500)]
        for guest in guests:
            assert guest.greeted() == 0
        for guest in guests:
            guest.socket.sendall(ioctl(dm.DM_VERSION))
        for guest in guests:
            number, reply, _ = frames.receive_reply(guest.socket)
            assert number == 0 and dm.unpack_version(reply) == dm.VERSION
    watch.check()


def test_a_full_door_is_tried_again(tmp_path: Path) -> None:
    """It was an error, "Resource temporarily unavailable", where hundreds of commands started at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door, contextlib.ExitStack() as stack:
        door.bind(str(tmp_path / "control"))
        door.listen(0)
        # a worker that serves, and is not just being replaced
        (tmp_path / "worker").write_text("1\n")
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting.connect(str(tmp_path / "control"))
        with pytest.raises(HungDaemon):
            Control(str(tmp_path)).ping()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(Control(str(tmp_path)).ping)
            for _ in range(2):
                guest = stack.enter_context(door.accept()[0])
                frames.send_greeting(guest, 0)
            assert asked.result(SECONDS) == os.getpid()


def test_bent_frames(watch: Watch) -> None:
    """Of bent buffers, with headers that are bent as well. The buffers name nothing of this machine's."""

    def example(rng: random.Random) -> None:
        nr, buffer = Buffers(rng).command()
        if nr == dm.DM_DEV_WAIT:
            nr = dm.DM_DEV_STATUS
        raw = bytearray(frame(nr, buffer, kind=rng.choice((0, 0, 0, 0, 0, 0, 1, 2, 65535))))
        if rng.random() < 0.3:
            raw[rng.randrange(16)] ^= 1 << rng.randrange(8)
        with Guest(watch.daemon) as guest:
            assert guest.greeted() == 0
            try:
                guest.socket.sendall(raw)
                guest.socket.shutdown(socket.SHUT_WR)
                number, _, detail = frames.receive_reply(guest.socket)
            except ConnectionError:
                return
            assert 0 <= number < 200 and "internal error" not in detail, (nr, number, detail)

    budget.run(300, example)
    for name, _ in watch.daemon.control.devices():
        with contextlib.suppress(OSError):
            watch.daemon.control.resume(name)
        watch.daemon.control.remove(name)
    watch.check()


STEPS: tuple[tuple[int, dict[str, object], bytes], ...] = (
    (dm.DM_DEV_CREATE, {"name": "half", "uuid": "HALF"}, b""),
    (dm.DM_TABLE_LOAD, {"name": "half", "target_count": 1}, tables.pack_load(ZERO)),
    (dm.DM_DEV_SUSPEND, {"name": "half"}, b""),
    (dm.DM_DEV_SUSPEND, {"name": "half", "flags": dm.SUSPEND}, b""),
    (dm.DM_DEV_RENAME, {"name": "half"}, lists.pack_string("halved")),
)


@pytest.mark.parametrize("waits", [True, False], ids=["after the answer", "before the answer"])
@pytest.mark.parametrize("done", range(1, len(STEPS) + 1))
def test_a_client_that_dies_between_two_ioctls(watch: Watch, done: int, waits: bool) -> None:
    """What it did is there for the next one to see and to take away; nothing in between."""
    for nr, fields, payload in STEPS[:done]:
        with Guest(watch.daemon) as guest:
            assert guest.greeted() == 0
            guest.socket.sendall(ioctl(nr, payload, **fields))
            if waits or nr != STEPS[done - 1][0]:
                assert frames.receive_reply(guest.socket)[0] == 0
    control = watch.daemon.control
    end = time.monotonic() + SECONDS
    while True:
        # a request that nobody waits for any more is done or is not
        names = [name for name, _ in control.devices()]
        try:
            for name in names:
                if control.status(name)[0].suspended:
                    control.resume(name)
                control.remove(name)
            control.create("half", uuid="HALF")
            break
        except OSError as error:
            assert error.errno in (errno.EBUSY, errno.ENXIO), error
            assert time.monotonic() < end
    control.remove("half")
    end = time.monotonic() + SECONDS
    while control.devices():
        assert time.monotonic() < end
        for name, _ in control.devices():
            with contextlib.suppress(OSError):
                control.remove(name)
    watch.check()


def race(pool: ThreadPoolExecutor, *acts: Callable[[], object]) -> list[int]:
    """All at once; the errno of each, 0 for success."""
    barrier = threading.Barrier(len(acts))

    def run(act: Callable[[], object]) -> int:
        barrier.wait(SECONDS)
        try:
            act()
        except OSError as error:
            return error.errno or -1
        return 0

    return [future.result(SECONDS) for future in [pool.submit(run, act) for act in acts]]


def test_races_for_a_name_and_a_uuid(watch: Watch) -> None:
    """Exactly one wins, whatever the other does."""
    control = watch.daemon.control
    with ThreadPoolExecutor(2) as pool:
        for number in range(200):
            if number % 2:
                outcome = race(pool, *2 * [lambda: control.create("same")])
            else:
                outcome = race(pool, *[partial(control.create, name, uuid="SAME") for name in "ab"])
            assert sorted(outcome) == [0, errno.EBUSY], (number, outcome)
            (name, _), *others = control.devices()
            assert not others
            remove(control, name)
    watch.check()


def test_races_for_another_name_and_uuid(watch: Watch) -> None:
    control = watch.daemon.control
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            for name in "ab":
                control.create(name)
            outcome = race(pool, *[partial(control.set_uuid, name, "SAME") for name in "ab"])
            assert sorted(outcome) == [0, errno.EBUSY], outcome
            outcome = race(pool, *[partial(control.rename, name, "same") for name in "ab"])
            assert sorted(outcome) == [0, errno.EBUSY], outcome
            outcome = race(pool, *3 * [partial(control.remove, "same")])
            # who comes while it is under way finds it busy, or gone
            assert outcome.count(0) == 1 and set(outcome) <= {0, errno.ENXIO, errno.EBUSY}, outcome
            (name, _), *others = control.devices()
            assert not others
            remove(control, name)
    watch.check()


def test_create_and_remove_race(watch: Watch) -> None:
    """Of a whole device: each command is done or refused, and at the end the name is free."""
    control = watch.daemon.control

    def make() -> None:
        control.create("it")
        control.load("it", ZERO)
        control.resume("it")

    with ThreadPoolExecutor(3) as pool:
        for _ in range(30):
            outcome = race(pool, make, lambda: control.remove("it"), lambda: control.rename("it", "other"))
            assert set(outcome) <= {0, errno.ENXIO, errno.EBUSY, errno.EINVAL}, outcome
            for name, _ in control.devices():
                control.remove(name)
    watch.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, to become somebody else")
def test_somebody_else_is_refused(watch: Watch) -> None:
    """The socket's mode keeps him out; where that was loosened, the greeting does, before he is listened to."""
    for loosened, wanted in ((False, errno.EACCES), (True, 0)):
        if loosened:
            for folder in (watch.daemon.base, watch.daemon.run):
                folder.chmod(0o755)
            (watch.daemon.run / "control").chmod(0o666)
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = 99
            try:
                with Guest(watch.daemon) as guest:
                    status = guest.greeted()
                    guest.socket.sendall(ioctl(dm.DM_DEV_CREATE, name="his"))
            except OSError as error:
                status = error.errno or 98 if status == 99 else status
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (errno.EACCES if loosened else wanted)
    (watch.daemon.run / "control").chmod(0o600)
    watch.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, for a root folder of one's own")
def test_paths_are_the_callers(watch: Watch) -> None:
    """In a root folder of his own the table's path is looked up there; what is not there does not exist for him."""
    root = watch.daemon.base / "root"
    root.mkdir()
    (root / "disk").write_bytes(b"his" + bytes(4093))
    for name in ("linked to", "relative"):
        (root / name.replace(" ", "-")).write_bytes(name.encode().ljust(4096, b"\0"))
    # a link begins at his root, too
    (root / "link").symlink_to("/linked-to")
    (root / "folder").mkdir()
    outside = watch.daemon.base / "outside"
    outside.write_bytes(bytes(4096))
    control = watch.daemon.control
    paths = {"his": "/disk", "not his": str(outside), "linked to": "/link", "relative": "../relative"}
    for name in paths:
        control.create(name)
    connections = [Guest(watch.daemon) for _ in range(2)]
    child = os.fork()
    if child == 0:
        try:
            for guest in connections:
                guest.socket.close()
            # the daemon's socket by its descriptor: connected from inside
            folder = os.open(watch.daemon.run, os.O_PATH)
            os.chroot(root)
            os.chdir("/")
            numbers = []
            for name, path in paths.items():
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                    sock.settimeout(SECONDS)
                    os.fchdir(folder)
                    sock.connect("control")
                    os.chdir("/folder")
                    assert frames.receive_greeting(sock) == 0
                    payload = tables.pack_load([(0, 8, "linear", f"{path} 0")])
                    sock.sendall(ioctl(dm.DM_TABLE_LOAD, payload, name=name, target_count=1))
                    numbers.append(frames.receive_reply(sock)[0])
            os._exit(0 if numbers == [0, errno.ENODEV, 0, 0] else 1)
        finally:
            os._exit(97)
    for guest in connections:
        guest.socket.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for name in ("his", "linked to", "relative"):
        control.resume(name)
        fd = os.open(watch.daemon.nodes / name, os.O_RDONLY)
        try:
            assert os.pread(fd, len(name), 0) == name.encode()
        finally:
            os.close(fd)
    for name in paths:
        remove(control, name)
    watch.check()


def remove(control: Control, name: str) -> None:
    """Whoever looks at new block devices (udev) is gone in a moment."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            control.remove(name)
            return
        except OSError as error:
            assert error.errno == errno.EBUSY and time.monotonic() < end, error
        time.sleep(0.05)


def test_a_hundred_thousand_targets(watch: Watch) -> None:
    kinds = ("zero", "error")
    lines = [(8 * index, 8, kinds[index % 2], "") for index in range(100_000)]
    control = watch.daemon.control
    before = watch.memory()
    control.create("wide")
    assert control.load("wide", lines).inactive
    assert control.resume("wide").target_count == len(lines)
    assert control.table("wide")[1] == lines
    assert len(control.status("wide")[1]) == len(lines)
    with pytest.raises(OSError) as error:
        control.load("wide", [*lines, (8 * len(lines) + 8, 8, "zero", "")])
    assert error.value.errno == errno.EINVAL
    fd = os.open(watch.daemon.nodes / "wide", os.O_RDONLY)
    try:
        assert os.pread(fd, 4096, 8 * 512 * 99_998) == bytes(4096)
        with pytest.raises(OSError):
            os.pread(fd, 4096, 8 * 512 * 99_999)
    finally:
        os.close(fd)
    control.create("small")
    remove(control, "small")
    remove(control, "wide")
    assert watch.memory() - before < 500 << 20
    watch.check()
