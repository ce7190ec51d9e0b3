"""The optional features of a pool's table line, in the kernel's words and order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Features:
    """struct pool_features of dm-thin.c."""

    zero_new_blocks: bool = True
    discard: bool = True
    passdown: bool = True
    read_only: bool = False
    error_if_no_space: bool = False

    def words(self) -> list[str]:
        """As the table line prints them."""
        return [
            word
            for word, given in (
                ("skip_block_zeroing", not self.zero_new_blocks),
                ("ignore_discard", not self.discard),
                ("no_discard_passdown", not self.passdown),
                ("read_only", self.read_only),
                ("error_if_no_space", self.error_if_no_space),
            )
            if given
        ]


WORDS: dict[str, dict[str, bool]] = {
    "skip_block_zeroing": {"zero_new_blocks": False},
    "ignore_discard": {"discard": False},
    "no_discard_passdown": {"passdown": False},
    "read_only": {"read_only": True},
    "error_if_no_space": {"error_if_no_space": True},
}
