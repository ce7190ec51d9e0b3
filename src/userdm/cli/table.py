"""table, status, measure: what each target of a table was given, says of itself, or would report to be measured."""

from __future__ import annotations

from errno import ENXIO

from userdm.api.errors import ControlError
from userdm.cli.info import show
from userdm.cli.session import Failed, Session, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Device, Info, Record


def table(session: Session) -> None:
    _each(session, "table")


def status(session: Session) -> None:
    _each(session, "status")


def measure(session: Session) -> None:
    _each(session, "measure")


def _each(session: Session, word: str) -> None:
    concise = session.flag("concise") and word == "table"
    verbose = session.flag("verbose")
    silent = _runs_command(session)
    any_yet = False
    try:
        for device, prefix in session.each():
            info, records = _ask(session, word, device)
            wanted = _wanted(session, records)
            if not wanted:
                continue
            if concise and not silent:
                from userdm.cli.concise import describe

                session.write((";" if any_yet else "") + describe(session, info, [line for line in wanted if line]))
                any_yet = True
            elif not silent:
                if verbose:
                    show(session, info)
                before = "" if verbose else prefix
                lines = (f"{line[0]} {line[1]} {line[2]} {line[3]}" if line else "" for line in wanted)
                session.write("".join(f"{before}{text}\n" for text in lines))
                if prefix and verbose:
                    session.write("\n")
            _run_command(session, info)
    finally:
        if any_yet:
            session.write("\n")


def _wanted(session: Session, records: list[Record]) -> list[Record | None]:
    """The lines that --target leaves; None stands for a table without any."""
    only = session.options.value("target")
    if only is None:
        return [_without_keys(session, record) for record in records] or [None]
    return [_without_keys(session, record) for record in records if record[2] == only]


def _ask(session: Session, word: str, device: Device) -> tuple[Info, list[Record]]:
    control = session.control
    inactive, noflush = session.flag("inactive"), session.flag("noflush")
    try:
        if word == "table":
            return control.table(device, inactive=inactive, noflush=noflush)
        if word == "measure":
            return control.measure(device, inactive=inactive, noflush=noflush)
        return control.status(device, inactive=inactive, noflush=noflush)
    except ControlError as error:
        if word != "table" and error.errno == ENXIO:
            raise Failed("Device does not exist.") from None
        raise failure(word, device, error) from None


# ---- keys ---------------------------------------------------------------------------------------------------------


def _without_keys(session: Session, record: Record) -> Record:
    """The key of a crypt or integrity target is shown as zeros; one in a keyring begins with a colon: no secret."""
    start, length, kind, text = record
    if session.flag("showkeys") or kind not in ("crypt", "integrity"):
        return record
    words = text.split(" ")
    if kind == "crypt":
        if len(words) > 1 and not words[1].startswith(":"):
            words[1] = "0" * len(words[1])
    else:
        words = [_hidden(word) for word in words]
    return start, length, kind, " ".join(words)


def _hidden(word: str) -> str:
    name, _, rest = word.partition(":")
    algorithm, colon, key = rest.partition(":")
    if name not in ("internal_hash", "journal_crypt", "journal_mac") or not colon:
        return word
    return f"{name}:{algorithm}:{'0' * len(key)}"


# ---- --exec, and ls --target --------------------------------------------------------------------------------------


def list_devices(session: Session) -> None:
    """ls --target, ls --exec."""
    silent = _runs_command(session)
    for device, _ in session.each():
        info, records = _ask(session, "status", device)
        if not _wanted(session, records):
            continue
        if not silent:
            session.write(f"{session.style.name(session.shown(info.name))}\t(%d, %d)\n" % info.devno)
        _run_command(session, info)


def _runs_command(session: Session) -> bool:
    """With a command to run for each device, its output is what is wanted, unless -v asks for ours as well."""
    return session.flag("exec") and not session.flag("verbose")


def _run_command(session: Session, info: Info) -> None:
    command = session.options.value("exec")
    if command is None:
        return
    words = command.split()
    if not words:
        raise Failed
    import subprocess

    from userdm.cli.mknodes import node_path

    try:
        subprocess.run([*words, node_path(session, session.shown(info.name))], check=False)
    except OSError:
        # as with dmsetup, whether it could be run or not is the command's own affair
        return


VERBS = {"table": table, "status": status, "measure": measure}
