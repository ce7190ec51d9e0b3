"""How long a snapshot takes, of a volume with many mapped blocks and of an empty one."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

import userdm

MAPPED = 160_000
BLOCK = 65536
REPEATS = 15


def ratio(folder: Path) -> float:
    """The median time of the empty volume's snapshots over that of the full one's, taken in turn."""
    metadata, data = folder / "metadata", folder / "data"
    for path, size in ((metadata, 64 << 20), (data, MAPPED * BLOCK)):
        with open(path, "wb") as file:
            file.truncate(size)
    xml = (
        f'<superblock uuid="" time="0" transaction="0" version="2" data_block_size="128" nr_data_blocks="{MAPPED}">\n'
        f'<device dev_id="0" mapped_blocks="{MAPPED}" transaction="0" creation_time="0" snap_time="0">\n'
        f'<range_mapping origin_begin="0" data_begin="0" length="{MAPPED}" time="0"/>\n</device>\n'
        '<device dev_id="1" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0"/>\n</superblock>\n'
    )
    (folder / "xml").write_text(xml)
    command = ["thin_restore", "-i", str(folder / "xml"), "-o", str(metadata)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    times: dict[int, list[float]] = {0: [], 1: []}
    with userdm.Pool(metadata, data) as pool:
        for origin in times:
            pool.open_thin(origin, MAPPED * BLOCK)
        for number in range(REPEATS):
            for origin, taken in times.items():
                start = time.perf_counter()
                pool.message(f"create_snap {2 + 2 * number + origin} {origin}")
                taken.append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[0])
