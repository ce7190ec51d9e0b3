"""A daemon with pools on sparse files, and the shell around it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from support.daemon import Daemon, missing, running_daemon

MIB_SECTORS = 2048


class Stage:
    """A daemon with one pool, and the shell around it. Sizes in MiB."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.base = daemon.base
        self.mounts: list[Path] = []

    def sh(self, *words: object, code: int | None = 0, timeout: float = 120) -> str:
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, timeout=timeout, env=self.daemon.env
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def dm(self, *words: object, code: int | None = 0) -> str:
        done = self.daemon.userdm(*(str(word) for word in words), code=code)
        return done.stdout + done.stderr

    def node(self, name: str) -> Path:
        return self.daemon.nodes / name

    def pool(self, name: str = "pool", size: int = 256, features: str = "") -> None:
        """Sparse files, and a pool over them."""
        metadata, data = self.base / f"{name}.meta", self.base / f"{name}.data"
        for path, length in ((metadata, 8), (data, size)):
            if not path.exists():
                with path.open("wb") as file:
                    file.truncate(length << 20)
        self.dm(
            "create", name, "--table", f"0 {size * MIB_SECTORS} thin-pool {metadata} {data} 128 0 {features}".rstrip()
        )

    def message(self, text: str, pool: str = "pool", code: int | None = 0) -> str:
        return self.dm("message", pool, "0", text, code=code)

    def thin(self, name: str, dev_id: int, size: int = 128, pool: str = "pool") -> Path:
        self.dm("create", name, "--table", f"0 {size * MIB_SECTORS} thin {self.node(pool)} {dev_id}")
        return self.node(name)

    def mount(self, node: Path, *options: str) -> Path:
        point = self.base / f"mnt-{node.name}"
        point.mkdir(exist_ok=True)
        self.sh("mount", *options, node, point)
        self.mounts.append(point)
        return point

    def umount(self, point: Path) -> None:
        self.sh("umount", point)
        self.mounts.remove(point)

    def close(self) -> None:
        for point in reversed(self.mounts):
            subprocess.run(["umount", "-l", point], check=False)


def want_root_and(*tools: str) -> None:
    """Skip the test, naming what is missing, unless it has root, these tools, and what a daemon needs."""
    if os.geteuid() != 0:
        pytest.skip("missing: root")
    what = next((tool for tool in tools if shutil.which(tool) is None), missing())
    if what is not None:
        pytest.skip(f"missing: {what}")


S = TypeVar("S", bound=Stage)


@contextlib.contextmanager
def running_stage(make: Callable[[Daemon], S]) -> Iterator[S]:
    """With a daemon that starts on first use; both are taken down at the end."""
    with running_daemon() as daemon:
        stage = make(daemon)
        try:
            yield stage
        finally:
            stage.close()
