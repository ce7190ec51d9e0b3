"""daemon start, stop, status, upgrade, log: the process behind the control socket."""

from __future__ import annotations

import sys
import time
from errno import EBUSY

from userdm.api import start
from userdm.api.control import Control
from userdm.api.errors import ControlError, DaemonError, NoDaemon
from userdm.cli.session import Failed, Session

END_SECONDS = 30.0
RETRY_SECONDS = 0.2


def daemon(session: Session) -> None:
    verbs = {"start": _start, "stop": _stop, "status": _status, "upgrade": _upgrade, "log": _log}
    verb = session.arguments[0]
    if verb not in verbs:
        raise Failed(f"daemon {verb}: must be {', '.join(verbs)}.")
    verbs[verb](session, Control())


def _start(session: Session, control: Control) -> None:
    try:
        control.ping()
    except NoDaemon:
        start.start_daemon(control.runtime_dir)


def _stop(session: Session, control: Control) -> None:
    if session.flag("kill"):
        pid, cleared = start.kill_daemon(control.runtime_dir)
        session.write(f"pid {pid} is killed\n" if pid is not None else f"no daemon ran for {control.runtime_dir}\n")
        session.write("".join(f"{line}\n" for line in cleared))
        return
    try:
        kept = _stop_or_retry(session, control)
    except NoDaemon:
        pid = start.lock_holder(control.runtime_dir)
        if pid is not None:
            raise DaemonError(
                16, f"pid {pid} is about to start or to end; `userdm daemon stop --kill` ends it"
            ) from None
        session.write(f"no daemon runs for {control.runtime_dir}\n")
        return
    except ControlError as error:
        raise Failed("The daemon goes on.", detail=error.detail) from None
    if not start.wait_unlocked(control.runtime_dir, END_SECONDS):
        raise Failed(f"The daemon has closed its devices and is not gone after {END_SECONDS:.0f} s.")
    session.write(f"stopped; the next start brings {kept} device{'s' if kept != 1 else ''} back\n")


def _stop_or_retry(session: Session, control: Control) -> int:
    """How many devices the next start brings back. With --retry whoever has a device in use is waited for."""
    while True:
        try:
            return int(control.query("stop", force=session.flag("force"))["devices"])
        except ControlError as error:
            if error.errno != EBUSY or not session.flag("retry"):
                raise
        time.sleep(RETRY_SECONDS)


def _status(session: Session, control: Control) -> None:
    status = control.query("status")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["since"]))
    lines = [
        ("Version", status["version"]),
        ("Process", status["pid"]),
        ("Worker", f"{status['worker']}, replaced {status['replaced']} time{'s' if status['replaced'] != 1 else ''}"),
        ("Since", since),
        ("Runtime folder", status["runtime_dir"]),
        ("Mapper folder", status["mapper_dir"]),
        ("Devices", status["devices"]),
    ]
    session.write("".join(f"{name + ':':<18} {value}\n" for name, value in lines))
    for name, reason in (status["not_cached"] or {}).items():
        session.write(f"{'Not cached:':<18} {name}: {reason}\n")
    for name, reason in status["not_brought_back"].items():
        session.write(f"{'Not brought back:':<18} {name}: {reason}\n")


def _upgrade(session: Session, control: Control) -> None:
    """The old worker answers when the new one is loaded; who asks next waits until that one serves."""
    before = control.query("status")
    control.query("upgrade")
    after = control.query("status")
    session.write(f"{before['version']}, worker {before['worker']}, ")
    session.write(f"is replaced by {after['version']}, worker {after['worker']}\n")


def _log(session: Session, control: Control) -> None:
    """The file itself: whoever wants it may have a daemon that is dead or hangs."""
    from userdm.abi import runtime

    path = f"{control.runtime_dir}/{runtime.LOG}"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            sys.stdout.writelines(file)
    except FileNotFoundError:
        raise Failed(f"There is no log yet: {path}") from None


VERBS = {"daemon": daemon}
