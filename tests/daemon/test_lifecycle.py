"""Starting, stopping, dying and hanging, with real processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.daemon import Daemon
from userdm.abi import dm_ioctl, frames, runtime
from userdm.abi.dm_ioctl import Header
from userdm.api.control import PATIENCE, Control
from userdm.api.errors import ControlError, HungDaemon, NoDaemon
from userdm.api.start import lock_holder
from userdm.daemon.folders import choose_mapper_dir

ROOT = os.geteuid() == 0


def state_of(daemon: Daemon) -> dict[str, object]:
    """Everything that must be the same after a restart. In place of numbers names: another test may have taken one."""
    control = daemon.control
    devices = control.devices()
    names = {devno: name for name, devno in devices}

    def lines(records: list[tuple[int, int, str, str]]) -> list[tuple[int, int, str, list[str]]]:
        numbers = {f"{major}:{minor}": name for (major, minor), name in names.items()}
        return [
            (start, length, kind, [numbers.get(w, w) for w in text.split()]) for start, length, kind, text in records
        ]

    found: dict[str, object] = {}
    for name, devno in devices:
        info, live = control.table(name)
        _, inactive = control.table(name, inactive=True)
        _, deps = control.deps(name)
        assert info.devno == devno
        flags = (info.suspended, info.readonly, info.live, info.inactive)
        found[name] = (info.uuid, flags, lines(live), lines(inactive), [names.get(dep, dep) for dep in deps])
    return found


def a_stack(daemon: Daemon) -> None:
    """A few devices on each other, named so that those above come first; one suspended, one with an inactive table."""
    disk = daemon.base / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    daemon.userdm("daemon", "start")
    make(daemon, "z", [(0, 1024, "linear", f"{disk} 0")], uuid="UUID-Z")
    make(daemon, "m", [(0, 512, "linear", f"{daemon.nodes}/z 0"), (512, 512, "zero", "")])
    make(daemon, "a", [(0, 100, "linear", f"{daemon.nodes}/m 0")], readonly=True)
    make(daemon, "asleep", [(0, 8, "zero", "")])
    control = daemon.control
    control.load("m", [(0, 16, "linear", f"{daemon.nodes}/z 16")])
    control.create("empty")
    control.suspend("asleep")


def make(
    daemon: Daemon, name: str, lines: list[tuple[int, int, str, str]], *, uuid: str = "", readonly: bool = False
) -> None:
    daemon.control.create(name, uuid)
    daemon.control.load(name, lines, readonly=readonly)
    daemon.control.resume(name)


def test_starts_on_first_use_and_lets_go_of_its_starter(daemon: Daemon) -> None:
    assert daemon.userdm("daemon", "status", code=1).stderr.startswith("userdm: no daemon runs for ")
    # the pipe must end with the command: a daemon that kept it would hold up every shell script
    assert daemon.userdm("ls").stdout == "No devices found\n"
    pid = daemon.control.ping()
    assert f"Process:           {pid}\n" in daemon.userdm("daemon", "status").stdout
    for each in (pid, daemon.worker_pid):
        folder = Path(f"/proc/{each}/fd")
        links = {int(entry.name): str(entry.readlink()) for entry in folder.iterdir()}
        assert links[0] == "/dev/null"
        assert links[1] == links[2] == ("/dev/null" if each != daemon.worker_pid else str(daemon.run / "log"))
        assert str(Path(f"/proc/{each}/cwd").readlink()) == "/"
        assert os.getsid(each) == pid


def test_many_first_uses_at_once_make_one_daemon(daemon: Daemon) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda number: daemon.userdm("create", f"d{number}", "--table", "0 8 zero"), range(6)))
    assert all(each.stderr == "" for each in done)
    assert len(daemon.userdm("ls").stdout.splitlines()) == 6


def test_a_stop_and_a_start_bring_everything_back(daemon: Daemon) -> None:
    a_stack(daemon)
    before = state_of(daemon)
    assert daemon.userdm("daemon", "stop").stdout == "stopped; the next start brings 5 devices back\n"
    with pytest.raises(NoDaemon):
        daemon.control.ping()
    assert not daemon.nodes.exists() or not list(daemon.nodes.iterdir())
    daemon.userdm("daemon", "start")
    assert state_of(daemon) == before


def test_a_crash_and_a_start_bring_everything_back(daemon: Daemon) -> None:
    a_stack(daemon)
    before = state_of(daemon)
    daemon.kill()
    daemon.userdm("daemon", "start")
    assert state_of(daemon) == before
    # and by number too, now that the devices below have other ones
    daemon.kill()
    daemon.userdm("daemon", "start")
    assert state_of(daemon) == before


def test_a_device_that_was_renamed_is_found_again_by_those_above(daemon: Daemon) -> None:
    daemon.userdm("create", "below", "--table", "0 16 zero")
    make(daemon, "above", [(0, 16, "linear", f"{daemon.nodes}/below 0")])
    daemon.control.rename("below", "zzz")
    before = state_of(daemon)
    daemon.kill()
    daemon.userdm("daemon", "start")
    assert state_of(daemon) == before


def test_storage_that_is_another_is_not_brought_back(daemon: Daemon) -> None:
    a_stack(daemon)
    daemon.userdm("daemon", "stop")
    disk = daemon.base / "disk"
    disk.rename(daemon.base / "gone")
    disk.write_bytes(bytes(1 << 20))
    status = daemon.userdm("daemon", "start").stdout + daemon.userdm("daemon", "status").stdout
    assert f"Not brought back:  z: table line 1: linear: device '{disk}': another one" in status
    assert "Not brought back:  a: " in status
    assert "Not brought back:  m: " in status
    assert daemon.userdm("ls").stdout.split("\t")[0] == "asleep"
    log = daemon.userdm("daemon", "log").stdout
    assert "z is not brought back" in log
    assert f"linear {disk} 0" not in log  # it is there as the state has it
    assert f'"linear", "{disk} 0"' in log


def test_stop_refuses_while_a_device_is_open(daemon: Daemon) -> None:
    daemon.userdm("create", "used", "--table", "0 2048 zero")
    daemon.userdm("create", "free", "--table", "0 2048 zero")
    with open(daemon.nodes / "used", "rb"):
        done = daemon.userdm("daemon", "stop", code=1)
        assert "used is open 1 time" in done.stderr
        assert "free" not in done.stderr
        assert daemon.userdm("info", "-c", "--noheadings", "-o", "name").stdout == "free\nused\n"
    daemon.userdm("daemon", "stop")


def test_stop_by_force(daemon: Daemon) -> None:
    daemon.userdm("create", "used", "--table", "0 2048 zero")
    pid = daemon.control.ping()
    with open(daemon.nodes / "used", "rb") as file:
        daemon.userdm("daemon", "stop", "--force")
        daemon.wait_for_end(pid)
        with pytest.raises(OSError, match="error|not connected|abort"):
            os.pread(file.fileno(), 4096, 1 << 19)
    assert daemon.userdm("table").stdout == "used: 0 2048 zero \n"


def test_sigterm_with_a_device_in_use_goes_on_serving(daemon: Daemon) -> None:
    pid = daemon.start()
    daemon.userdm("create", "used", "--table", "0 2048 zero")
    with open(daemon.nodes / "used", "rb"):
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 10
        while "goes on" not in daemon.log():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "used is open 1 time" in daemon.log()
        assert daemon.userdm("table").stdout == "used: 0 2048 zero \n"
    # without root the kernel tells of the close after close(2) has returned
    while daemon.userdm("info", "-c", "--noheadings", "-o", "open", "used").stdout.strip() != "0":
        assert time.monotonic() < end
    os.kill(pid, signal.SIGTERM)
    daemon.wait_for_end(pid)
    assert not (daemon.run / "control").exists()
    assert list(daemon.nodes.iterdir()) == []
    assert daemon.userdm("table").stdout == "used: 0 2048 zero \n"


def test_a_hung_daemon_is_reported_within_seconds_and_can_be_cleared(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 2048 zero")
    pid = daemon.control.ping()
    os.kill(daemon.worker_pid, signal.SIGSTOP)
    began = time.monotonic()
    for words in (["info", str(daemon.nodes / "a")], ["daemon", "status"]):
        said = daemon.userdm(*words, code=1).stderr
        assert f"pid {pid}, does not answer" in said
        assert "`userdm daemon stop --kill`" in said
    assert time.monotonic() - began < 2 * (PATIENCE + 2)
    done = daemon.userdm("daemon", "stop", "--kill")
    assert done.stdout.startswith(f"pid {pid} is killed\n")
    daemon.wait_for_end(pid)
    assert list(daemon.nodes.iterdir()) == []
    assert daemon.userdm("table").stdout == "a: 0 2048 zero \n"


def test_a_daemon_that_hangs_while_a_command_runs(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 2048 zero")
    pid = daemon.control.ping()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            daemon.control.wait("a", 0)
        except OSError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(PATIENCE + 0.5)
    # slow is not hung
    assert thread.is_alive()
    worker = daemon.worker_pid
    os.kill(worker, signal.SIGSTOP)
    thread.join(3 * PATIENCE)
    assert isinstance(caught[0], HungDaemon)
    assert caught[0].pid == pid
    os.kill(worker, signal.SIGCONT)


def test_a_daemon_that_dies_while_a_command_runs(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 2048 zero")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(daemon.userdm, "wait", "a", code=1)
        time.sleep(1)
        daemon.kill()
        said = waiting.result().stderr
    assert "ended before it answered" in said
    assert "Traceback" not in said


def test_what_a_hung_daemon_never_heard_is_not_done_later(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 2048 zero")
    pid = daemon.worker_pid
    os.kill(pid, signal.SIGSTOP)
    daemon.userdm("remove", "a", code=1)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.2)
    assert daemon.userdm("table").stdout == "a: 0 2048 zero \n"


def test_only_a_daemon_is_killed(daemon: Daemon) -> None:
    daemon.userdm("ls")
    daemon.userdm("daemon", "stop")
    program = (
        "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True)"
    )
    bystander = subprocess.Popen(
        [sys.executable, "-c", f"{program}; time.sleep(100)", daemon.run / "lock"], stdout=subprocess.PIPE
    )
    try:
        assert bystander.stdout is not None
        bystander.stdout.readline()
        (daemon.run / "pid").write_text(f"{bystander.pid}\n")
        assert "is held, and not by" in daemon.userdm("daemon", "stop", "--kill", code=1).stderr
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate()


def test_one_daemon_for_each_runtime_folder(daemon: Daemon) -> None:
    daemon.userdm("ls")
    pid = lock_holder(str(daemon.run))
    command = [sys.executable, "-m", "userdm.daemon"]
    done = subprocess.run([*command, "--foreground"], env=daemon.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "a daemon runs for" in done.stderr
    assert subprocess.run(command, env=daemon.env, timeout=60).returncode == 0
    assert lock_holder(str(daemon.run)) == pid


def test_a_runtime_folder_that_others_can_write_to_is_refused(daemon: Daemon) -> None:
    daemon.run.mkdir()
    daemon.run.chmod(0o777)
    said = daemon.userdm("ls", code=1).stderr
    assert "drwxrwxrwx" in said
    assert "must be a folder of uid" in said
    daemon.run.chmod(0o700)


def test_a_daemon_that_cannot_start_says_why(daemon: Daemon) -> None:
    daemon.nodes.write_text("not a folder")
    said = daemon.userdm("create", "a", "--table", "0 8 zero", code=1).stderr
    assert "the daemon does not start" in said
    assert str(daemon.nodes) in said
    daemon.nodes.unlink()


def test_a_waiting_client_that_dies_leaves_no_thread(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 8 zero")
    pid = daemon.worker_pid

    def threads() -> int:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))

    def wait_for(reached: Callable[[int], bool]) -> None:
        end = time.monotonic() + 30
        while not reached(threads()):
            assert time.monotonic() < end, f"{threads()} threads"
            time.sleep(0.02)

    # the ping's own thread may still be ending
    before = threads()
    for _ in range(50):
        time.sleep(0.01)
        before = min(before, threads())
    waiters = [daemon.control.connect() for _ in range(5)]
    for waiter in waiters:
        frames.send_request(waiter, frames.IOCTL, dm_ioctl.DM_DEV_WAIT, Header(data_size=4096, name="a").pack())
    wait_for(lambda count: count >= before + 5)
    # they hold up nobody
    assert daemon.control.devices()[0][0] == "a"
    for waiter in waiters:
        waiter.close()
    wait_for(lambda count: count <= before)


def test_a_stop_wakes_who_waits(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 8 zero")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(daemon.userdm, "wait", "a", code=1)
        time.sleep(0.5)
        began = time.monotonic()
        daemon.userdm("daemon", "stop")
        assert time.monotonic() - began < 5
        assert "Interrupted system call" in waiting.result().stderr


def test_paths_mean_what_they_mean_to_the_caller(daemon: Daemon) -> None:
    folder = daemon.base / "folder"
    folder.mkdir()
    (folder / "disk").write_bytes(bytes(4096))
    table = ["--table", "0 8 linear disk 0"]
    daemon.userdm("create", "a", *table, code=1)
    done = subprocess.run(daemon.command("create", "a", *table), cwd=folder, env=daemon.env, timeout=60)
    assert done.returncode == 0
    assert daemon.userdm("table", "a").stdout == f"0 8 linear {folder}/disk 0\n"
    before = state_of(daemon)
    daemon.kill()
    daemon.userdm("daemon", "start")
    assert state_of(daemon) == before


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="missing: root, for a mount namespace")
def test_paths_in_the_callers_mount_namespace(daemon: Daemon) -> None:
    daemon.userdm("ls")
    private = daemon.base / "private"
    private.mkdir()
    script = 'mount -t tmpfs none "$1" && truncate -s 4096 "$1/disk" && shift && exec "$@"'
    words = daemon.command("create", "a", "--table", f"0 8 linear {private}/disk 0")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", private, *words], env=daemon.env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(private.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="missing: root, to become somebody else")
def test_another_user_is_refused(daemon: Daemon) -> None:
    daemon.userdm("ls")
    for path, mode in ((daemon.base, 0o711), (daemon.run, 0o711), (daemon.run / "control", 0o666)):
        path.chmod(mode)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            os.environ["USERDM_RUNTIME_DIR"] = str(daemon.run)
            Control().version()
        except OSError as error:
            code = 0 if error.errno == errno.EACCES and "refuses uid 65534" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "of uid 65534" in daemon.log()


def test_garbage_on_the_socket_is_survived(daemon: Daemon) -> None:
    pid = daemon.start()
    for data in (b"", b"x" * 5, b"GET / HTTP/1.0\r\n\r\n", b"UDM1" + b"\xff" * 12, b"UDM1" + bytes(12)):
        sock = daemon.control.connect()
        sock.sendall(data)
        sock.close()
    for verb in ("bogus", "", "\0"):
        with pytest.raises(ControlError) as caught:
            daemon.control.query(verb)
        assert caught.value.errno == errno.EINVAL
    assert daemon.control.ping() == pid


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="missing: root, for a mount namespace")
def test_a_foreign_mount_namespace_is_refused(daemon: Daemon) -> None:
    # in the ordinary folders, which it must not even look at; under a first process of our own, which we may look at
    env = {key: value for key, value in daemon.env.items() if not key.startswith("USERDM_")}
    first = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", 'unshare -m "$@"; exit $?', "sh"]
    command = [*first, sys.executable, "-m", "userdm.daemon", "--foreground"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "this mount namespace" in done.stderr
    assert "USERDM_ANY_NAMESPACE=1" in done.stderr


def test_where_things_are(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("USERDM_RUNTIME_DIR", "USERDM_MAPPER_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(key, raising=False)
    private = daemon.base / "private"
    private.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime.runtime_dir() == "/run/userdm"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
    assert runtime.runtime_dir() == "/run/userdm"
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert runtime.runtime_dir() == f"{private}/userdm"
    assert choose_mapper_dir(private) == private / "mapper"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    assert runtime.runtime_dir() == "/tmp/userdm-4321"
    monkeypatch.setenv("USERDM_RUNTIME_DIR", "somewhere")
    assert runtime.runtime_dir() == str(Path.cwd() / "somewhere")
    # a private runtime folder has a private mapper folder, also for root
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert choose_mapper_dir(private) == private / "mapper"
    monkeypatch.setenv("USERDM_MAPPER_DIR", "/dev/elsewhere")
    assert choose_mapper_dir(private) == Path("/dev/elsewhere")
