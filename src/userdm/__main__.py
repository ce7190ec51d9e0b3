"""python -m userdm: the command line."""

from __future__ import annotations

import sys

from userdm.cli.main import entry

if __name__ == "__main__":
    sys.exit(entry())
