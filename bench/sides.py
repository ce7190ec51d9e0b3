"""Those who compete: each a block device of at least a GiB, in a folder of its own, until its context ends.

Below all of them is a plain file, reached through the page cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
HERE = Path(__file__).resolve().parent
START_SECONDS = 20.0


@dataclass(frozen=True)
class Device:
    path: str
    files: list[Path]
    """What lies below, to be brought into the page cache."""


def output(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run it; what it printed. CalledProcessError, with its words on our stderr, when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | (env or {}), check=True)
    return done.stdout.strip()


def sparse(path: Path, size: int) -> Path:
    with open(path, "xb") as file:
        file.truncate(size)
    return path


@contextmanager
def loop(path: Path, *, direct: bool) -> Iterator[str]:
    node = output("losetup", "--find", "--show", f"--direct-io={'on' if direct else 'off'}", path)
    try:
        yield node
    finally:
        output("losetup", "--detach", node)


@contextmanager
def child(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its standard input does, or when it is told to; not by a Ctrl-C that is for us."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(START_SECONDS)


@contextmanager
def thin(folder: Path, **more: str) -> Iterator[Device]:
    """A thin volume of a daemon of our own, started with ``more`` in its environment."""
    data, metadata = sparse(folder / "data", 4 * GIB), sparse(folder / "metadata", GIB // 16)
    env = {"USERDM_RUNTIME_DIR": str(folder / "run"), "USERDM_MAPPER_DIR": str(folder / "mapper"), **more}

    def userdm(*arguments: str) -> None:
        output("userdm", *arguments, env=env)

    try:
        table = f"0 {4 * GIB // 512} thin-pool {metadata} {data} 128 0 1 skip_block_zeroing"
        userdm("create", "pool", "--table", table)
        userdm("message", "pool", "0", "create_thin 0")
        userdm("create", "thin", "--table", f"0 {GIB // 512} thin {folder}/mapper/pool 0")
        yield Device(f"{folder}/mapper/thin", [data])
        userdm("remove", "--retry", "thin", "pool")
    finally:
        userdm("daemon", "stop", "--force")


@contextmanager
def cached_thin(folder: Path) -> Iterator[Device]:
    """The same in cached mode, which begins by itself a moment after the volume was made."""
    env = {"USERDM_RUNTIME_DIR": str(folder / "run"), "USERDM_MAPPER_DIR": str(folder / "mapper")}
    with thin(folder, USERDM_CACHED="1") as device:
        until = time.monotonic() + START_SECONDS
        while " thin: " in (said := output("userdm", "daemon", "status", env=env)):
            if time.monotonic() > until:
                raise RuntimeError(f"the volume is not cached: {said}")
            time.sleep(0.1)
        yield device


@contextmanager
def plain_loop(folder: Path) -> Iterator[Device]:
    """A loop device over a file, as losetup makes it."""
    file = sparse(folder / "file", GIB)
    with loop(file, direct=False) as node:
        yield Device(node, [file])


@contextmanager
def passthrough(folder: Path) -> Iterator[Device]:
    """The same export code over a plain file."""
    file = sparse(folder / "file", GIB)
    with child(sys.executable, HERE / "passthrough.py", folder / "run", file) as process:
        assert process.stdout is not None
        yield Device(process.stdout.readline().strip(), [file])


@contextmanager
def qemu(folder: Path) -> Iterator[Device]:
    """qemu-storage-daemon's FUSE export of a qcow2, under a loop device with direct I/O."""
    image, export = folder / "image.qcow2", sparse(folder / "export", 0)
    output("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", image, str(GIB))
    with child(
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=file,filename={image}"),
        *("--blockdev", "driver=qcow2,node-name=image,file=file"),
        *("--export", f"type=fuse,id=export,node-name=image,mountpoint={export},writable=on"),
    ) as process:
        until = time.monotonic() + START_SECONDS
        while export.stat().st_size != GIB:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("qemu-storage-daemon did not export the image")
            time.sleep(0.05)
        with loop(export, direct=True) as node:
            yield Device(node, [image])


SIDES: dict[str, Callable[[Path], AbstractContextManager[Device]]] = {
    "userdm thin": thin,
    "qemu-storage-daemon, qcow2": qemu,
    "bare passthrough": passthrough,
    "plain loop device": plain_loop,
}
