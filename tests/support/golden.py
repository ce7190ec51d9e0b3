"""The golden pools in tests/golden: what the kernel wrote, and what it said and read there."""

from __future__ import annotations

import lzma
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "golden"


@dataclass(frozen=True)
class Volume:
    """A thin volume as the kernel read it: the checksum is of all its sectors."""

    dev_id: int
    sectors: int
    sha256: str


@dataclass(frozen=True)
class Golden:
    name: str

    def unpack(self, folder: Path) -> None:
        """Put m.img (metadata), d.img (data) and, for `external`, o.img into the folder, sparse."""
        subprocess.run(["tar", "-C", folder, "-xf", FOLDER / f"{self.name}.tar.xz"], check=True)

    @property
    def volumes(self) -> list[Volume]:
        lines = (FOLDER / f"{self.name}.sha256").read_text().splitlines()
        return [Volume(int(dev_id), int(sectors), digest) for dev_id, sectors, digest in map(str.split, lines)]

    @property
    def dump(self) -> str:
        """As thin_dump wrote it."""
        return lzma.decompress((FOLDER / f"{self.name}.xml.xz").read_bytes()).decode()

    def printed(self, kind: str) -> dict[str, str]:
        """What the kernel's dmsetup printed: kind "table" or "status"; device -> line, the last time it was asked."""
        lines = (FOLDER / f"{self.name}.txt").read_text().splitlines()
        found: dict[str, list[str]] = {}
        for line in lines:
            name, colon, rest = line.partition(": ")
            if colon and rest.startswith("0 "):
                found.setdefault(name, []).append(rest)
        # `report` prints each table, then each status
        return {name: each[-2 if kind == "table" else -1] for name, each in found.items() if len(each) > 1}


GOLDENS = [Golden(path.name.removesuffix(".tar.xz")) for path in sorted(FOLDER.glob("*.tar.xz"))]
