"""The daemon's log: a file in the runtime folder, the one before it beside it, never more."""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from userdm.abi import runtime

MAX_BYTES = 1 << 20


class _Log(RotatingFileHandler):
    """Whoever writes to stderr (a crash in C, a helper) writes to the log as well, also after a rotation."""

    def __init__(self, path: Path, *, take_stderr: bool) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace")
        self._take_stderr = take_stderr
        self._redirect()

    def doRollover(self) -> None:
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        if self._take_stderr and self.stream is not None:
            for number in (1, 2):
                os.dup2(self.stream.fileno(), number)


def open_log(runtime_dir: Path, *, foreground: bool) -> None:
    """Everything that the program's loggers say goes to the log; in the foreground to stderr too."""
    shape = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handlers: list[logging.Handler] = [_Log(runtime_dir / runtime.LOG, take_stderr=not foreground)]
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(shape)
        root.addHandler(handler)


def last_lines(runtime_dir: Path, count: int) -> list[str]:
    """The log's last lines."""
    try:
        with open(runtime_dir / runtime.LOG, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 256 * count))
            text = file.read()
    except OSError:
        return []
    return text.decode("utf-8", "replace").splitlines()[-count:]
