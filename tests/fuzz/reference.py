"""What the trees of a metadata image say, read by the shortest way: no cache, no checks but those that end it.

The other reader that ours is compared with where thin_check finds an image broken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

BLOCK = 4096
SUPER = struct.Struct("<IIQ16sQIIQQ128s128sQQIIQIII")
HEADER = struct.Struct("<IIQIII")
KEYS_AT = 32
LEAF = 2


class Broken(Exception):
    """The trees cannot be read at all, or not to an end."""


class Image:
    """A metadata device in memory, whatever is in it."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = content
        self.blocks = len(content) // BLOCK
        self._left = 0

    @property
    def superblock(self) -> tuple[int, ...]:
        return SUPER.unpack_from(self.content)

    @property
    def roots(self) -> tuple[int, int]:
        """Of the mappings, of the devices' details."""
        fields = self.superblock
        return fields[11], fields[12]

    def space_map(self, which: int) -> tuple[int, int, int, int]:
        """Blocks, in use, root of the index, root of the overflow tree; of the data (0) or the metadata (1)."""
        return struct.unpack_from("<4Q", self.content, 64 + 128 * which)

    def node(self, blocknr: int) -> tuple[bool, int, int, int, int]:
        """(leaf, entries, room, bytes of a value, where the values begin in the image)."""
        if not 0 < blocknr < self.blocks:
            raise Broken(f"block {blocknr} of {self.blocks}")
        _, flags, _, entries, room, size = HEADER.unpack_from(self.content, blocknr * BLOCK)
        if entries > room or KEYS_AT + room * (8 + size) > BLOCK:
            raise Broken(f"block {blocknr}: {entries} entries, room for {room} of {size} bytes")
        return bool(flags & LEAF), entries, room, size, blocknr * BLOCK + KEYS_AT + 8 * room

    def keys(self, blocknr: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{self.node(blocknr)[1]}Q", self.content, blocknr * BLOCK + KEYS_AT)

    def values(self, blocknr: int) -> list[bytes]:
        _, entries, _, size, at = self.node(blocknr)
        return [bytes(self.content[at + size * index : at + size * (index + 1)]) for index in range(entries)]

    def children(self, blocknr: int) -> list[int]:
        return [int.from_bytes(value, "little") for value in self.values(blocknr)]

    def entries(self, root: int, end: int = 1 << 64) -> list[tuple[int, bytes]]:
        """Every entry below a root whose way there has keys below ``end``, from left to right."""
        self._left = 4 * self.blocks + 1000
        return list(self._entries(root, end, 0))

    def _entries(self, blocknr: int, end: int, depth: int) -> Iterator[tuple[int, bytes]]:
        self._left -= 1
        if self._left < 0 or depth > 30:
            raise Broken("a cycle, or a web")
        leaf = self.node(blocknr)[0]
        if leaf:
            yield from zip(self.keys(blocknr), self.values(blocknr), strict=True)
            return
        for key, child in zip(self.keys(blocknr), self.children(blocknr), strict=True):
            if key < end:
                yield from self._entries(child, end, depth + 1)

    def dump(self) -> str:
        """As thin_dump writes it."""
        fields = self.superblock
        out = [
            f'<superblock uuid="" time="{fields[6]}" transaction="{fields[7]}" flags="{fields[1]}" '
            f'version="{fields[5]}" data_block_size="{fields[13]}" nr_data_blocks="{self.space_map(0)[0]}">'
        ]
        mappings, details = self.roots
        roots = {dev: int.from_bytes(value, "little") for dev, value in self.entries(mappings)}
        for dev, value in self.entries(details):
            mapped, transaction, created, snapped = struct.unpack("<QQII", value)
            out.append(
                f'  <device dev_id="{dev}" mapped_blocks="{mapped}" transaction="{transaction}" '
                f'creation_time="{created}" snap_time="{snapped}">'
            )
            if dev not in roots:
                raise Broken(f"device {dev} has no tree")
            out += list(_lines([(key, int.from_bytes(raw, "little")) for key, raw in self.entries(roots[dev])]))
            out.append("  </device>")
        return "\n".join([*out, "</superblock>", ""])


def _lines(entries: list[tuple[int, int]]) -> Iterator[str]:
    at = 0
    while at < len(entries):
        key, value = entries[at]
        count = 1
        while at + count < len(entries) and entries[at + count] == (key + count, value + (count << 24)):
            count += 1
        block, time = value >> 24, value & 0xFFFFFF
        if count == 1:
            yield f'    <single_mapping origin_block="{key}" data_block="{block}" time="{time}"/>'
        else:
            yield f'    <range_mapping origin_begin="{key}" data_begin="{block}" length="{count}" time="{time}"/>'
        at += count
