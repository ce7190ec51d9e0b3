"""From here to the kernel and back: pools made here activate there, read the same, and come home changed."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import userdm
from support import oracle
from support.dump import in_old_words
from support.golden import Golden
from support.thin import run_tool
from userdm.storage import open_storage
from userdm.tools.dump import dump_storage

SECTORS = 32771
"""Of each volume: no whole number of blocks."""
SIZE = SECTORS * 512
POOLS = {"small": (128, ["skip_block_zeroing"]), "odd": (384, [])}
"""name -> (sectors in a data block, features)"""
CHANGED = {"sharers": range(13), "walkthrough": range(3)}
"""Pools that the kernel made and we wrote on: name -> its volumes."""
WINDOW = (896 << 20, 16 << 20)
"""Offset and length, in bytes, of the part of walkthrough's volumes that no file uses and we write to."""
ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.oracle


@dataclass(frozen=True)
class Pools:
    folder: Path
    walk: str | None
    """Why the walk could not be made, or None."""
    here: dict[str, str]
    """What we read before the kernel had them: "before small-0" -> checksum."""
    there: dict[str, list[str]]
    """What the kernel's machine printed: "before small-0" -> the rest of the lines that begin so."""

    def files(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.meta", self.folder / f"{name}.data"


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Pools:
    """Make them all here, and boot the kernel once over them."""
    made = Pools(tmp_path_factory.mktemp("round-trip"), why_no_walk(), {}, defaultdict(list))
    for name in POOLS:
        make(made, name)
    for name in CHANGED:
        change(made, name)
    names = [*POOLS, *CHANGED]
    if made.walk is None:
        walk(made)
        names.append("walk")
    disks = [path for name in names for path in made.files(name)]
    printed = oracle.run((Path(__file__).parent / "round_trip.sh").read_text(), disks)
    for line in printed.splitlines():
        what, _, rest = line.partition(" ")
        name, _, rest = rest.partition(" ")
        made.there[f"{what} {name}"].append(rest)
    return made


def make(made: Pools, name: str) -> None:
    """Random writes, snapshots and discards, with the seed in the name."""
    metadata, data = made.files(name)
    block, features = POOLS[name]
    pick = random.Random(name)
    with userdm.Pool(metadata, data, create=192 << 20, block_sectors=block, features=features) as pool:

        def scribble(volume: userdm.Thin) -> None:
            with volume.open() as file:
                for _ in range(80):
                    offset = pick.randrange(SECTORS) * 512
                    length = min(pick.choice([512, 4096, 70_144, 300_032]), SIZE - offset)
                    if pick.random() < 0.2:
                        file.discard(offset, length)
                    else:
                        file.seek(offset)
                        file.write(pick.randbytes(16) * (length // 16))

        volumes = [pool.create_thin(0, SIZE)]
        for dev_id in (1, 2, 3):
            for volume in volumes:
                scribble(volume)
            volumes.append(pool.create_snap(dev_id, volumes[pick.randrange(dev_id)]))
            scribble(volumes[-1])
        volumes.pop().close()
        pool.delete(3)
        if name == "small":
            pool.message("set_transaction_id 0 5")
        for volume in volumes:
            made.here[f"before {name}-{volume.dev_id}"] = checksum(volume)
    check_dump(metadata)


def change(made: Pools, name: str) -> None:
    """Write on a golden pool: over shared blocks, into holes, after a snapshot of ours."""
    golden = Golden(name)
    golden.unpack(made.folder)
    metadata, data = made.files(name)
    (made.folder / "m.img").rename(metadata)
    (made.folder / "d.img").rename(data)
    start, length = WINDOW if name == "walkthrough" else (0, golden.volumes[0].sectors * 512)
    features = golden.printed("table")["pool"].split()[8:]
    pick = random.Random(name)
    with userdm.Pool(metadata, data, features=features) as pool:
        volumes = [pool.open_thin(volume.dev_id, volume.sectors * 512) for volume in golden.volumes]
        volumes.append(pool.create_snap(20, volumes[1]))
        for volume in volumes:
            with volume.open() as file:
                for _ in range(12):
                    file.seek(start + pick.randrange(length // 512 - 256) * 512)
                    file.write(pick.randbytes(512) * pick.choice([1, 8, 200]))
                file.discard(start + 5 * 65536, 2 * 65536)
        for volume in volumes:
            with volume.open() as file:
                file.seek(start)
                digest = hashlib.sha256(file.read(length) or b"")
            made.here[f"before {name}-{volume.dev_id}"] = digest.hexdigest()
    check_dump(metadata)


def why_no_walk() -> str | None:
    if os.geteuid() != 0:
        return "the walk on mounted file systems needs root"
    if not Path("/dev/fuse").exists() or not Path("/dev/loop-control").exists():
        return "the walk needs /dev/fuse and /dev/loop-control"
    return None


def walk(made: Pools) -> None:
    """What `./run demo` makes."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    command = [str(ROOT / "demo" / "walk"), "--keep", str(made.folder)]
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    metadata, data = made.files("walk")
    (made.folder / "meta.img").rename(metadata)
    (made.folder / "data.img").rename(data)
    check_dump(metadata)


def checksum(volume: userdm.Thin) -> str:
    with volume.open() as file:
        return hashlib.sha256(file.readall()).hexdigest()


def check_dump(metadata: Path) -> None:
    """What we dump is what thin_dump does."""
    out = io.StringIO()
    storage = open_storage(metadata, readonly=True)
    try:
        dump_storage(storage, out)
    finally:
        storage.close()
    assert out.getvalue() == in_old_words(run_tool("thin_dump", str(metadata)).stdout)


def for_each(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return pytest.mark.parametrize("name", names)


def need_walk(pools: Pools, name: str) -> None:
    if name == "walk" and pools.walk is not None:
        pytest.skip(pools.walk)


@for_each("small", "odd", "sharers", "walkthrough", "walk")
def test_the_metadata_is_whole(pools: Pools, name: str) -> None:
    """thin_check is content before the kernel opens the pool."""
    need_walk(pools, name)
    assert pools.there[f"check {name}"] == ["ok"]


@for_each("small", "odd")
def test_the_kernel_reads_what_we_wrote(pools: Pools, name: str) -> None:
    for dev_id in (0, 1, 2):
        key = f"before {name}-{dev_id}"
        assert pools.there[key] == [pools.here[key]]


@for_each(*CHANGED)
def test_the_kernel_reads_its_own_pool_as_we_changed_it(pools: Pools, name: str) -> None:
    for dev_id in (*CHANGED[name], 20):
        key = f"before {name}-{dev_id}"
        assert pools.there[key] == [pools.here[key]]


@for_each("small", "odd")
def test_we_read_what_the_kernel_wrote(pools: Pools, name: str) -> None:
    """It wrote, took a snapshot, discarded and deleted on our pool."""
    assert pools.there[f"check-after {name}"] == ["ok"]
    metadata, data = pools.files(name)
    block, features = POOLS[name]
    with userdm.Pool(metadata, data, block_sectors=block, features=features) as pool:
        for dev_id in (0, 1, 20):
            assert [checksum(pool.open_thin(dev_id, SIZE))] == pools.there[f"after {name}-{dev_id}"]
        with pytest.raises(OSError, match="2"):
            pool.open_thin(2, SIZE)
        assert pool.status().split()[0] == ("6" if name == "small" else "0")
    assert run_tool("thin_check", "-q", str(metadata)).returncode == 0
    check_dump(metadata)


@for_each("walkthrough", "walk")
def test_the_kernel_mounts_the_volumes(pools: Pools, name: str) -> None:
    need_walk(pools, name)
    base = ["id.txt: hello world, I am a base"]
    snapshots = [*base, "id.txt: I am snap1", "snap1.txt: I am snap1"]
    wanted = {0: base, 1: snapshots, 2: snapshots} | ({20: snapshots} if name == "walkthrough" else {})
    assert {dev_id: pools.there[f"file {name}-{dev_id}"] for dev_id in wanted} == wanted
    assert all(pools.there[f"fsck {name}-{dev_id}"] == ["ok"] for dev_id in wanted)


def test_what_the_kernel_wrote_on_the_walk_comes_home(pools: Pools, tmp_path: Path) -> None:
    need_walk(pools, "walk")
    assert pools.there["check-after walk"] == ["ok"]
    metadata, data = pools.files("walk")
    with userdm.Pool(metadata, data, features=["skip_block_zeroing"]) as pool:
        image = tmp_path / "volume"
        with pool.open_thin(1, 1 << 30).open() as file, open(image, "wb") as copy:
            while piece := file.read(1 << 20):
                if piece.count(0) == len(piece):
                    copy.seek(len(piece), os.SEEK_CUR)
                else:
                    copy.write(piece)
            copy.truncate(1 << 30)
    shown = run_tool("debugfs", "-R", "cat kernel.txt", str(image))
    assert shown.stdout == "written by the kernel\n"
