"""Serve one file as a block device through userdm's export code, with no mapping: what an export costs by itself.

passthrough.py RUNTIME_FOLDER FILE: prints the device, and serves until its standard input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from userdm.dataplane.passthrough import Passthrough
from userdm.export.exporter import DeviceExporter
from userdm.storage import open_storage


def main() -> None:
    folder, path = Path(sys.argv[1]), sys.argv[2]
    (folder / "mapper").mkdir(parents=True)
    exporter = DeviceExporter(folder, folder / "mapper", as_root=True)
    try:
        backend = Passthrough(open_storage(path), granularity=65536)
        exporter.create("passthrough", backend, None).activate("passthrough", False)
        print(folder / "mapper" / "passthrough", flush=True)
        sys.stdin.read()
    finally:
        exporter.close()


if __name__ == "__main__":
    main()
