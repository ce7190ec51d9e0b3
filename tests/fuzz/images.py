"""Metadata images to be damaged: the golden pools', and one with tall trees; and how they are damaged.

A damaged block gets the right checksum again nearly always: otherwise the checksum is all that is tested.
"""

from __future__ import annotations

import random
import struct
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fuzz.reference import BLOCK, KEYS_AT, Broken, Image
from support.golden import Golden
from support.thin import MIB, commit, content, new_pool, write
from userdm.pdata.block import BITMAP_SALT, INDEX_SALT, NODE_SALT, SUPERBLOCK_SALT, seal

SMALL = ("external", "held", "needs_check", "sharers", "unclean")
"""Golden pools whose metadata has 2 MiB at most."""

SUPER_FIELDS = (
    ("flags", 4, 4), ("blocknr", 8, 8), ("uuid", 16, 8), ("magic", 32, 8), ("version", 40, 4), ("time", 44, 4),
    ("trans_id", 48, 8), ("held_root", 56, 8), ("data nr_blocks", 64, 8), ("data nr_allocated", 72, 8),
    ("data bitmap_root", 80, 8), ("data ref_count_root", 88, 8), ("metadata nr_blocks", 192, 8),
    ("metadata nr_allocated", 200, 8), ("metadata bitmap_root", 208, 8), ("metadata ref_count_root", 216, 8),
    ("data_mapping_root", 320, 8), ("device_details_root", 328, 8), ("data_block_size", 336, 4),
    ("metadata_block_size", 340, 4), ("metadata_nr_blocks", 344, 8), ("compat", 352, 4), ("compat_ro", 356, 4),
    ("incompat", 360, 4),
)  # fmt: skip
NODE_FIELDS = (("flags", 4, 4), ("blocknr", 8, 8), ("nr_entries", 16, 4), ("max_entries", 20, 4), ("value_size", 24, 4))


@dataclass
class Map:
    """Which blocks of an image are what."""

    nodes: list[int] = field(default_factory=list)
    bitmaps: list[int] = field(default_factory=list)
    index: int = 0
    held: int = 0

    @property
    def used(self) -> list[int]:
        return [*self.nodes, *self.bitmaps, self.index, *([self.held] if self.held else [])]


def map_of(image: Image) -> Map:
    """Of an image that is whole."""
    found = Map()
    seen: set[int] = set()

    def walk(blocknr: int) -> None:
        if blocknr not in seen:
            seen.add(blocknr)
            found.nodes.append(blocknr)
            if not image.node(blocknr)[0]:
                for child in image.children(blocknr):
                    walk(child)

    mappings, details = image.roots
    held = image.superblock[8]
    tops = [mappings]
    if held:
        found.held = held
        top, old_details = struct.unpack_from("<2Q", image.content, held * BLOCK + 320)
        tops.append(top)
        walk(old_details)
    walk(details)
    for top in tops:
        walk(top)
        for _, root in image.entries(top):
            walk(int.from_bytes(root, "little"))
    for which in range(2):
        _, _, index, overflow = image.space_map(which)
        walk(overflow)
        if which == 0:
            walk(index)
            found.bitmaps += [int.from_bytes(entry[:8], "little") for _, entry in image.entries(index)]
        else:
            found.index = index
            pages = -(-image.space_map(1)[0] // 16320)
            found.bitmaps += [
                struct.unpack_from("<Q", image.content, index * BLOCK + 16 + 16 * page)[0] for page in range(pages)
            ]
    return found


@cache
def golden(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Golden(name).unpack(Path(folder))
        return (Path(folder) / "m.img").read_bytes()


@cache
def tall() -> bytes:
    """A pool of ours whose trees have inner nodes, shared by snapshots; a held root; counts above two."""
    pool = new_pool(metadata=2 * MIB, data_blocks=17_000)
    pool.create_thin(0)
    # every second block: no runs, so as many entries as there are blocks
    for vblock in range(0, 2 * 3000, 2):
        write(pool, 0, vblock)
    pool.create_thin(1)
    write(pool, 1, 5, 300)
    commit(pool)
    for dev in range(2, 6):
        pool.create_snap(dev, 0)
        write(pool, 0, dev * 1000, 3)
    pool.reserve_metadata_snap()
    pool.create_snap(9, 1)
    write(pool, 9, 100, 20)
    commit(pool)
    return content(pool.storage)


NAMES = (*SMALL, "tall")


def image(name: str) -> bytes:
    return tall() if name == "tall" else golden(name)


@cache
def known(name: str) -> Map:
    return map_of(Image(image(name)))


SALTS = {"super": SUPERBLOCK_SALT, "node": NODE_SALT, "bitmap": BITMAP_SALT, "index": INDEX_SALT}


class Damage:
    """One image on its way to be broken; ``done`` says how."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.rng = rng
        self.content = bytearray(image(name))
        self.map = known(name)
        self.done: list[str] = []
        self.blocks = len(self.content) // BLOCK

    def hurt(self) -> None:
        """Up to four changes."""
        ways = [self._superblock, self._node, self._node, self._entry, self._entry, self._entry, self._pointer,
                self._pointer, self._bitmap, self._index, self._swap, self._held, self._raw]  # fmt: skip
        for _ in range(self.rng.choice((1, 1, 1, 2, 4))):
            self.rng.choice(ways)()
        if self.rng.random() < 0.05:
            self._cut()

    # ---- values -----------------------------------------------------------------------------------------------

    def _block(self) -> int:
        """Somebody's number, or nobody's."""
        return self.rng.choice((*self.map.used, 0, self.blocks - 1, self.blocks, self.rng.randrange(self.blocks)))

    def _value(self, old: int, size: int) -> int:
        top = 1 << 8 * size
        rng = self.rng
        special = (0, 1, 2, old + 1, old - 1, old ^ 1 << rng.randrange(8 * size), top - 1, top // 2, top // 2 - 1,
                   rng.randrange(top), self._block(), old * 2, 1 << 24, 1 << 40, 1 << 32)  # fmt: skip
        return rng.choice(special) % top

    def _set(self, at: int, size: int, what: str, value: int | None = None) -> None:
        old = int.from_bytes(self.content[at : at + size], "little")
        new = self._value(old, size) if value is None else value % (1 << 8 * size)
        self.content[at : at + size] = new.to_bytes(size, "little")
        self.done.append(f"{what} {old:#x} -> {new:#x}")

    def _seal(self, blocknr: int, kind: str, *, number: int | None = None) -> None:
        if self.rng.random() < 0.03:
            self.done.append(f"block {blocknr} keeps its old checksum")
            return
        at = blocknr * BLOCK
        block = bytearray(self.content[at : at + BLOCK])
        said = int.from_bytes(block[8:16], "little")
        seal(block, blocknr if number is None else said, SALTS[kind])
        self.content[at : at + BLOCK] = block

    # ---- ways -------------------------------------------------------------------------------------------------

    def _superblock(self) -> None:
        what, at, size = self.rng.choice(SUPER_FIELDS)
        self._set(at, size, f"superblock {what}")
        self._seal(0, "super", number=0)

    def _node(self) -> None:
        blocknr = self.rng.choice(self.map.nodes)
        what, at, size = self.rng.choice(NODE_FIELDS)
        self._set(blocknr * BLOCK + at, size, f"node {blocknr} {what}")
        self._seal(blocknr, "node", number=0 if what == "blocknr" else None)

    def _entry(self) -> None:
        """A key or a value of a node."""
        found = self._some_entry(self.map.nodes)
        if found is None:
            return
        blocknr, index, key_at, value_at, size = found
        if self.rng.random() < 0.4:
            self._set(key_at, 8, f"node {blocknr} key {index}")
        else:
            part = self.rng.choice((4, 8)) if size >= 8 else 4
            offset = self.rng.randrange(0, size - part + 1, 4)
            self._set(value_at + offset, part, f"node {blocknr} value {index} byte {offset}")
        self._seal(blocknr, "node")

    def _pointer(self) -> None:
        """An inner node or a top-level leaf points at another block: its parent, itself, a neighbour's child."""
        top = Image(self.content).roots[0]
        found = self._some_entry([top, *(nr for nr in self.map.nodes if not self._leaf(nr))])
        if found is not None and found[4] == 8:
            blocknr, index, _, value_at, _ = found
            self._set(value_at, 8, f"node {blocknr} child {index}", self._block())
            self._seal(blocknr, "node")

    def _leaf(self, blocknr: int) -> bool:
        return bool(self.content[blocknr * BLOCK + 4] & 2)

    def _some_entry(self, nodes: list[int]) -> tuple[int, int, int, int, int] | None:
        """(block, index, where its key is, where its value is, bytes of a value)."""
        blocknr = self.rng.choice(nodes)
        try:
            _, entries, _, size, values_at = Image(self.content).node(blocknr)
        except Broken:
            return None
        if not entries or size < 4:
            return None
        index = self.rng.choice((0, entries - 1, self.rng.randrange(entries)))
        return blocknr, index, blocknr * BLOCK + KEYS_AT + 8 * index, values_at + size * index, size

    def _bitmap(self) -> None:
        blocknr = self.rng.choice(self.map.bitmaps)
        for _ in range(self.rng.choice((1, 1, 16))):
            at = self.rng.choice((16 + self.rng.randrange(8), 16 + self.rng.randrange(4080)))
            self._set(blocknr * BLOCK + at, 1, f"bitmap {blocknr} byte {at}")
        self._seal(blocknr, "bitmap")

    def _index(self) -> None:
        at = self.rng.choice((16, 24, 28, 32))
        self._set(self.map.index * BLOCK + at, 8 if at in (16, 32) else 4, f"metadata index byte {at}")
        self._seal(self.map.index, "index")

    def _swap(self) -> None:
        """A block's contents come to lie in the place of another one's."""
        source, place = self.rng.choice(self.map.used), self.rng.choice(self.map.used)
        self.content[place * BLOCK : (place + 1) * BLOCK] = self.content[source * BLOCK : (source + 1) * BLOCK]
        kind = "bitmap" if source in self.map.bitmaps else "index" if source == self.map.index else "node"
        self.done.append(f"block {place} is what block {source} was, a {kind}")
        self._seal(place, kind)

    def _held(self) -> None:
        if not self.map.held:
            return
        what, at, size = self.rng.choice((*SUPER_FIELDS[5:8], *SUPER_FIELDS[16:18], SUPER_FIELDS[1]))
        self._set(self.map.held * BLOCK + at, size, f"held superblock {what}")
        self._seal(self.map.held, "super", number=0 if what == "blocknr" else None)

    def _raw(self) -> None:
        blocknr = self.rng.choice((0, *self.map.used))
        at = blocknr * BLOCK + self.rng.randrange(BLOCK)
        self._set(at, 1, f"raw byte {at % BLOCK} of block {blocknr}")

    def _cut(self) -> None:
        size = self.rng.choice((0, 1, 512, BLOCK - 1, BLOCK, 2 * BLOCK, self.rng.randrange(len(self.content))))
        if self.rng.random() < 0.5:
            self.content[size:] = bytes(len(self.content) - size)
            self.done.append(f"zeros from byte {size} on")
        else:
            del self.content[size:]
            self.done.append(f"cut to {size} bytes")


def damaged(rng: random.Random) -> Damage:
    damage = Damage(rng.choice(NAMES), rng)
    damage.hurt()
    return damage
