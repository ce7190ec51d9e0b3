"""Devices that stand on each other."""

from __future__ import annotations

import errno

import pytest

from userdm.api.pool import DeviceFile
from userdm.mapper.graph import MAX_LEVELS
from userdm.mapper.registry import Mapper
from userdm.mapper.table import Line
from userdm.storage import MemoryStorage


def test_as_many_levels_as_are_allowed_work_and_no_more() -> None:
    """Hundreds of devices on each other were an internal error of every command that went down through them."""
    mapper = Mapper()
    mapper.attached["s"] = MemoryStorage(1 << 20)
    below = "s"
    for level in range(MAX_LEVELS):
        device = mapper.create(f"level{level}")
        mapper.load(device, [Line(0, 8, "linear", f"{below} 0")])
        mapper.resume(device)
        below = f"/dev/mapper/level{level}"
    with DeviceFile(device) as file:
        file.write(bytes(range(256)) * 16)
        file.flush()
        file.seek(0)
        assert file.read(4096) == bytes(range(256)) * 16
        file.discard(0, 4096)
    for name in ("level0", device.name):
        mapper.suspend(mapper.find(name=name))
        mapper.resume(mapper.find(name=name))
    one_more = mapper.create("one-more")
    with pytest.raises(OSError, match="65 devices would stand on each other, allowed are 64") as refused:
        mapper.load(one_more, [Line(0, 8, "linear", f"{below} 0")])
    assert refused.value.errno == errno.EINVAL
    # nor does it grow from below
    mapper.load(one_more, [Line(0, 8, "linear", "s 0")])
    mapper.resume(one_more)
    with pytest.raises(OSError, match="65 devices would stand on each other"):
        mapper.load(mapper.find(name="level0"), [Line(0, 8, "linear", "/dev/mapper/one-more 0")])
    mapper.close()
