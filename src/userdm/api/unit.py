"""Under systemd the daemon is a unit of its own, `userdm.service`, whoever was the first to want it.

Otherwise it would live in the control group of that command's service or session, and end with it. The unit is
transient, so there is no file to install. The keeper does by itself what socket activation and the descriptor store
would do for us.

At shutdown systemd stops it while it unmounts, not after: `daemon stop --retry` waits for the last holder, and nothing
of it is killed before. It has none of the default dependencies: with them it would have to end before the file
systems that are mounted from its devices. See systemd.service(5), systemd.mount(5), sd_booted(3).
"""

from __future__ import annotations

import os
import sys

from userdm.abi import runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "userdm.service"
BOOTED = "/run/systemd/system"
PASSED = ("PYTHON", "USERDM_", "LD_LIBRARY_PATH")
"""Of the caller's environment, what makes the daemon find itself: variables that begin so."""


def wanted() -> bool:
    """Whether systemd runs here, and this is the daemon of the whole machine: a private one is its caller's."""
    return os.geteuid() == 0 and os.path.isdir(BOOTED) and not os.environ.get("USERDM_RUNTIME_DIR")  # noqa: PTH112


def command(daemon: list[str], environment: Mapping[str, str], runtime_dir: str) -> list[str]:
    """What starts the unit, and returns when the daemon answers."""
    settings = {
        "Description": "userdm, the Linux Device Mapper in user space",
        "Type": "forking",
        "PIDFile": f"{runtime_dir}/{runtime.PID}",
        "ExecStop": f"{sys.executable} -m userdm daemon stop --retry",
        "DefaultDependencies": "no",
        "Conflicts": "shutdown.target",
        "Before": "shutdown.target",
        "RefuseManualStop": "yes",
        "KillMode": "mixed",
        "SendSIGKILL": "no",
        "OOMScoreAdjust": "-900",
        "LimitNOFILE": "infinity",
        "LimitMEMLOCK": "infinity",
    }
    passed = [f"--setenv={key}={value}" for key, value in sorted(environment.items()) if key.startswith(PASSED)]
    properties = [f"--property={key}={value}" for key, value in settings.items()]
    return ["systemd-run", "--quiet", "--collect", f"--unit={NAME}", *properties, *passed, *daemon]
