"""A stage whose daemon may have the kernel cache writes, and direct I/O on its devices."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.stage import MIB_SECTORS, Stage, running_stage

SECONDS = 60.0
PAGE = 4096


class CachedStage(Stage):
    """Pools with room to spare, and what one asks about the mode."""

    def big_pool(self, name: str = "pool", size: int = 2048, metadata: int = 64, features: str = "") -> None:
        """Sizes in MiB; no block is zeroed, so that the files stay small."""
        paths = [self.base / f"{name}.meta", self.base / f"{name}.data"]
        for path, length in zip(paths, (metadata, size), strict=True):
            with path.open("ab") as file:
                file.truncate(length << 20)
        words = f"skip_block_zeroing {features}".split()
        line = f"0 {size * MIB_SECTORS} thin-pool {paths[0]} {paths[1]} 128 0 {len(words)} {' '.join(words)}"
        self.dm("create", name, "--table", line)

    def volume(self, name: str = "thin", dev_id: int = 0, size: int = 128) -> Path:
        self.message(f"create_thin {dev_id}")
        return self.thin(name, dev_id, size)

    def why_direct(self, name: str) -> str | None:
        """None when it is cached, as the daemon and the loop driver say."""
        reasons: dict[str, str] = self.daemon.control.query("status")["not_cached"]
        return reasons.get(name)

    def is_direct(self, name: str) -> bool:
        loop = self.node(name).resolve().name
        return Path(f"/sys/block/{loop}/loop/dio").read_text().strip() == "1"

    def until_cached(self, name: str) -> None:
        end = time.monotonic() + SECONDS
        while (why := self.why_direct(name)) is not None:
            assert time.monotonic() < end, f"{name} is not cached: {why}\n{self.daemon.log()}"
            time.sleep(0.05)
        assert not self.is_direct(name)

    def until_direct(self, name: str, reason: str) -> bool:
        end = time.monotonic() + SECONDS
        while (why := self.why_direct(name)) != reason:
            assert time.monotonic() < end, f"{name} is cached, or direct because {why}"
            time.sleep(0.05)
        return self.is_direct(name)


@contextmanager
def cached_stage() -> Iterator[CachedStage]:
    with running_stage(CachedStage) as stage:
        stage.daemon.env["USERDM_CACHED"] = "1"
        yield stage


class DirectFile:
    """A device opened with O_DIRECT: what it writes, no cache above the device has; pages of one stamp each."""

    def __init__(self, node: Path, flags: int = os.O_RDWR) -> None:
        self.fd = os.open(node, flags | os.O_DIRECT | os.O_CLOEXEC)
        self._memory = mmap.mmap(-1, PAGE)
        self._view = memoryview(self._memory)

    def write(self, page: int, stamp: int) -> None:
        self._view[:] = stamp.to_bytes(8, "little") * (PAGE // 8)
        done = os.pwritev(self.fd, [self._view], page * PAGE)
        assert done == PAGE

    def read(self, page: int) -> int:
        """The page's stamp; -1 for one that is not whole."""
        assert os.preadv(self.fd, [self._view], page * PAGE) == PAGE
        stamp = int.from_bytes(self._view[:8], "little")
        return stamp if self._view == stamp.to_bytes(8, "little") * (PAGE // 8) else -1

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        self._view.release()

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stomper(threading.Thread):
    """Writes stamps 1, 2, 3, ... one after the other, stamp n to a page that n alone decides, until it is stopped."""

    def __init__(self, node: Path, pages: int, stride: int = 1, first: int = 1) -> None:
        super().__init__(daemon=True)
        self.pages = pages
        self.stride = stride
        self.completed = first - 1
        self.error: OSError | None = None
        self._first = first
        self._file = DirectFile(node)
        self._ending = False

    def page(self, stamp: int) -> int:
        # all pages in a scattered order
        return stamp * 7919 % self.pages * self.stride

    def run(self) -> None:
        with self._file as file:
            stamp = self._first
            while not self._ending:
                try:
                    file.write(self.page(stamp), stamp)
                except OSError as error:
                    self.error = error
                    return
                self.completed = stamp
                stamp += 1

    def until(self, stamp: int) -> None:
        end = time.monotonic() + SECONDS
        while self.completed < stamp:
            assert self.error is None, self.error
            assert time.monotonic() < end, f"{self.completed} writes of {stamp}"
            time.sleep(0.002)

    def stop(self) -> int:
        """The last stamp that was written."""
        self._ending = True
        self.join(SECONDS)
        assert not self.is_alive()
        return self.completed

    def expected(self, last: int) -> dict[int, int]:
        """What each page holds after stamp ``last``, 0 for one that was never written."""
        found = dict.fromkeys((page * self.stride for page in range(self.pages)), 0)
        for stamp in range(max(1, last - self.pages + 1), last + 1):
            found[self.page(stamp)] = stamp
        return found

    def check(self, node: Path, low: int, high: int) -> int:
        """The device must be as it was after one of the stamps low to high: which one."""
        with DirectFile(node, os.O_RDONLY) as file:
            found = {page * self.stride: file.read(page * self.stride) for page in range(self.pages)}
        last = max(found.values())
        assert low <= last <= high, f"the last stamp is {last}, must be {low} to {high}"
        wrong = {page: (stamp, found[page]) for page, stamp in self.expected(last).items() if found[page] != stamp}
        assert not wrong, f"after stamp {last}: page: (expected, found): {dict(list(wrong.items())[:10])}"
        return last
