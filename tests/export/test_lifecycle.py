"""Numbers, names, openers, removal; and that nothing is left behind."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import threading
from pathlib import Path

import pytest

from userdm.export.exporter import DeviceExporter

from .backends import MiB, disk, free_minor, memory, raises, sh, wait_for

pytestmark = pytest.mark.root


def test_a_device_that_is_open_cannot_be_removed(exporter: DeviceExporter, mapper_dir: Path) -> None:
    export = exporter.create("vol", memory(), None)
    export.activate("vol", False)
    with (mapper_dir / "vol").open("rb") as node:
        assert export.open_count() == 1
        with raises(errno.EBUSY):
            export.remove()
        # nothing has changed
        assert (mapper_dir / "vol").is_block_device()
        assert node.read(512) == bytes(512)
        minor = export.devno[1]
        before = disk(minor)
        assert Path(f"/sys/dev/block/7:{minor}/loop/autoclear").read_text() == "0\n"
    assert export.open_count() == 0
    export.remove()
    assert not (mapper_dir / "vol").is_symlink()
    assert disk(minor) != before


def test_a_mounted_device_cannot_be_removed(exporter: DeviceExporter, mapper_dir: Path, tmp_path: Path) -> None:
    export = exporter.create("vol", memory(), None)
    export.activate("vol", False)
    point = tmp_path / "mnt"
    point.mkdir()
    sh("mkfs.ext4", "-q", mapper_dir / "vol")
    sh("mount", mapper_dir / "vol", point)
    assert export.open_count() == 1
    with (mapper_dir / "vol").open("rb"):
        assert export.open_count() == 2
    with raises(errno.EBUSY):
        export.remove()
    with (point / "held").open("w"):
        sh("umount", "-l", point)
        assert export.open_count() == 1  # mounted nowhere, and still there
        with raises(errno.EBUSY):
            export.remove()
    wait_for(lambda: export.open_count() == 0, "the last file was closed")
    export.remove()


def test_a_mount_in_another_namespace_counts_once(exporter: DeviceExporter, mapper_dir: Path, tmp_path: Path) -> None:
    export = exporter.create("vol", memory(), None)
    export.activate("vol", False)
    point = tmp_path / "mnt"
    point.mkdir()
    sh("mkfs.ext4", "-q", mapper_dir / "vol")
    script = f"mount {mapper_dir / 'vol'} {point} && echo mounted && read line"
    with in_namespace(script):
        assert export.open_count() == 1
        with raises(errno.EBUSY):
            export.remove()
    wait_for(lambda: export.open_count() == 0, "the namespace is gone")
    export.remove()


def in_namespace(script: str) -> subprocess.Popen[str]:
    """A shell in a mount namespace of its own; it has printed a line, and goes on when its input closes."""
    process = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "mounted"
    return process


def test_a_loop_device_on_top_counts(exporter: DeviceExporter, mapper_dir: Path) -> None:
    export = exporter.create("vol", memory(), None)
    export.activate("vol", False)
    above = sh("losetup", "-f", "--show", mapper_dir / "vol").strip()
    try:
        assert export.open_count() == 1
        with raises(errno.EBUSY):
            export.remove()
    finally:
        sh("losetup", "-d", above)
    wait_for(lambda: export.open_count() == 0, "the loop device on top let go")
    export.remove()


def test_rename_moves_the_node(exporter: DeviceExporter, mapper_dir: Path) -> None:
    export = exporter.create("old", memory(), None)
    export.activate("old", False)
    with (mapper_dir / "old").open("r+b"):
        export.rename("new")
        assert [entry.name for entry in mapper_dir.iterdir()] == ["new"]
        assert (mapper_dir / "new").stat().st_rdev == os.makedev(*export.devno)
    export.activate("new", False)
    assert [entry.name for entry in mapper_dir.iterdir()] == ["new"]


def test_nodes_are_relative_in_dev_and_absolute_elsewhere(tmp_path: Path) -> None:
    folder = Path(f"/dev/userdm-test-{os.getpid()}")
    made = DeviceExporter(tmp_path / "run", folder, as_root=True)
    try:
        export = made.create("vol", memory(), None)
        export.activate("vol", False)
        assert os.readlink(folder / "vol") == f"../loop{export.devno[1]}"  # noqa: PTH115
        assert (folder / "vol").is_block_device()
    finally:
        made.close()
        folder.rmdir()
    other = DeviceExporter(tmp_path / "run", tmp_path / "mapper", as_root=True)
    try:
        export = other.create("vol", memory(), None)
        export.activate("vol", False)
        assert os.readlink(tmp_path / "mapper/vol") == f"/dev/loop{export.devno[1]}"  # noqa: PTH115
    finally:
        other.close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_names_that_name_no_node(exporter: DeviceExporter, name: str) -> None:
    with raises(errno.EINVAL):
        exporter.create(name, memory(), None)


def test_a_name_as_the_mapper_gives_it(exporter: DeviceExporter, mapper_dir: Path) -> None:
    export = exporter.create("a\\x20b é #1", memory(), None)
    export.activate("a\\x20b é #1", False)
    assert (mapper_dir / "a\\x20b é #1").is_block_device()


def test_what_is_no_device_is_not_replaced(exporter: DeviceExporter, mapper_dir: Path) -> None:
    mapper_dir.mkdir()
    (mapper_dir / "control").write_text("somebody's")
    export = exporter.create("control", memory(), None)
    with raises(errno.EEXIST):
        export.activate("control", False)
    export.remove()
    assert (mapper_dir / "control").read_text() == "somebody's"


def test_a_node_that_libdevmapper_made_is_replaced_and_removed(exporter: DeviceExporter, mapper_dir: Path) -> None:
    mapper_dir.mkdir()
    export = exporter.create("vol", memory(), None)
    os.mknod(mapper_dir / "vol", 0o60600, os.makedev(*export.devno))
    export.activate("vol", False)
    assert (mapper_dir / "vol").is_symlink()
    (mapper_dir / "vol").unlink()
    os.mknod(mapper_dir / "vol", 0o60600, os.makedev(*export.devno))
    export.remove()
    assert not (mapper_dir / "vol").exists()


def test_a_number_that_is_asked_for(exporter: DeviceExporter) -> None:
    minor = free_minor()
    first = exporter.create("first", memory(), minor)
    assert first.devno == (7, minor)
    assert Path(f"/dev/loop{minor}").is_block_device()
    with raises(errno.EBUSY):
        exporter.create("taken", memory(), minor)
    first.remove()
    assert not Path(f"/dev/loop{minor}").exists()
    assert exporter.create("again", memory(), minor).devno == (7, minor)
    with raises(errno.EBUSY):
        exporter.create("loop0", memory(), 0)
    with raises(errno.EINVAL):
        exporter.create("far", memory(), 1 << 20)


def test_removed_without_ever_being_activated(exporter: DeviceExporter, mapper_dir: Path) -> None:
    export = exporter.create("vol", memory(), None)
    assert export.open_count() == 0
    export.remove()
    assert not mapper_dir.exists() or not list(mapper_dir.iterdir())


def test_the_end_with_a_device_in_use(exporter: DeviceExporter, mapper_dir: Path) -> None:
    export = exporter.create("vol", memory(), None)
    export.activate("vol", False)
    node = os.open(mapper_dir / "vol", os.O_RDWR | os.O_DIRECT)
    before = disk(export.devno[1])
    exporter.close()
    with raises(errno.EIO):
        os.preadv(node, [mmap.mmap(-1, 4096)], 0)
    os.close(node)
    assert len(exporter.clear_stale()) == 1
    assert disk(export.devno[1]) != before


def test_created_and_removed_by_several_threads(exporter: DeviceExporter, mapper_dir: Path) -> None:
    failed: list[BaseException] = []

    def rounds(number: int) -> None:
        try:
            for each in range(5):
                name = f"vol-{number}-{each}"
                export = exporter.create(name, memory(MiB), None)
                export.activate(name, False)
                assert (mapper_dir / name).is_block_device()
                export.remove()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=rounds, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed


def test_fifty_rounds_leave_nothing(exporter: DeviceExporter, mapper_dir: Path) -> None:
    def state() -> tuple[int, int, int, int]:
        return (
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            len(Path("/proc/self/mountinfo").read_text().splitlines()),
            len(list(mapper_dir.parent.glob("run/loop/*"))),
        )

    before = state()
    for _ in range(50):
        export = exporter.create("vol", memory(MiB), None)
        export.activate("vol", False)
        with (mapper_dir / "vol").open("r+b", buffering=0) as node:
            node.write(bytes(4096))
            os.fsync(node.fileno())
        made = disk(export.devno[1])
        export.remove()
        assert disk(export.devno[1]) != made
    assert state() == before
    assert not list(mapper_dir.iterdir())
