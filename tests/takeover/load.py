"""What goes on while workers die: file systems in use, fio, and somebody who changes tables, snapshots and volumes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.stage import Stage
from userdm.api.errors import ControlError, DaemonError

FIO = ["fio", "--name=verify", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8"]
FIO += ["--verify=crc32c", "--verify_fatal=1"]


class Stressing:
    """The stressor, as a process of its own."""

    def __init__(self, folder: Path, seed: int, stop: Path) -> None:
        folder.mkdir()
        script = str(Path(__file__).with_name("stressor.py"))
        self._process = subprocess.Popen(
            [sys.executable, script, str(folder), str(seed), str(stop)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def steps(self) -> int:
        """How many there were; AssertionError with what it said when one of them went wrong."""
        said = self._process.communicate(timeout=120)[0]
        assert self._process.returncode == 0, said
        return int(said)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Verifying(threading.Thread):
    """fio, over and over."""

    def __init__(self, target: Path, size: int, stop: Path) -> None:
        super().__init__()
        self.rounds = 0
        self.failure: str | None = None
        self._command = [*FIO, f"--filename={target}", f"--size={size}m"]
        self._until = stop

    def run(self) -> None:
        while not self._until.exists():
            command = [*self._command, f"--randseed={self.rounds + 1}"]
            done = subprocess.run(command, cwd=self._until.parent, capture_output=True, text=True)
            if done.returncode != 0:
                self.failure = done.stdout + done.stderr
                return
            self.rounds += 1


class Changing(threading.Thread):
    """Snapshots, discards, table swaps and suspends, as one who does not know whether a command that was cut off was
    done: he sends it again."""

    def __init__(self, stage: Stage, pools: dict[str, str], points: list[Path], seed: int, stop: Path) -> None:
        """``pools``: for each volume, by its name, the pool; the volume's id there is 0."""
        super().__init__()
        self.stage = stage
        self.control = stage.daemon.control
        self.pools = pools
        self.points = points
        self.random = random.Random(seed)
        self.failure: BaseException | None = None
        self.doubts = 0
        self.done: dict[str, int] = {}
        self.snapshots: dict[str, tuple[str, int]] = {}
        """Name, and the pool and the id there."""
        self._ids = 100
        self._until = stop

    def run(self) -> None:
        try:
            while not self._until.exists():
                acts: list[Callable[[], None]] = [
                    self.snapshot,
                    self.drop,
                    self.swap,
                    self.swap_pool,
                    self.sleep,
                    self.trim,
                ]
                act = self.random.choice(acts)
                act()
                self.done[act.__name__] = self.done.get(act.__name__, 0) + 1
        except BaseException as error:
            self.failure = error

    def sure(self, act: Callable[[], object], *already: int) -> None:
        """Until it is done; ``already`` are the errors of one that has been done before."""
        doubt = False
        end = time.monotonic() + 60
        while True:
            try:
                act()
                return
            except DaemonError as error:
                if error.errno != errno.ECONNRESET:
                    raise
                assert "may or may not have been done" in str(error)
                self.doubts += 1
                doubt = True
            except ControlError as error:
                if doubt and error.errno in already:
                    return
                # somebody looks at it just now
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def snapshot(self) -> None:
        if len(self.snapshots) >= 4:
            self.drop()
        control, origin = self.control, self.random.choice(sorted(self.pools))
        pool = self.pools[origin]
        self._ids += 1
        name, dev_id = f"s{self._ids}", self._ids
        self.sure(lambda: control.message(pool, 0, f"create_snap {dev_id} 0"), errno.EEXIST)
        self.sure(lambda: control.create(name), errno.EBUSY)
        length = control.table(origin)[1][0][1]
        self.sure(lambda: control.load(name, [(0, length, "thin", f"{self.stage.node(pool)} {dev_id}")]))
        self.sure(lambda: control.resume(name))
        self.snapshots[name] = pool, dev_id

    def drop(self) -> None:
        if self.snapshots:
            name = self.random.choice(sorted(self.snapshots))
            pool, dev_id = self.snapshots.pop(name)
            self.sure(lambda: self.control.remove(name), errno.ENXIO)
            self.sure(lambda: self.control.message(pool, 0, f"delete {dev_id}"), errno.ENODATA)

    def swap(self, name: str | None = None) -> None:
        """The same table again, which is a swap all the same."""
        name = name or self.random.choice(sorted(self.pools))
        lines = self.control.table(name)[1]
        self.sure(lambda: self.control.load(name, lines))
        self.sure(lambda: self.control.resume(name))

    def swap_pool(self) -> None:
        self.swap(self.random.choice(sorted(self.pools.values())))

    def sleep(self) -> None:
        name = self.random.choice(sorted(self.pools))
        lockfs = self.random.random() < 0.5
        self.sure(lambda: self.control.suspend(name, lockfs=lockfs))
        time.sleep(self.random.random() * 0.05)
        self.sure(lambda: self.control.resume(name))

    def trim(self) -> None:
        subprocess.run(["fstrim", str(self.random.choice(self.points))], check=True, capture_output=True)


class Killing:
    """Kills the process that serves, or that is about to."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.random = random.Random(seed)
        self.keeper = stage.daemon.control.ping()
        self.starting = 0
        """How many died before they served."""

    def _workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.keeper}/task/{self.keeper}/children").read_text().split()]

    def one(self) -> None:
        if self.random.random() < 0.2:
            # whoever there is, in whatever state
            time.sleep(self.random.random() * 0.4)
            serving = (self.stage.daemon.run / "worker").exists()
            victims = self._workers()
            self.starting += bool(victims and not serving)
        else:
            victims = [self.stage.daemon.worker_pid]
            time.sleep(self.random.random() * 1.6)
        for pid in victims:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
