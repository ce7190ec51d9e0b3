"""Two devices that a power cut may hit at any moment, and what it may leave of them.

Both record what is written and flushed, in one order. A cut keeps what was flushed before, and of what was not any
subset: each write is kept, lost, or torn at 512-byte sectors.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from typing import Any

from support.faulty import FailingStorage
from userdm.storage import MemoryStorage

SECTOR = 512


@dataclass
class Write:
    device: int
    offset: int
    data: bytes


@dataclass
class Flush:
    device: int


class Recording(MemoryStorage):
    """Memory that writes down what is done to it."""

    def __init__(self, size: int, device: int, events: list[Any]) -> None:
        super().__init__(size)
        self.device = device
        self.events = events
        self.visible = size
        """Bytes that the device has for now."""

    @property
    def size(self) -> int:
        return self.visible

    def write(self, offset: int, view: memoryview | bytes | bytearray) -> None:
        self.events.append(Write(self.device, offset, bytes(view)))
        super().write(offset, view)

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        self.events.append(Flush(self.device))


class Handle(FailingStorage):
    """One process's way to a storage: when the process is dead, nothing of it arrives any more."""

    dead = False

    def _meet(self, kind: str, offset: int, length: int) -> None:
        if self.dead:
            raise OSError(errno.EIO, "the process is dead")
        super()._meet(kind, offset, length)


class Disks:
    """Both devices as the cut leaves them."""

    def __init__(self, *sizes: int) -> None:
        self.durable = [bytearray(size) for size in sizes]
        self.pending: list[list[Write]] = [[] for _ in sizes]

    def advance(self, event: Any) -> None:
        if isinstance(event, Write):
            self.pending[event.device].append(event)
        elif isinstance(event, Flush):
            for write in self.pending[event.device]:
                self.durable[event.device][write.offset : write.offset + len(write.data)] = write.data
            self.pending[event.device].clear()

    def cut(self, rng: random.Random) -> list[bytearray]:
        images = [bytearray(image) for image in self.durable]
        mood = rng.choice(["all", "none", "some", "some", "torn"])
        for device, image in enumerate(images):
            for write in self.pending[device]:
                fate = mood if mood != "some" else rng.choice(["all", "none", "torn"])
                if fate == "all":
                    image[write.offset : write.offset + len(write.data)] = write.data
                elif fate == "torn":
                    for at in range(0, len(write.data), SECTOR):
                        if rng.random() < 0.5:
                            part = write.data[at : at + SECTOR]
                            image[write.offset + at : write.offset + at + len(part)] = part
        return images
