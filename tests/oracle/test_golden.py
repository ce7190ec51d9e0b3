"""From the kernel to here: every golden pool opens, reads, and dumps as the kernel has it."""

from __future__ import annotations

import errno
import hashlib
import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.dump import in_old_words
from support.golden import GOLDENS, Golden, Volume
from support.thin import run_tool
from userdm.api.pool import DeviceFile
from userdm.mapper.device import MappedDevice
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import open_storage
from userdm.tools.dump import dump_storage

each_golden = pytest.mark.parametrize("golden", GOLDENS, ids=[golden.name for golden in GOLDENS])


@contextmanager
def pool_of(golden: Golden, folder: Path) -> Iterator[Mapper]:
    """The pool, active in this process under the name `pool`, with the table that the kernel printed."""
    golden.unpack(folder)
    words = golden.printed("table")["pool"].split()
    params = " ".join([f"{folder}/m.img", f"{folder}/d.img", *words[5:]])
    mapper = Mapper()
    try:
        activate(mapper, "pool", Line(int(words[0]), int(words[1]), "thin-pool", params))
        yield mapper
    finally:
        mapper.close()
    # the kernel itself leaves a leaked block behind where it gave a transaction up
    lenient = ["--ignore-non-fatal-errors"] if golden.name == "needs_check" else []
    assert run_tool("thin_check", *lenient, "-q", f"{folder}/m.img").returncode == 0


def activate(mapper: Mapper, name: str, line: Line) -> MappedDevice:
    device = mapper.create(name)
    mapper.load(device, [line])
    mapper.resume(device)
    return device


def activate_thin(mapper: Mapper, volume: Volume, folder: Path) -> MappedDevice:
    origin = folder / "o.img"
    params = f"/dev/mapper/pool {volume.dev_id}{f' {origin}' if origin.exists() else ''}"
    return activate(mapper, f"thin{volume.dev_id}", Line(0, volume.sectors, "thin", params))


def checksum(device: MappedDevice) -> str:
    digest = hashlib.sha256()
    with DeviceFile(device) as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
    return digest.hexdigest()


@each_golden
def test_every_volume_reads_as_the_kernel_read_it(golden: Golden, tmp_path: Path) -> None:
    with pool_of(golden, tmp_path) as mapper:
        assert golden.volumes
        for volume in golden.volumes:
            assert checksum(activate_thin(mapper, volume, tmp_path)) == volume.sha256


@each_golden
def test_status_is_what_the_kernel_printed(golden: Golden, tmp_path: Path) -> None:
    status = golden.printed("status")
    with pool_of(golden, tmp_path) as mapper:
        pool = mapper.find(name="pool").live
        assert pool is not None
        assert pool.entries[0].target.status_line() == " ".join(status["pool"].split(" ")[3:])
        for volume in golden.volumes:
            thin = activate_thin(mapper, volume, tmp_path).live
            name = f"thin{volume.dev_id}"
            if thin is not None and name in status:
                assert thin.entries[0].target.status_line() == " ".join(status[name].split(" ")[3:])


@each_golden
def test_dump_is_thin_dumps(golden: Golden, tmp_path: Path) -> None:
    golden.unpack(tmp_path)
    before = subprocess.run(["sha256sum", tmp_path / "m.img"], capture_output=True, check=True).stdout
    out = io.StringIO()
    storage = open_storage(tmp_path / "m.img", readonly=True)
    try:
        dump_storage(storage, out)
    finally:
        storage.close()
    assert out.getvalue() == golden.dump
    assert subprocess.run(["sha256sum", tmp_path / "m.img"], capture_output=True, check=True).stdout == before


def test_needs_check_is_read_only(tmp_path: Path) -> None:
    """The kernel found no room for metadata and marked the pool: it opens for reading alone, and stays marked."""
    golden = Golden("needs_check")
    with pool_of(golden, tmp_path) as mapper:
        device = activate_thin(mapper, golden.volumes[0], tmp_path)
        with pytest.raises(OSError) as refused:
            mapper.message(mapper.find(name="pool"), 0, "create_thin 1")
        assert refused.value.errno == errno.EOPNOTSUPP
        with DeviceFile(device) as file, pytest.raises(OSError) as failed:
            file.seek((golden.volumes[0].sectors - 8) * 512)
            file.write(bytes(4096))
        assert failed.value.errno == errno.EIO
    assert in_old_words(run_tool("thin_dump", f"{tmp_path}/m.img").stdout) == golden.dump


def test_what_is_held_stays_as_it_was(tmp_path: Path) -> None:
    """Work goes on under a reserved metadata snapshot, and the snapshot does not move."""
    golden = Golden("held")
    held = run_tool("thin_dump", "--metadata-snap", f"{tmp_path}/m.img")
    with pool_of(golden, tmp_path) as mapper:
        held = run_tool("thin_dump", "--metadata-snap", f"{tmp_path}/m.img")
        assert held.returncode == 0
        device = activate_thin(mapper, golden.volumes[0], tmp_path)
        with DeviceFile(device) as file:
            file.write(b"over a block that the held metadata maps" * 512)
            file.seek(1 << 20)
            file.write(bytes(1 << 20))
        mapper.message(mapper.find(name="pool"), 0, "create_snap 5 0")
        mapper.message(mapper.find(name="pool"), 0, "delete 2")
    after = run_tool("thin_dump", "--metadata-snap", f"{tmp_path}/m.img")
    assert after.stdout == held.stdout
    assert in_old_words(run_tool("thin_dump", f"{tmp_path}/m.img").stdout) != golden.dump
