"""Two callers at once: loads that name each other, and what is removed while it is being used."""

from __future__ import annotations

import errno
import threading
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
    first, second = Opened(mapper, a), Opened(mapper, b)
    first.open("device", "/dev/mapper/b", readonly=False)
    with pytest.raises(OSError, match="loop") as caught:
        second.open("device", "/dev/mapper/a", readonly=False)
    assert caught.value.errno == errno.EINVAL
    first.release()
    second.release()
    mapper.close()


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
