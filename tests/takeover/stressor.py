"""Uses a file system hard and remembers all that it did: `python stressor.py FOLDER SEED STOP`.

Creates, renames, truncates, punches, syncs and deletes files in FOLDER and compares what it reads with what it wrote,
mostly from the device and not from the cache, until the file STOP is there. Ends with 1 and says what is wrong, or with
0 and the number of steps.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from pathlib import Path

FILES = 24
LARGEST = 1 << 20
PUNCH = 0x01 | 0x02

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Stressor:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.files: dict[str, bytearray] = {}
        self.count = 0
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        acts = [self.create] * 3 + [self.write] * 6 + [self.check] * 5
        acts += [self.rename, self.truncate, self.punch, self.sync, self.sync, self.delete, self.folders]
        if len(self.files) < 3:
            self.create()
        elif len(self.files) > FILES:
            self.delete()
        else:
            self.random.choice(acts)()

    def any(self) -> str:
        return self.random.choice(sorted(self.files))

    def bytes(self, most: int) -> bytes:
        return self.random.randbytes(64) * (self.random.randrange(1, most) // 64 + 1)

    def create(self) -> None:
        self.count += 1
        name = f"f{self.count}"
        data = self.bytes(LARGEST // 4)
        (self.folder / name).write_bytes(data)
        self.files[name] = bytearray(data)

    def write(self) -> None:
        name = self.any()
        data = self.bytes(LARGEST // 16)
        offset = self.random.randrange(LARGEST - len(data))
        with open(self.folder / name, "r+b") as file:
            file.seek(offset)
            file.write(data)
            if self.random.random() < 0.3:
                file.flush()
                os.fsync(file.fileno())
        content = self.files[name]
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data

    def check(self) -> None:
        name = self.any()
        fd = os.open(self.folder / name, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            found = bytearray()
            while piece := os.read(fd, 1 << 18):
                found += piece
        finally:
            os.close(fd)
        content = self.files[name]
        if found != content:
            first = next((at for at, (a, b) in enumerate(zip(found, content, strict=False)) if a != b), -1)
            raise AssertionError(f"{name}: {len(found)} bytes, must be {len(content)}; differs from byte {first}")

    def rename(self) -> None:
        old = self.any()
        new = self.any() if self.random.random() < 0.3 else f"{old}r"[-60:]
        (self.folder / old).rename(self.folder / new)
        if new != old:
            self.files[new] = self.files.pop(old)

    def truncate(self) -> None:
        name = self.any()
        size = self.random.randrange(LARGEST)
        os.truncate(self.folder / name, size)
        content = self.files[name]
        del content[size:]
        content.extend(bytes(size - len(content)))

    def punch(self) -> None:
        name = self.any()
        content = self.files[name]
        start = self.random.randrange(len(content) + 1)
        length = self.random.randrange(1, 1 << 17)
        with open(self.folder / name, "r+b") as file:
            if libc.fallocate(file.fileno(), PUNCH, start, length) != 0:
                raise OSError(ctypes.get_errno(), "fallocate")
        end = min(start + length, len(content))
        content[start:end] = bytes(max(0, end - start))

    def sync(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def delete(self) -> None:
        name = self.any()
        (self.folder / name).unlink()
        del self.files[name]

    def folders(self) -> None:
        path = self.folder / f"d{self.count}"
        path.mkdir(exist_ok=True)
        (path / "x").write_bytes(b"x")
        (path / "x").unlink()
        path.rmdir()


def main(folder: str, seed: str, stop: str) -> int:
    stressor = Stressor(Path(folder), int(seed))
    try:
        while not Path(stop).exists():
            stressor.step()
        if sorted(stressor.files) != sorted(entry.name for entry in Path(folder).iterdir()):
            raise AssertionError("the folder holds other files")
        for _ in range(len(stressor.files)):
            stressor.check()
            stressor.delete()
    except (OSError, AssertionError) as error:
        print(f"step {stressor.steps}: {error!r}", flush=True)
        return 1
    print(stressor.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
