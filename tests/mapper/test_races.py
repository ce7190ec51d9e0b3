"""Two callers at once: loads that name each other, and what is removed while it is being used."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence

import pytest

from userdm.mapper.places import Opened
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import MemoryStorage
from userdm.targets.zero import Zero


def test_two_tables_being_loaded_make_no_loop() -> None:
    mapper = Mapper()
    a, b = mapper.create("a"), mapper.create("b")
    for device in (a, b):
        # one that never had a table is nothing to stand on
        mapper.load(device, [Line(0, 8, "zero", "")])
        mapper.resume(device)
    first, second = Opened(mapper, a), Opened(mapper, b)
    first.open("device", "/dev/mapper/b", readonly=False)
    with pytest.raises(OSError, match="loop") as caught:
        second.open("device", "/dev/mapper/a", readonly=False)
    assert caught.value.errno == errno.EINVAL
    first.release()
    second.release()
    mapper.close()


def test_a_table_that_is_being_closed_has_nothing_to_revoke() -> None:
    """A pool below, with its lock held, may still look at the table that was live a moment ago."""
    mapper = Mapper()
    mapper.attached["s"] = MemoryStorage(1 << 20)
    device = mapper.create("d")
    mapper.load(device, [Line(0, 8, "linear", "s 0"), Line(8, 8, "linear", "s 8")])
    mapper.resume(device)
    table = device.live
    assert table is not None
    place = table.places[0]
    assert table.above(place, 0, 8192) == [(0, 4096), (4096, 4096)]
    closing = table.entries[1].target.close
    table.entries[1].target.close = lambda: (closing(), found.append(table.above(place, 0, 8192)))  # type: ignore
    found: list[object] = []
    mapper.close()
    assert found == [[(0, 4096)]]


@pytest.mark.parametrize("fails", [False, True])
def test_a_device_that_is_being_removed_gets_no_new_user(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mapper = Mapper()
    mapper.attached["s"] = MemoryStorage(1 << 20)
    low, top = mapper.create("low"), mapper.create("top")
    mapper.load(low, [Line(0, 8, "linear", "s 0")])
    mapper.resume(low)
    refused: list[int] = []

    def load() -> None:
        try:
            mapper.load(top, [Line(0, 8, "linear", "/dev/mapper/low 0")])
        except OSError as error:
            refused.append(error.errno or -1)

    remove = low.export.remove

    def slowly(later: object) -> None:
        load()
        if fails:
            raise OSError(errno.EBUSY, "somebody has it open")
        remove()

    monkeypatch.setattr(low.export, "remove", slowly)
    if fails:
        with pytest.raises(OSError, match="open"):
            mapper.remove(low)
        monkeypatch.undo()
        mapper.load(top, [Line(0, 8, "linear", "/dev/mapper/low 0")])
    else:
        mapper.remove(low)
    assert refused == [errno.ENXIO]
    mapper.close()


def test_a_message_keeps_its_table_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remove in the middle of a message waits until the target has done what it says."""
    mapper = Mapper()
    device = mapper.create("z")
    mapper.load(device, [Line(0, 8, "zero", "")])
    mapper.resume(device)
    inside, go = threading.Event(), threading.Event()
    order: list[str] = []

    def message(self: Zero, arguments: Sequence[str], *, force: bool = False) -> None:
        inside.set()
        go.wait(5)
        order.append("message")

    monkeypatch.setattr(Zero, "message", message)
    monkeypatch.setattr(Zero, "close", lambda self: order.append("close"))
    sender = threading.Thread(target=lambda: mapper.message(device, 0, "x"))
    sender.start()
    assert inside.wait(5)
    remover = threading.Thread(target=lambda: mapper.remove(device))
    remover.start()
    remover.join(0.2)
    go.set()
    sender.join(5)
    remover.join(5)
    assert order == ["message", "close"]


class Slow(MemoryStorage):
    """Whose flushes take their time for who removes what was to be removed later."""

    resolve: None = None

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.begun = threading.Event()
        self.ended = threading.Event()

    def flush(self) -> None:
        if threading.current_thread().name == "deferred remove":
            self.begun.set()
            time.sleep(0.3)
            self.ended.set()


def test_a_close_waits_for_what_another_thread_removes() -> None:
    """What was to be removed later goes with its last user, in a thread of its own: the pool's last commit was cut off
    when the program ended meanwhile."""
    mapper = Mapper()
    data = Slow(64 << 20)
    mapper.attached.update(m=MemoryStorage(2 << 20), d=data)
    pool, thin = mapper.create("pool"), mapper.create("thin")
    mapper.load(pool, [Line(0, (64 << 20) // 512, "thin-pool", "m d 128 0")])
    mapper.resume(pool)
    mapper.message(pool, 0, "create_thin 0")
    mapper.load(thin, [Line(0, 2048, "thin", "/dev/mapper/pool 0")])
    mapper.resume(thin)
    with pytest.raises(OSError):
        mapper.remove(pool, deferred=True)
    mapper.remove(thin)
    assert data.begun.wait(60)
    mapper.close()
    assert data.ended.is_set()
