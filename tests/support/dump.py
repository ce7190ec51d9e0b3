"""What thin_dump 1.x prints, in the words of thin_dump 0.9 (and ours).

It leaves flags out where there are none, names a shared subtree once to refer to it from then on, and ends without a
line feed.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

SUPERBLOCK = ("uuid", "time", "transaction", "flags", "version", "data_block_size", "nr_data_blocks")
DEVICE = ("dev_id", "mapped_blocks", "transaction", "creation_time", "snap_time")
Mapping = tuple[int, int, int, int]
"""First virtual block, first data block, length, time."""


def in_old_words(text: str) -> str:
    """What 0.9 printed stays as it is."""
    if not text or text.endswith("\n"):
        return text
    root = ElementTree.fromstring(text)
    root.attrib.setdefault("flags", "0")
    defs = {each.attrib["name"]: each for each in root.findall("def")}
    lines = [f"<superblock {_attributes(root, SUPERBLOCK)}>"]
    for device in root.findall("device"):
        lines.append(f"  <device {_attributes(device, DEVICE)}>")
        lines += [f"    {_element(*mapping)}" for mapping in _merged(_mappings(device, defs))]
        lines.append("  </device>")
    lines.append("</superblock>")
    return "\n".join(lines) + "\n"


def _attributes(element: ElementTree.Element, names: tuple[str, ...]) -> str:
    return " ".join(f'{name}="{element.attrib[name]}"' for name in names)


def _mappings(element: ElementTree.Element, defs: dict[str, ElementTree.Element]) -> Iterator[Mapping]:
    for child in element:
        of = child.attrib
        if child.tag == "ref":
            yield from _mappings(defs[of["name"]], defs)
        elif child.tag == "single_mapping":
            yield int(of["origin_block"]), int(of["data_block"]), 1, int(of["time"])
        else:
            yield int(of["origin_begin"]), int(of["data_begin"]), int(of["length"]), int(of["time"])


def _merged(mappings: Iterator[Mapping]) -> Iterator[Mapping]:
    """Neighbours in one: a shared subtree ends where it likes."""
    last: Mapping | None = None
    for mapping in mappings:
        first, data, length, time = mapping
        if last is not None and (last[0] + last[2], last[1] + last[2], last[3]) == (first, data, time):
            last = (last[0], last[1], last[2] + length, time)
            continue
        if last is not None:
            yield last
        last = mapping
    if last is not None:
        yield last


def _element(first: int, data: int, length: int, time: int) -> str:
    if length == 1:
        return f'<single_mapping origin_block="{first}" data_block="{data}" time="{time}"/>'
    return f'<range_mapping origin_begin="{first}" data_begin="{data}" length="{length}" time="{time}"/>'
