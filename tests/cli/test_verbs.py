"""What the session at the kernel does not show: our own words, nodes, pools, daemon verbs, what a start costs."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from support.daemon import Daemon

ROOT = os.geteuid() == 0
PROGRAM = Path(__file__).parents[2] / "bin" / "userdm"


def disk(daemon: Daemon, name: str, size: int) -> Path:
    path = daemon.base / name
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_the_reason_comes_after_dmsetups_lines(daemon: Daemon) -> None:
    said = daemon.userdm("create", "a", "--table", "0 8 linear /nonexistent 0", code=1).stderr.splitlines()
    assert said[0].startswith("device-mapper: reload ioctl on a (")
    assert said[0].endswith(") failed: No such device")
    assert said[1] == "Command failed."
    assert said[2].startswith("userdm: table line 1: linear: device '/nonexistent': No such file or directory")
    assert daemon.userdm("ls").stdout == "No devices found\n"


def test_usage() -> None:
    done = subprocess.run([sys.executable, "-m", "userdm"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Usage:\n\nuserdm <command>")
    done = subprocess.run([sys.executable, "-m", "userdm", "help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("word", "text"), [("create", "--notable"), ("linear", "offset"), ("thin-pool", "<metadata"), ("info", "--columns")]
)
def test_help(word: str, text: str) -> None:
    done = subprocess.run([sys.executable, "-m", "userdm", "help", word], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_help_for_what_is_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "userdm", "help", "bogus"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "bogus is neither a command nor a target" in done.stderr


def test_a_device_by_the_path_of_its_node(daemon: Daemon) -> None:
    daemon.userdm("create", "a b", "--table", "0 8 zero")
    node = daemon.nodes / "a\\x20b"
    assert os.path.lexists(node)
    paths = [str(node), str(daemon.nodes / "a b"), f"{daemon.nodes}/../nodes/a b"]
    if ROOT:
        paths.append(str(node.resolve()))
    for path in paths:
        assert daemon.userdm("table", path).stdout == "0 8 zero \n"
    assert daemon.userdm("table", str(daemon.nodes / "c"), code=1).stderr.startswith(
        f"Device {daemon.nodes}/c not found"
    )


def test_a_pool_by_the_command_line(daemon: Daemon) -> None:
    """The walk, without file systems."""
    meta, data = disk(daemon, "meta", 4 << 20), disk(daemon, "data", 64 << 20)
    pool = str(daemon.nodes / "pool")
    daemon.userdm("create", "pool", "--table", f"0 131072 thin-pool {meta} {data} 128 100 1 skip_block_zeroing")
    daemon.userdm("message", pool, "0", "create_thin 0")
    assert "File exists" in daemon.userdm("message", pool, "0", "create_thin", "0", code=1).stderr
    daemon.userdm("create", "base", "--table", f"0 32768 thin {pool} 0")
    node = daemon.nodes / "base"
    node_fd = os.open(node, os.O_RDWR)
    try:
        os.pwrite(node_fd, b"base" * 1024, 0)
        os.fsync(node_fd)
    finally:
        os.close(node_fd)
    daemon.userdm("suspend", "base")
    daemon.userdm("message", pool, "0", "create_snap 1 0")
    daemon.userdm("resume", "base")
    daemon.userdm("create", "snap", "--table", f"0 32768 thin {pool} 1")
    with open(daemon.nodes / "snap", "rb") as file:
        assert file.read(4096) == b"base" * 1024
    status = daemon.userdm("status", "pool").stdout
    assert status.startswith("0 131072 thin-pool 0 ")
    assert status.endswith(" - 256 \n")
    assert daemon.userdm("status", "base").stdout == "0 32768 thin 128 127\n"
    assert "Device or resource busy" in daemon.userdm("message", pool, "0", "delete 0", code=1).stderr
    # a new daemon has them all again
    daemon.userdm("daemon", "stop")
    assert daemon.userdm("status", "base").stdout == "0 32768 thin 128 127\n"
    with open(daemon.nodes / "snap", "rb") as file:
        assert file.read(4096) == b"base" * 1024
    assert "busy" in daemon.userdm("remove", "pool", code=1).stderr
    daemon.userdm("remove", "snap", "base", "pool")
    assert daemon.userdm("ls").stdout == "No devices found\n"


def test_containerds_way_to_ask(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 8 zero")
    fields = "name,blkdevname,attr,major,minor,open,segments,events"
    words = ["info", "--columns", "--noheadings", "-o", fields, "--separator", " ", str(daemon.nodes / "a")]
    words = daemon.userdm(*words).stdout.split(" ")
    assert len(words) == 8
    assert all(words)
    assert (words[0], words[2], words[5:]) == ("a", "L--w", ["0", "1", "0\n"])


def test_remove_by_force_from_under_an_opener(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 2048 zero")
    with open(daemon.nodes / "a", "rb", buffering=0) as file:
        done = daemon.userdm("remove", "--force", "a", code=1)
        assert done.stderr.startswith("device-mapper: remove ioctl on a  failed: Device or resource busy\n")
        assert daemon.userdm("table", "a").stdout == "0 2048 error \n"
        with pytest.raises(OSError, match="Input/output"):
            os.pread(file.fileno(), 512, 512 * 1024)
    daemon.userdm("remove", "--retry", "a")


def test_a_closed_standard_output(daemon: Daemon) -> None:
    daemon.userdm("ls")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        daemon.command("targets"), env=daemon.env, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_daemon_verbs(daemon: Daemon) -> None:
    assert daemon.userdm("daemon", "stop").stdout == f"no daemon runs for {daemon.run}\n"
    assert daemon.userdm("daemon", "stop", "--kill").stdout == f"no daemon ran for {daemon.run}\n"
    assert "There is no log yet" in daemon.userdm("daemon", "log", code=1).stderr
    assert daemon.userdm("daemon", "start").stdout == ""
    pid = daemon.control.ping()
    daemon.userdm("daemon", "start")
    assert daemon.control.ping() == pid
    assert f"Mapper folder:     {daemon.nodes}\n" in daemon.userdm("daemon", "status").stdout
    assert f"pid {daemon.worker_pid}" in daemon.userdm("daemon", "log").stdout
    assert "must be start, stop, status, upgrade, log" in daemon.userdm("daemon", "bogus", code=1).stderr


def installed(name: str) -> Path:
    """The program as pip has put it there."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"missing: {path} (pip install -e .)")
    return path


def test_the_installed_program_is_our_own_script() -> None:
    text = installed("userdm").read_text()
    assert text.startswith("#!")
    assert text.split("\n", 1)[1] == PROGRAM.read_text().split("\n", 1)[1]


def test_the_name_dmsetup(daemon: Daemon, tmp_path: Path) -> None:
    """A symbolic link is enough; and stderr has dmsetup's words alone."""
    for name in ("dmsetup", "dmstats", "devmap_name"):
        (tmp_path / name).symlink_to(PROGRAM)

    def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / name), *words]
        env = {**daemon.env, "PYTHONPATH": str(PROGRAM.parents[1] / "src")}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    done = run("dmsetup", "create", "a", "--table", "0 8 linear /nonexistent 0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["Command failed."]
    assert run("dmsetup", "create", "a", "--table", "0 8 zero").stderr == ""
    number = run("dmsetup", "info", "-c", "--noheadings", "-o", "devno", "a").stdout.strip()
    assert run("devmap_name", number).stdout == "a\n"
    assert run("devmap_name", *number.split(":")).stdout == "a\n"
    assert run("dmstats", "list").stdout == ""
    assert run("dmsetup", "version").stdout.count("\n") == 2
    assert run("dmsetup", "help").stderr.startswith("Usage:")


def on_a_terminal(command: list[str], env: dict[str, str]) -> str:
    ours, theirs = os.openpty()
    try:
        subprocess.run(command, env=env, stdout=theirs, check=True, timeout=60)
        return os.read(ours, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)


def test_colour_is_for_a_terminal(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 8 zero")
    daemon.userdm("suspend", "a")
    plain = daemon.userdm("info", "a").stdout
    assert "\033" not in plain
    env = {**daemon.env, "TERM": "xterm"}
    env.pop("NO_COLOR", None)
    shown = on_a_terminal(daemon.command("info", "a"), env)
    assert "\033[33mSUSPENDED\033[m\n" in shown
    assert re.sub("\033\\[[0-9]*m", "", shown) == plain
    assert on_a_terminal(daemon.command("info", "a"), {**env, "NO_COLOR": "1"}) == plain
    assert on_a_terminal(daemon.command("info", "a"), {**env, "TERM": "dumb"}) == plain
    assert "\033[1mName" in on_a_terminal(daemon.command("info", "-c"), env)


def test_a_tree_in_the_callers_characters(daemon: Daemon) -> None:
    daemon.userdm("create", "below", "--table", "0 8 zero")
    daemon.userdm("create", "top", "--table", f"0 8 linear {daemon.nodes}/below 0")
    assert daemon.userdm("ls", "--tree", "-o", "nodevice").stdout == "top\n └─below\n"
    for locale in ("C", "POSIX", ""):
        done = daemon.userdm("ls", "--tree", "-o", "nodevice", LC_ALL=locale, LC_CTYPE="", LANG="")
        assert done.stdout == "top\n `-below\n"


def test_select_goes_on_after_a_failure(daemon: Daemon) -> None:
    for name in ("a", "b", "c"):
        daemon.userdm("create", name, "--table", "0 8 zero")
    daemon.userdm("create", "top", "--table", f"0 8 linear {daemon.nodes}/b 0")
    done = daemon.userdm("remove", "-S", "name!=top", code=1)
    assert done.stderr.startswith(
        "device-mapper: remove ioctl on b  failed: Device or resource busy\nCommand failed.\n"
    )
    assert daemon.userdm("info", "-c", "--noheadings", "-o", "name").stdout == "b\ntop\n"


def test_what_table_says_create_takes(daemon: Daemon) -> None:
    daemon.userdm("create", "a,b", "-u", "u;v", "--table", "0 8 zero\n8 8 error")
    daemon.userdm("create", "c", "-r", "--table", "0 8 error")

    def concise() -> str:
        # without the numbers: by the time that they are asked for again, somebody else may have them
        return re.sub(r",\d+,(r[ow])", r",,\1", daemon.userdm("table", "--concise").stdout)

    said = concise()
    daemon.userdm("remove_all")
    assert daemon.userdm("ls").stdout == "No devices found\n"
    daemon.userdm("create", "--concise", stdin=said)
    assert concise() == said


def test_a_devices_keys_are_not_shown() -> None:
    from userdm.cli.table import _hidden

    assert _hidden("internal_hash:hmac(sha256):00ff") == "internal_hash:hmac(sha256):0000"
    assert _hidden("internal_hash:crc32c") == "internal_hash:crc32c"
    assert _hidden("journal_watermark:50:1") == "journal_watermark:50:1"


HEAVY = {"argparse", "dataclasses", "enum", "json", "pathlib", "re", "socket", "subprocess", "typing", "inspect"}


@pytest.mark.parametrize(
    "words",
    [
        ["version"],
        ["table", "a"],
        ["info", "-c", "a"],
        ["info", "-c", "-S", "open=0 && name=a"],
        ["message", "a", "0", "@stats_list"],
        ["ls"],
        ["ls", "--tree"],
        ["suspend", "a"],
        ["rename", "a", "b"],
    ],
)
def test_a_verb_imports_nothing_heavy(daemon: Daemon, words: list[str]) -> None:
    daemon.userdm("create", "a", "--table", "0 8 zero")
    program = "import sys; sys.argv[0] = 'userdm'; from userdm.cli.main import entry; entry(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, *words],
        env={**daemon.env, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


def cpu_seconds(command: list[str], env: dict[str, str]) -> float:
    """The processor time of one run, the smallest of many: what else the machine does hardly shows in it."""
    smallest = float("inf")
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        smallest = min(smallest, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return smallest


def test_a_verb_costs_about_as_much_again_as_starting_python(daemon: Daemon) -> None:
    daemon.userdm("create", "a", "--table", "0 8 zero")
    program = "import sys; sys.argv = ['userdm', 'table', 'a']; from userdm.cli.main import entry; sys.exit(entry())"
    nothing = cpu_seconds([sys.executable, "-c", "pass"], daemon.env)
    verb = cpu_seconds([sys.executable, "-c", program], daemon.env)
    assert verb < 2.2 * nothing, f"{verb * 1000:.1f} ms, and {nothing * 1000:.1f} ms for nothing"
