"""Which target drivers there are: our own, and those of the entry-point group ``userdm.targets``."""

from __future__ import annotations

import errno
from importlib.metadata import entry_points

from userdm.targets.base import Target, TargetError
from userdm.targets.error import Error
from userdm.targets.linear import Linear
from userdm.targets.striped import Striped
from userdm.targets.thin import Thin
from userdm.targets.thin_pool import ThinPool
from userdm.targets.zero import Zero

OWN: tuple[type[Target], ...] = (Error, Linear, Striped, Thin, ThinPool, Zero)

_loaded: dict[str, type[Target]] = {}
skipped: dict[str, str] = {}
"""Third parties' targets that failed to load, with the reason."""


def targets() -> dict[str, type[Target]]:
    """Every target driver by its name; ours cannot be replaced."""
    if not _loaded:
        found: dict[str, type[Target]] = {target.name: target for target in OWN}
        for entry in entry_points(group="userdm.targets"):
            try:
                target = entry.load()
                if not (isinstance(target, type) and issubclass(target, Target)):
                    raise TypeError(f"{entry.value} is not a subclass of userdm.targets.base.Target")
                if target.name in found:
                    raise ValueError(f"there is a target {target.name!r} already")
                found[target.name] = target
            except Exception as error:  # whatever a third party's module does, ours go on
                skipped[entry.name] = f"{type(error).__name__}: {error}"
        _loaded.update(found)
    return _loaded


def all_targets() -> list[type[Target]]:
    """Every target driver, sorted by name."""
    return [target for _, target in sorted(targets().items())]


def find_target(name: str) -> type[Target]:
    """The driver of that name; EINVAL for an unknown one."""
    try:
        return targets()[name]
    except KeyError:
        raise TargetError(
            errno.EINVAL, f"unknown target type {name!r}: must be one of {', '.join(sorted(targets()))}"
        ) from None
