"""Colours, for a person at a terminal; a pipe, a file, NO_COLOR, TERM=dumb and the name dmsetup get plain text."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


class Style:
    def __init__(self, stream: TextIO, *, plain: bool) -> None:
        plain = plain or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
        self._colours = not plain and stream.isatty()

    def _put(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[m" if self._colours and text else text

    def heading(self, text: str) -> str:
        return self._put("1", text)

    def name(self, text: str) -> str:
        return self._put("1", text)

    def warning(self, text: str) -> str:
        return self._put("33", text)

    def quiet(self, text: str) -> str:
        return self._put("2", text)
