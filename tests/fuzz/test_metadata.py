"""The metadata reader on damaged images: a refusal that names the block, or what the trees say; bounded either way."""

from __future__ import annotations

import errno
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fuzz.images import NAMES, Damage, damaged, image
from fuzz.reference import Broken, Image
from support import budget
from support.dump import in_old_words
from support.thin import commit, content, dumped, run_tool, write
from userdm.pdata.transaction import Transaction
from userdm.storage import MemoryStorage
from userdm.thin.metadata import PoolMetadata

READING = {errno.EILSEQ, errno.ENOTBLK, errno.EINVAL, errno.EPERM}
"""What a damaged image is refused with."""
CHANGING = READING | {errno.EIO, errno.ENOSPC, errno.ENODATA, errno.EEXIST, errno.EBUSY}
NAMES_A_PLACE = re.compile(r"block|superblock|metadata device")


def storage_of(content: bytes | bytearray) -> MemoryStorage:
    storage = MemoryStorage(len(content))
    if content:
        storage.write(0, content)
    return storage


def read(content: bytes | bytearray) -> str | OSError:
    """What our reader makes of an image."""
    try:
        return dumped(PoolMetadata.open(storage_of(content), None, readonly=True))
    except OSError as error:
        return error


def said(content: bytes | bytearray) -> str | None:
    """What the trees say; None where they cannot be read to an end."""
    try:
        return Image(content).dump()
    except Broken:
        return None


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many nodes were visited, cached or not."""
    visits = [0]
    node = Transaction.node

    def visit(tx: Transaction, blocknr: int, value_size: int) -> object:
        visits[0] += 1
        return node(tx, blocknr, value_size)

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "node", visit)
        yield visits


def check_refusal(error: OSError, allowed: set[int]) -> None:
    assert error.errno in allowed, error
    assert error.strerror and NAMES_A_PLACE.search(error.strerror), error


def check_read(damage: Damage) -> str | OSError:
    """Read it; compare with what the trees say."""
    outcome = read(damage.content)
    if isinstance(outcome, OSError):
        check_refusal(outcome, READING)
    else:
        assert outcome == said(damage.content), damage.done
    return outcome


@pytest.mark.parametrize("name", NAMES)
def test_the_undamaged_are_read(name: str) -> None:
    assert read(image(name)) == said(image(name))


def test_damage_is_refused_or_read_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"read": 0, "refused": 0}

    def example(rng: random.Random) -> None:
        damage = damaged(rng)
        with counted(monkeypatch) as visits:
            outcome = check_read(damage)
        outcomes["refused" if isinstance(outcome, OSError) else "read"] += 1
        devices = outcome.count("<device") if isinstance(outcome, str) else 200
        # each tree's nodes once, and for each device the way to it
        assert visits[0] <= (2 + devices) * (damage.blocks + 50), (visits, damage.done)

    budget.run(400, example)
    print(outcomes)


STRICTER = re.compile(
    r"superblock|metadata device has|space map has|data block size is|has details, but no mapping tree"
)
"""What thin_check 0.9 lets pass: numbers in the superblock that the kernel refuses or could not live with, and a device
without a tree."""


def test_thin_check_and_thin_dump_agree() -> None:
    """What thin_check accepts is read; what thin_dump can read and we can read is the same."""

    def example(rng: random.Random) -> None:
        damage = damaged(rng)
        outcome = check_read(damage)
        with tempfile.NamedTemporaryFile() as file:
            file.write(damage.content)
            file.flush()
            accepted = run_tool("thin_check", "-q", file.name).returncode == 0
            dump = run_tool("thin_dump", file.name)
        if isinstance(outcome, OSError):
            assert not accepted or STRICTER.search(outcome.strerror), (damage.done, outcome)
        elif dump.returncode == 0:
            assert in_old_words(dump.stdout) == outcome, damage.done
        else:
            assert not accepted, damage.done

    budget.run(40, example)


# ---- what changes it ------------------------------------------------------------------------------------------------


class Changes:
    """Random changes of an open pool; each is done, or refused for a reason."""

    def __init__(self, pool: PoolMetadata, rng: random.Random) -> None:
        self.pool = pool
        self.rng = rng
        self.done: list[str] = []

    def device(self) -> int:
        known = [dev for dev, _ in self.pool.devices()]
        return self.rng.choice([*known, 0, 1, self.rng.randrange(12), (1 << 24) - 1, 1 << 24])

    def vblock(self) -> int:
        return self.rng.choice((0, 1, self.rng.randrange(200), self.rng.randrange(70_000), (1 << 64) - 2))

    def write(self) -> None:
        write(self.pool, self.device(), self.vblock(), self.rng.choice((1, 3, 300)))

    def discard(self) -> None:
        begin = self.vblock()
        self.pool.open_thin(self.device()).remove(begin, begin + self.rng.choice((1, 7, 5000, 1 << 40)))

    def lookup(self) -> None:
        thin, vblock = self.pool.open_thin(self.device()), self.vblock()
        thin.lookup(vblock)
        thin.exclusive(vblock)
        thin.lookup_runs(vblock, vblock + 100)
        thin.highest_mapped()

    def one(self) -> None:
        pool, rng = self.pool, self.rng
        act: tuple[str, Callable[[], object]] = rng.choice(
            (
                ("write", self.write),
                ("write", self.write),
                ("discard", self.discard),
                ("lookup", self.lookup),
                ("create_thin", lambda: pool.create_thin(self.device())),
                ("create_snap", lambda: pool.create_snap(rng.randrange(20), self.device())),
                ("delete", lambda: pool.delete(self.device())),
                ("reserve", pool.reserve_metadata_snap),
                ("release", pool.release_metadata_snap),
                ("transaction", lambda: pool.set_transaction_id(pool.transaction_id, rng.getrandbits(64))),
                ("grow", lambda: pool.resize_data(pool.nr_data_blocks + rng.choice((0, 1, 20_000)))),
                ("claim", lambda: pool.claim_data(rng.randrange(20_000), rng.choice((1, 5)))),
                ("commit", lambda: commit(pool)),
            )
        )
        try:
            act[1]()
            self.done.append(act[0])
        except OSError as error:
            assert error.errno in CHANGING, (act[0], error)
            assert error.strerror, (act[0], error)
            self.done.append(f"{act[0]}: {error.strerror}")


def test_damage_is_changed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an error of our own making; and never more work than there is metadata."""

    def example(rng: random.Random) -> None:
        damage = damaged(rng)
        try:
            pool = PoolMetadata.open(storage_of(damage.content), None)
        except OSError as error:
            check_refusal(error, READING)
            return
        changes = Changes(pool, rng)
        for _ in range(12):
            with counted(monkeypatch) as visits:
                try:
                    changes.one()
                except OSError as error:  # from choosing a device
                    check_refusal(error, READING)
            assert visits[0] <= 40 * (damage.blocks + 300), (visits, damage.done, changes.done)

    budget.run(250, example)


def test_the_undamaged_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same changes of whole images: thin_check passes after them, and what is on disk is what was in memory."""

    def example(rng: random.Random) -> None:
        storage = storage_of(image(rng.choice([name for name in NAMES if name != "needs_check"])))
        pool = PoolMetadata.open(storage, None)
        changes = Changes(pool, rng)
        for _ in range(12):
            changes.one()
        assert pool.failed is None, changes.done
        commit(pool)
        assert read(content(storage)) == dumped(pool), changes.done
        with tempfile.NamedTemporaryFile() as file:
            file.write(content(storage))
            file.flush()
            check = run_tool("thin_check", file.name)
        assert check.returncode == 0, (changes.done, check.stdout, check.stderr)

    budget.run(15, example)
