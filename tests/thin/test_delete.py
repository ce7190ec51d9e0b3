"""A large deletion goes in parts: others work meanwhile, nobody opens what is half gone, a cut leaves a whole pool."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.check import check_file
from userdm import Pool
from userdm.targets.thin_pool import ThinPool
from userdm.thin import messages
from userdm.thin.pool import Pool as ThinPoolCore

BLOCK = 65536
BLOCKS = 3000
MakePool = Callable[..., Pool]


def core(pool: Pool) -> ThinPoolCore:
    assert pool.device.live is not None
    target = pool.device.live.entries[0].target
    assert isinstance(target, ThinPool)
    return target.pool


def large(pool: Pool, dev_id: int) -> None:
    """A volume of many mapped blocks; nothing is written to them."""
    pool.message(f"create_thin {dev_id}")
    metadata = core(pool).metadata
    with core(pool).lock:
        thin = metadata.open_thin(dev_id)
        at = 0
        while at < BLOCKS:
            first, count = metadata.reserve_data(min(BLOCKS - at, 50))
            thin.insert(at * 2, first, count)
            at += count
        core(pool).changed()
    core(pool).commit()


def used(pool: Pool) -> int:
    return int(pool.status().split()[2].split("/")[0])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "BATCH", 500)


def test_others_work_between_the_parts(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(size=2 * BLOCKS * BLOCK)
    large(pool, 1)
    other = pool.create_thin(2, 1 << 20)
    middle = core(pool)
    commit = middle.commit
    seen: list[int] = []

    def between() -> None:
        commit()
        if threading.current_thread() is not threading.main_thread() or len(seen) > 20:
            return
        seen.append(used_now())
        if len(seen) == 2:
            for text, number in (
                ("create_thin 1", errno.EEXIST),
                ("create_snap 5 1", errno.ENODATA),
                ("delete 1", errno.EBUSY),
            ):
                with pytest.raises(OSError) as caught:
                    in_thread(lambda text=text: pool.message(text))  # type: ignore[misc]
                assert caught.value.errno == number, text
            with pytest.raises(OSError) as caught:
                pool.open_thin(1, 1 << 20)
            assert caught.value.errno == errno.ENODATA
            with other.open() as file:
                file.write(b"x" * BLOCK)

    def used_now() -> int:
        with middle.lock:
            return middle.used()[2]

    monkeypatch.setattr(middle, "commit", between)
    pool.delete(1)
    monkeypatch.undo()
    assert len(seen) >= 4, "so many commits"
    assert seen == sorted(seen, reverse=True)
    assert used(pool) == 1, "the block that was written meanwhile"
    pool.message("create_thin 1")


def in_thread(call: Callable[[], object]) -> None:
    failure: list[OSError] = []

    def body() -> None:
        try:
            call()
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def test_what_a_snapshot_shares_stays(make_pool: MakePool) -> None:
    pool = make_pool(size=2 * BLOCKS * BLOCK)
    large(pool, 1)
    pool.message("create_snap 2 1")
    thin = pool.open_thin(1, BLOCKS * 2 * BLOCK)
    with thin.open() as file:
        file.write(b"x" * BLOCK)  # the tree is not the same any more
    thin.close()
    assert used(pool) == BLOCKS + 1
    pool.delete(1)
    assert used(pool) == BLOCKS
    snap = pool.open_thin(2, BLOCKS * 2 * BLOCK)
    assert snap.status() == f"{BLOCKS * 128} {(BLOCKS - 50) // 1 * 2 * 128 + 50 * 128 - 1}"


def test_one_that_fails_in_the_middle_can_be_repeated(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(size=2 * BLOCKS * BLOCK)
    large(pool, 1)
    middle = core(pool)
    metadata = middle.metadata
    remove = type(metadata.open_thin(1)).remove
    rounds: list[int] = []

    def failing(self: object, begin: int, end: int) -> object:
        rounds.append(end)
        if len(rounds) == 3:
            raise OSError(errno.ENOSPC, "injected")
        return remove(self, begin, end)  # type: ignore[arg-type]

    monkeypatch.setattr(type(metadata.open_thin(1)), "remove", failing)
    with pytest.raises(OSError):
        pool.delete(1)
    assert 0 < used(pool) <= BLOCKS - 1000
    thin = pool.open_thin(1, 1 << 20)
    thin.close()
    pool.delete(1)
    assert used(pool) == 0
    with pytest.raises(OSError) as caught:
        pool.delete(1)
    assert caught.value.errno == errno.ENODATA


def test_a_cut_between_two_parts_leaves_a_whole_pool(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(size=2 * BLOCKS * BLOCK)
    large(pool, 1)
    middle = core(pool)
    commit = middle.commit
    images: list[bytes] = []
    path = tmp_path / "meta.img"

    def copy() -> None:
        commit()
        images.append(path.read_bytes())

    middle.commit = copy  # type: ignore[method-assign]
    pool.delete(1)
    middle.commit = commit  # type: ignore[method-assign]
    assert len(images) > 5
    for image in images:
        cut = tmp_path / "cut"
        cut.write_bytes(image)
        check_file(cut)
