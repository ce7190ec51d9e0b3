"""userdm: the Linux Device Mapper in user space."""

from __future__ import annotations

__version__ = "0.1.0"

# Not typing's: importing that takes as long as starting Python, and every verb of the command line comes by here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from userdm.api.pool import Pool, Thin

__all__ = ["Pool", "Thin", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: a command line verb must not pay for the whole engine.
    if name in ("Pool", "Thin"):
        from userdm.api import pool

        return getattr(pool, name)
    raise AttributeError(f"module 'userdm' has no attribute {name!r}")
