"""The cases on a real kernel, with the real dmsetup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity.answers import MAPPED_KERNEL, Side, parse
from support import oracle

HERE = Path(__file__).parent
CASES = HERE / "cases"

SECONDS = 3000
"""Under emulation, on a machine that does other things as well."""

PREPARE = """
dmesg -n 1
# without udev libdevmapper makes the nodes itself
export DM_DISABLE_UDEV=1
D=/dev/mapper T=/disks/tmp
mkdir /disks
mount -t tmpfs -o size=900m none /disks
mkdir $T
"""


def groups() -> list[str]:
    return sorted(path.stem for path in CASES.glob("*.cases"))


def script(wanted: Sequence[str]) -> str:
    parts = [PREPARE, (HERE / "harness.sh").read_text(), "disks /disks"]
    for group in wanted:
        text = (CASES / f"{group}.cases").read_text()
        parts.append(f"cat >/disks/{group} <<'END_OF_CASES'\n{text}END_OF_CASES")
    parts += [f"echo 'group {group}'; cases /disks/{group}" for group in wanted]
    return "\n".join(parts) + "\n"


def ask(wanted: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Boot the kernel and run these groups there: their cases' answers."""
    return read(oracle.run(script(wanted), (), seconds=SECONDS))


def read(said: str) -> dict[str, dict[str, list[str]]]:
    """What the machine printed, as each group's answers."""
    side = Side("/dev/mapper", "/disks/tmp/case", MAPPED_KERNEL)
    found: dict[str, dict[str, list[str]]] = {}
    head, *rest = said.split("\ngroup ")
    parse(head, side)
    for part in rest:
        group, _, answers = part.partition("\n")
        found[group] = parse(answers, side)
    return found
