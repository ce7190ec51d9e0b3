"""A checker of thin metadata that is quick enough to run at every crash point, and no more lenient than thin_check.

It reads bytes, with nothing of the code under test but the constants of the format: every block's checksum and number,
every tree's order, bounds and fill, every count of metadata and data against who really refers to the block, the space
maps' own summaries, and the details against the mappings. tests/thin_metadata/test_strict.py holds it against
thin_check.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from crc32c import crc32c

BLOCK = 4096
SUPERBLOCK, NODE, BITMAP, INDEX = 160774, 121107, 240779, 160478
ENTRIES = 16320
INTERNAL, LEAF = 1, 2
HEADER = struct.Struct("<IIQIIII")
ROOT = struct.Struct("<4Q")
ENTRY = struct.Struct("<QII")
DETAILS = struct.Struct("<QQII")
COUNTS = [bytes((0, 2, 1, 3)[byte >> 2 * k & 3] for byte in range(256)) for k in range(4)]


class Damaged(AssertionError):
    """The metadata is not what a commit may leave."""


def ensure(holds: bool, text: str) -> None:
    if not holds:
        raise Damaged(text)


class Strict:
    def __init__(self, image: bytes | bytearray) -> None:
        self.image = memoryview(image)
        self.metadata: Counter[int] = Counter()
        """Who refers to a metadata block, how often."""
        self.data: Counter[int] = Counter()
        self.mapped: dict[int, int] = {}
        """Root of a device's tree: how many blocks it maps."""
        self.bounds: dict[int, tuple[int, int]] = {}
        self.height: dict[int, int] = {}

    def block(self, number: int, salt: int) -> memoryview:
        """A block that is what it should be; who refers to it counts itself."""
        ensure(0 <= number < self.blocks, f"block {number} does not exist")
        raw = self.image[number * BLOCK : (number + 1) * BLOCK]
        ensure(len(raw) == BLOCK, f"block {number} lies behind the end of the device")
        csum, where = struct.unpack_from("<I4xQ", raw)
        ensure(csum == crc32c(raw[4:]) ^ 0xFFFFFFFF ^ salt, f"block {number}: checksum")
        ensure(where == number, f"block {number} says that it is {where}")
        return raw

    def check(self) -> None:
        self.blocks = len(self.image) // BLOCK
        raw = self.block(0, SUPERBLOCK)
        magic, version, self.time = struct.unpack_from("<QII", raw, 32)
        ensure(magic == 27022010 and version in (1, 2), "superblock: magic or version")
        held = struct.unpack_from("<Q", raw, 56)[0]
        data, metadata = ROOT.unpack_from(raw, 64), ROOT.unpack_from(raw, 192)
        mappings, details, _, size = struct.unpack_from("<QQII", raw, 320)
        ensure(size == 8, "superblock: metadata block size")
        ensure(metadata[0] <= self.blocks, "superblock: metadata blocks")
        self.blocks = metadata[0]
        self.data_blocks = data[0]
        self.metadata[0] += 1
        self.volumes(mappings, details)
        if held:
            self.metadata[held] += 1
            snapshot = self.block(held, SUPERBLOCK)
            self.volumes(*struct.unpack_from("<QQ", snapshot, 320))
        self.metadata[data[3]] += 1
        self.metadata[metadata[3]] += 1
        data_many = self.overflow(data[3])
        metadata_many = self.overflow(metadata[3])
        self.metadata[metadata[2]] += 1
        index = self.block(metadata[2], INDEX)
        entries = {page: ENTRY.unpack_from(index, 16 + 16 * page) for page in range(-(-metadata[0] // ENTRIES))}
        data_entries: dict[int, tuple[int, int, int]] = {}
        self.metadata[data[2]] += 1
        self.tree(data[2], 16, lambda key, value: data_entries.__setitem__(key, ENTRY.unpack(value)))
        self.space("data", data, data_entries, data_many, self.data)
        self.space("metadata", metadata, entries, metadata_many, self.metadata)

    def volumes(self, mappings: int, details: int) -> None:
        """Both trees of devices, and what is below."""
        self.metadata[mappings] += 1
        self.metadata[details] += 1
        roots: dict[int, int] = {}
        known: dict[int, tuple[int, ...]] = {}
        self.tree(mappings, 8, lambda key, value: roots.__setitem__(key, int.from_bytes(value, "little")), self.volume)
        self.tree(details, 24, lambda key, value: known.__setitem__(key, DETAILS.unpack(value)))
        ensure(roots.keys() == known.keys(), "devices have a tree or details, but not both")
        for dev, (mapped, _, created, snapshotted) in known.items():
            ensure(self.mapped[roots[dev]] == mapped, f"thin {dev}: {mapped} blocks are said to be mapped")
            ensure(max(created, snapshotted) <= self.time, f"thin {dev}: a time that has not come")

    def volume(self, value: memoryview) -> None:
        """A device's own tree, under its entry in the upper one. Looked at once, however many share it."""
        root = int.from_bytes(value, "little")
        self.metadata[root] += 1
        if self.metadata[root] == 1:
            self.mappings(root, 0, -1, None)

    def mappings(self, number: int, depth: int, low: int, high: int | None) -> int:
        """The node and all below, which is counted at the first who refers to it; how many blocks are mapped."""
        raw, leaf, keys, values = self.node(number, 8, depth, low, high)
        count = 0
        if leaf:
            for value in values:
                block, time = value >> 24, value & 0xFFFFFF
                ensure(block < self.data_blocks, f"block {number}: data block {block}")
                ensure(time <= self.time, f"block {number}: a time that has not come")
                self.data[block] += 1
            count = len(values)
        else:
            for at, child in enumerate(values):
                self.metadata[child] += 1
                if self.metadata[child] > 1:
                    ensure(child in self.mapped, f"block {child} is above itself")
                    first, last = self.bounds[child]
                    bound = keys[at + 1] if at + 1 < len(keys) else high
                    ensure(first >= keys[at] and (bound is None or last < bound), f"block {child}: keys out of place")
                else:
                    self.mappings(child, depth + 1, keys[at], keys[at + 1] if at + 1 < len(keys) else high)
                count += self.mapped[child]
            ensure(len({self.height[child] for child in values}) == 1, f"block {number}: leaves on different levels")
        self.height[number] = 0 if leaf else 1 + self.height[values[0]]
        self.mapped[number] = count
        self.bounds[number] = (keys[0], keys[-1] if leaf else self.bounds[values[-1]][1]) if keys else (1 << 64, -1)
        return count

    def node(
        self, number: int, size: int, depth: int, low: int, high: int | None
    ) -> tuple[memoryview, bool, array[int], array[int]]:
        """A btree node: raw, whether a leaf, keys, and values when they have eight bytes."""
        ensure(depth < 20, f"block {number}: a tree that has no end")
        raw = self.block(number, NODE)
        _, flags, _, n, most, value_size, _ = HEADER.unpack_from(raw)
        ensure(flags in (INTERNAL, LEAF), f"block {number}: flags {flags}")
        size = size if flags == LEAF else 8
        ensure(value_size == size, f"block {number}: values of {value_size} bytes")
        ensure(most % 3 == 0 and most * (8 + size) <= BLOCK - HEADER.size, f"block {number}: room for {most}")
        ensure(n <= most, f"block {number}: {n} entries")
        ensure(depth == 0 or n >= most // 3, f"block {number}: {n} entries are too few")
        ensure(n > 0 or flags == LEAF, f"block {number}: is internal and has nothing below")
        keys = array("Q", bytes(raw[HEADER.size : HEADER.size + 8 * n]))
        ensure(all(a < b for a, b in pairwise(keys)), f"block {number}: keys out of order")
        ensure(not n or (keys[0] >= low and (high is None or keys[-1] < high)), f"block {number}: keys out of place")
        at = HEADER.size + 8 * most
        values = array("Q", bytes(raw[at : at + 8 * n])) if size == 8 else array("Q")
        return raw, flags == LEAF, keys, values

    def tree(
        self,
        root: int,
        size: int,
        leaf: Callable[[int, memoryview], object],
        below: Callable[[memoryview], None] = lambda value: None,
    ) -> None:
        """Each entry of a tree; ``below`` is called for the entries of nodes that nobody had come to before."""
        first = self.metadata[root] == 1
        levels: set[int] = set()
        stack: list[tuple[int, int, int, int | None, bool]] = [(root, 0, -1, None, first)]
        while stack:
            number, depth, low, high, counted = stack.pop()
            raw, is_leaf, keys, values = self.node(number, size, depth, low, high)
            if is_leaf:
                levels.add(depth)
                at = HEADER.size + 8 * struct.unpack_from("<I", raw, 20)[0]
                for index, key in enumerate(keys):
                    value = raw[at + size * index : at + size * (index + 1)]
                    leaf(key, value)
                    if counted:
                        below(value)
                continue
            for index, child in enumerate(values):
                if counted:
                    self.metadata[child] += 1
                bound = keys[index + 1] if index + 1 < len(keys) else high
                stack.append((child, depth + 1, keys[index], bound, counted and self.metadata[child] == 1))
        ensure(len(levels) == 1, f"block {root}: leaves on different levels")

    def overflow(self, root: int) -> dict[int, int]:
        found: dict[int, int] = {}
        self.tree(root, 4, lambda key, value: found.__setitem__(key, int.from_bytes(value, "little")))
        return found

    def space(
        self,
        what: str,
        root: tuple[int, ...],
        entries: dict[int, tuple[int, int, int]],
        many: dict[int, int],
        counts: Counter[int],
    ) -> None:
        """A space map says of every block what is so."""
        blocks, allocated, _, _ = root
        pages = -(-blocks // ENTRIES)
        ensure(sorted(entries) == list(range(pages)), f"{what}: bitmaps are {sorted(entries)}")
        for number, _, _ in entries.values():
            self.metadata[number] += 1
        said: dict[int, int] = {}
        for page, (number, free, none_before) in entries.items():
            raw = bytes(self.block(number, BITMAP)[16:])
            found = bytearray(ENTRIES)
            for k in range(4):
                found[k::4] = raw.translate(COUNTS[k])
            there = min(ENTRIES, blocks - page * ENTRIES)
            ensure(not any(found[there:]), f"{what} bitmap {page}: counts behind the end")
            ensure(found.count(0) == free + ENTRIES - there or found.count(0) == free, f"{what} bitmap {page}: {free}")
            ensure(0 not in found[: min(none_before, there)], f"{what} bitmap {page}: none free before {none_before}")
            said.update((page * ENTRIES + at, count) for at, count in enumerate(found) if count)
        ensure(len(said) == allocated, f"{what}: {allocated} are said to be in use, {len(said)} are")
        ensure(many.keys() == {block for block, count in said.items() if count == 3}, f"{what}: overflow")
        ensure(all(count >= 3 for count in many.values()), f"{what}: overflow has small counts")
        said |= many
        wanted = {block: count for block, count in counts.items() if count}
        if said != wanted:
            block = min(block for block in said.keys() | wanted.keys() if said.get(block) != wanted.get(block))
            raise Damaged(f"{what} block {block}: count is {said.get(block, 0)}, expected {wanted.get(block, 0)}")


def strict_check(image: bytes | bytearray) -> None:
    """Damaged, with what is wrong."""
    Strict(image).check()
