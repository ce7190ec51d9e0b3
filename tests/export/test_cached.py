"""Cached mode: nobody notices, whatever happens meanwhile."""

from __future__ import annotations

import errno
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from support.cached import PAGE, CachedStage, DirectFile, Stomper, cached_stage
from support.daemon import missing
from support.stage import MIB_SECTORS

pytestmark = pytest.mark.root
MiB = 1 << 20
BLOCK_PAGES = 16
"""Pages of a data block of 64 KiB."""


@pytest.fixture
def stage() -> Iterator[CachedStage]:
    if (what := missing()) is not None:
        pytest.skip(f"missing: {what}")
    if shutil.which("thin_check") is None:
        pytest.skip("missing: thin_check")
    with cached_stage() as made:
        yield made


def test_what_was_cached_is_there_when_the_device_is_suspended(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume()
    stage.until_cached("thin")
    with DirectFile(node) as file:
        for page in range(64):
            file.write(page, page + 1)
    stage.dm("suspend", "thin")
    assert stage.is_direct("thin")
    assert stage.why_direct("thin") == "it is suspended"
    data = (stage.base / "pool.data").read_bytes()[: 4 * MiB]
    found = {int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), PAGE)}
    assert found >= set(range(1, 65))
    stage.dm("resume", "thin")
    stage.until_cached("thin")


def test_a_status_counts_what_was_written_before_it(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume()
    stage.until_cached("thin")
    with DirectFile(node) as file:
        for block in range(20):
            file.write(block * BLOCK_PAGES, 1)
        assert stage.dm("status", "thin").split()[3:] == [str(20 * 128), str(20 * 128 - 1)]
        assert stage.dm("status", "pool").split()[5] == "20/32768"
        file.write(20 * BLOCK_PAGES, 1)
        assert stage.dm("status", "pool").split()[5] == "21/32768"


def test_a_snapshot_is_exact_under_a_writer(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    writer = Stomper(node, 512, stride=3)
    writer.start()
    ranges = []
    for number in range(1, 6):
        stage.until_cached("thin")
        writer.until(writer.completed + 1500)
        low = writer.completed
        stage.message(f"create_snap {number} 0")
        ranges.append((low, writer.completed + 1))
    last = writer.stop()
    writer.check(node, last, last)
    for number, (low, high) in enumerate(ranges, 1):
        writer.check(stage.thin(f"snap{number}", number, size=16), low, high)


def test_a_suspend_stops_the_writers(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    writer = Stomper(node, 512, stride=3)
    writer.start()
    for flags in ([], ["--noflush"], ["--nolockfs"]):
        stage.until_cached("thin")
        writer.until(writer.completed + 500)
        stage.dm("suspend", *flags, "thin")
        seen = writer.completed
        time.sleep(0.3)
        assert writer.completed <= seen + 1  # one that was under way may have been counted late
        stage.dm("resume", "thin")
        writer.until(seen + 100)
    last = writer.stop()
    writer.check(node, last, last)


def test_a_suspend_of_the_pool_stops_the_writers(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    writer = Stomper(node, 512, stride=3)
    writer.start()
    stage.until_cached("thin")
    writer.until(500)
    stage.dm("suspend", "pool")
    assert stage.is_direct("thin")
    seen = writer.completed
    time.sleep(0.3)
    assert writer.completed <= seen + 1
    stage.dm("resume", "pool")
    writer.until(seen + 100)
    stage.until_cached("thin")
    last = writer.stop()
    writer.check(node, last, last)


def test_a_device_above_sees_everything(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    with DirectFile(node) as file:
        for page in range(512):
            file.write(page, 7)
    stage.dm("create", "above", "--table", f"0 {16 * MIB_SECTORS} linear {node} 0")
    assert stage.is_direct("thin")
    assert stage.why_direct("thin") == "the table of above names it"
    with DirectFile(stage.node("above")) as file:
        assert {file.read(page) for page in range(512)} == {7}
        file.write(5, 8)
    with DirectFile(node) as file:
        assert file.read(5) == 8
    stage.dm("remove", "above")
    stage.until_cached("thin")
    with DirectFile(node) as file:
        assert file.read(5) == 8


def test_a_table_above_that_is_only_loaded_counts(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    stage.dm("create", "above", "--notable")
    stage.dm("load", "above", "--table", f"0 {16 * MIB_SECTORS} linear {node} 0")
    assert stage.is_direct("thin")
    stage.dm("clear", "above")
    stage.until_cached("thin")


def test_two_devices_of_one_volume(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    with DirectFile(node) as file:
        file.write(3, 9)
    other = stage.thin("other", 0, size=16)
    assert stage.is_direct("thin")
    with DirectFile(other) as file:
        assert file.read(3) == 9
        file.write(3, 10)
    with DirectFile(node) as file:
        assert file.read(3) == 10
    assert stage.is_direct("other")


def test_who_reads_the_pool_device_sees_everything(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    with DirectFile(node) as file, DirectFile(stage.node("pool")) as below:
        file.write(0, 11)
        pages = [page for page in range(16) if below.read(page) == 11]
        assert stage.is_direct("thin")
        assert stage.why_direct("thin") == "the pool device itself was read or written a moment ago"
        assert len(pages) == 1
        below.write(pages[0], 12)
        assert file.read(0) == 12


def test_a_metadata_snapshot_has_everything_mapped(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    with DirectFile(node) as file:
        for block in range(10):
            file.write(block * BLOCK_PAGES, 1)
        stage.message("reserve_metadata_snap")
        dump = stage.sh("thin_dump", "-m", stage.base / "pool.meta")
        assert 'mapped_blocks="10"' in dump
        assert stage.is_direct("thin")
        stage.message("release_metadata_snap")
    stage.until_cached("thin")


def test_growing_and_shrinking(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    for size in (64, 8, 32):
        stage.until_cached("thin")
        with DirectFile(node) as file:
            file.write(100, size)
        stage.dm("reload", "thin", "--table", f"0 {size * MIB_SECTORS} thin {stage.node('pool')} 0")
        stage.dm("resume", "thin")
        assert stage.sh("blockdev", "--getsize64", node).strip() == str(size * MiB)
        stage.until_cached("thin")
        with DirectFile(node) as file:
            assert file.read(100) == size
            file.write(size * MiB // PAGE - 1, 77)
            file.flush()
            assert file.read(size * MiB // PAGE - 1) == 77
            with pytest.raises(OSError):
                file.write(size * MiB // PAGE, 5)
    stage.dm("reload", "--readonly", "thin", "--table", f"0 {32 * MIB_SECTORS} thin {stage.node('pool')} 0")
    stage.dm("resume", "thin")
    assert stage.until_direct("thin", "it is read-only")


def test_discards_of_what_is_cached(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    with DirectFile(node) as file:
        for page in range(1024):
            file.write(page, 1)
        stage.sh("blkdiscard", "-o", 0, "-l", 2 * MiB, node)
        file.write(7, 2)
        stage.sh("blkdiscard", "-z", "-o", 3 * MiB, "-l", 1 * MiB, node)
        assert not stage.is_direct("thin")
        found = [file.read(page) for page in range(1024)]
        expected = [0] * 512 + [1] * 256 + [0] * 256
        expected[7] = 2
        assert found == expected
        stage.dm("suspend", "thin")
        stage.dm("resume", "thin")
        assert [file.read(page) for page in range(1024)] == expected
    assert stage.dm("status", "pool").split()[5] == f"{1 + 16 + 16}/32768"


def test_a_removal_keeps_what_was_cached(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    for number in range(1, 4):
        stage.until_cached("thin")
        with DirectFile(node) as file:
            for page in range(300):
                file.write(page, number)
            stage.dm("remove", "thin", code=1)
            stage.until_cached("thin")
            file.write(0, 1000 + number)
        stage.dm("remove", "thin")
        node = stage.thin("thin", 0, size=16)
        with DirectFile(node) as file:
            assert [file.read(page) for page in range(300)] == [1000 + number] + 299 * [number]


def test_a_stop_keeps_what_was_cached(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=16)
    stage.until_cached("thin")
    with DirectFile(node) as file:
        for page in range(300):
            file.write(page, 1)
        # by force, with the device open
        stage.dm("daemon", "stop", "--force")
    stage.dm("daemon", "start")
    stage.until_cached("thin")
    with DirectFile(node) as file:
        assert {file.read(page) for page in range(300)} == {1}
        for page in range(300):
            file.write(page, 2)
    stage.dm("daemon", "stop")
    stage.dm("daemon", "start")
    with DirectFile(node) as file:
        assert {file.read(page) for page in range(300)} == {2}


def test_what_was_flushed_outlives_a_crash(stage: CachedStage) -> None:
    stage.big_pool()
    node = stage.volume(size=64)
    flushed: dict[int, int] = {}
    for crash in range(4):
        stage.until_cached("thin")
        written = dict(flushed)
        with DirectFile(node) as file:
            assert {page: file.read(page) for page in flushed} == flushed
            for stamp in range(crash * 1000 + 1, crash * 1000 + 701):
                page = stamp * 7919 % 16384
                file.write(page, stamp)
                written[page] = stamp
                if stamp % 100 == 0:
                    file.flush()
                    flushed = dict(written)
            assert not stage.is_direct("thin")
            # written after the last flush: may be there or not, and does not disturb what was
            for page in range(15000, 15200):
                file.write(page, 1)
                for kept in (flushed, written):
                    kept.pop(page, None)
            stage.daemon.kill()
        stage.dm("daemon", "start")


def test_a_full_pool_fails_the_very_write(stage: CachedStage) -> None:
    """Error policy, a volume larger than its pool: as many blocks are written as there are, then ENOSPC."""
    stage.big_pool(size=768, features="error_if_no_space")
    node = stage.volume(size=2048)
    stage.until_cached("thin")
    blocks = 768 * 16
    with DirectFile(node) as file:
        for block in range(blocks):
            file.write(block * BLOCK_PAGES, block + 1)
        for block in (blocks, blocks + 5):
            with pytest.raises(OSError) as caught:
                file.write(block * BLOCK_PAGES, 1)
            assert caught.value.errno == errno.ENOSPC
        # what has a block can be written still
        file.write(1, 5)
        file.flush()
        assert stage.is_direct("thin")
        assert all(file.read(block * BLOCK_PAGES) == block + 1 for block in range(0, blocks, 7))
        assert file.read(blocks * BLOCK_PAGES) == 0
    stage.dm("remove", "thin")
    stage.message("delete 0")


def test_a_full_pool_that_queues_goes_on_when_it_grows(stage: CachedStage) -> None:
    stage.big_pool(size=768)
    node = stage.volume(size=2048)
    stage.until_cached("thin")
    blocks = 768 * 16
    # scattered over one block more than there are; the one after the last waits
    writer = Stomper(node, blocks + 1, stride=BLOCK_PAGES)
    writer.start()
    writer.until(blocks)
    assert stage.is_direct("thin")
    time.sleep(0.3)
    assert writer.completed == blocks
    assert " out_of_data_space " in stage.dm("status", "pool")
    with (stage.base / "pool.data").open("ab") as file:
        file.truncate(1536 << 20)
    line = stage.dm("table", "pool").split()
    line[1] = str(1536 * MIB_SECTORS)
    stage.dm("reload", "pool", "--table", " ".join(line))
    stage.dm("resume", "pool")
    writer.until(blocks + 2000)
    stage.until_cached("thin")
    writer.until(writer.completed + 500)
    last = writer.stop()
    writer.check(node, last, last)


def test_an_error_of_the_disk_comes_with_the_next_flush(stage: CachedStage) -> None:
    """The pool's data file lies on a file system that is full: what a disk with a volatile write cache does."""
    small = stage.base / "small"
    small.mkdir()
    stage.sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small)
    stage.mounts.append(small)
    (stage.base / "pool.data").symlink_to(small / "data")
    stage.big_pool(size=256)
    node = stage.volume(size=64)
    stage.until_cached("thin")
    with DirectFile(node) as file:
        for page in range(4096):
            try:
                file.write(page, page + 1)
            except OSError:
                break  # it has gone direct by now
        with pytest.raises(OSError) as caught:
            file.flush()
        assert caught.value.errno in (errno.EIO, errno.ENOSPC)
        stage.until_direct("thin", "a request failed a moment ago")
        # what is read is what is there: the lost bytes are not shown out of the cache
        found = [file.read(page) for page in range(4096)]
        assert set(found) > {0}
        stage.dm("suspend", "thin")
        stage.dm("resume", "thin")
        assert [file.read(page) for page in range(4096)] == found
    stage.dm("remove", "thin", "pool")


def test_another_volume_takes_the_space(stage: CachedStage) -> None:
    """What was cached was promised a block before a direct writer gets the last one."""
    stage.big_pool(size=256, features="error_if_no_space")
    node = stage.volume("one", 0, size=128)
    stage.until_cached("one")
    other = stage.volume("two", 1, size=256)
    with DirectFile(node) as mine, DirectFile(other) as theirs:
        assert stage.is_direct("two")
        for block in range(100):
            mine.write(block * BLOCK_PAGES, block + 1)
        taken = 0
        with pytest.raises(OSError) as caught:
            for block in range(256 * 16):
                theirs.write(block * BLOCK_PAGES, 1)
                taken += 1
        assert caught.value.errno == errno.ENOSPC
        assert taken == 256 * 16 - 100
        assert stage.is_direct("one")
        mine.flush()
        assert [mine.read(block * BLOCK_PAGES) for block in range(100)] == list(range(1, 101))
        with pytest.raises(OSError) as caught:
            mine.write(100 * BLOCK_PAGES, 1)
        assert caught.value.errno == errno.ENOSPC


def test_fio_verify_while_everything_happens(stage: CachedStage) -> None:
    if shutil.which("fio") is None:
        pytest.skip("missing: fio")
    stage.big_pool()
    node = stage.volume(size=128)
    stage.until_cached("thin")
    words = f"--filename={node} --size=128m --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --loops=3"
    command = ["fio", "--name=cached", *words.split(), "--verify=crc32c", "--verify_backlog=512", "--fsync=256"]
    fio = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=stage.base)
    number = 0
    while fio.poll() is None:
        number += 1
        stage.dm("suspend", "thin")
        stage.dm("resume", "thin")
        stage.message(f"create_snap {number} 0")
        time.sleep(0.7)
        stage.message(f"delete {number}")
        stage.dm("suspend", "pool")
        stage.dm("resume", "pool")
        time.sleep(0.7)
    said = fio.communicate()[0]
    assert fio.returncode == 0, said
    assert number >= 2
