"""The program's entry: finds the verb, runs it, prints what went wrong. Exit codes: 0, or 1 for any failure."""

from __future__ import annotations

import os
import sys

from userdm.cli.options import WrongOption, check, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from userdm.cli.options import Options
    from userdm.cli.session import Session

DMSETUP = ("dmsetup", "dmstats", "devmap_name")
MANY = 1 << 30
SELECTS = True
"""The verb is for the devices that -S wants."""

# verb: (module, least and most arguments, and whether -S is for it)
VERBS = {
    "clear": ("load", 0, MANY, SELECTS),
    "create": ("create", 0, 2, False),
    "daemon": ("daemon", 1, 1, False),
    "deps": ("deps", 0, MANY, SELECTS),
    "help": ("help", 0, 1, False),
    "info": ("info", 0, MANY, False),
    "load": ("load", 0, 2, False),
    "ls": ("ls", 0, 0, False),
    "mangle": ("mangle", 0, MANY, False),
    "measure": ("table", 0, MANY, SELECTS),
    "message": ("message", 2, MANY, False),
    "mknodes": ("mknodes", 0, MANY, False),
    "reload": ("load", 0, 2, False),
    "remove": ("remove", 0, MANY, SELECTS),
    "remove_all": ("remove", 0, 0, False),
    "rename": ("rename", 1, 2, False),
    "resume": ("suspend", 0, MANY, SELECTS),
    "setgeometry": ("setgeometry", 5, 5, False),
    "splitname": ("splitname", 1, 2, False),
    "stats": ("stats", 1, MANY, False),
    "status": ("table", 0, MANY, SELECTS),
    "suspend": ("suspend", 0, MANY, SELECTS),
    "table": ("table", 0, MANY, SELECTS),
    "target-version": ("targets", 1, MANY, False),
    "targets": ("targets", 0, 0, False),
    "udevcomplete": ("udev", 1, 1, False),
    "udevcomplete_all": ("udev", 0, 1, False),
    "udevcookies": ("udev", 0, 0, False),
    "udevcreatecookie": ("udev", 0, 0, False),
    "udevflags": ("udev", 1, 1, False),
    "udevreleasecookie": ("udev", 0, 1, False),
    "version": ("targets", 0, 0, False),
    "wait": ("wait", 0, 2, False),
    "wipe_table": ("remove", 0, MANY, SELECTS),
}


def usage() -> str:
    from userdm.cli.help import USAGE

    return USAGE


def run(words: list[str], program: str = "userdm") -> int:
    """One command, without the program's name; the exit code."""
    drop_in = program != "userdm"
    if program == "devmap_name":
        words = _devmap_name(words)
    try:
        options, arguments = parse(words)
        check(options)
    except WrongOption as error:
        return _wrong(error, program)
    if options.flag("help") and (options.flag("columns") or not arguments or arguments[0] not in VERBS):
        arguments = ["help"]
    elif options.flag("help"):
        arguments = ["help"] if drop_in else ["help", arguments[0]]
    elif options.flag("version"):
        arguments = ["version"]
    elif program == "dmstats":
        arguments.insert(0, "stats")
    if not arguments:
        sys.stderr.write(usage())
        return 1
    verb = arguments.pop(0)
    if verb not in VERBS:
        sys.stderr.write(f"Unknown command.\n{usage()}")
        return 1
    module, least, most, selects = VERBS[verb]
    if drop_in and verb == "help":
        most = 0
    if not least <= len(arguments) <= most:
        sys.stderr.write(f"Incorrect number of arguments.\n{usage()}")
        return 1
    from userdm.cli.session import Failed, Refused, Session

    try:
        # what importlib.import_module would do, without importing importlib
        __import__(f"userdm.cli.{module}")
        act = sys.modules[f"userdm.cli.{module}"].VERBS[verb]
        session = Session(options, arguments, drop_in=drop_in)
        _check_cookie(options)
        if options.flag("select") and selects:
            _select(session, act)
        else:
            if options.flag("columns"):
                _check_report(session, verb)
            act(session)
    except WrongOption as error:
        return _wrong(error, program)
    except Refused as refused:
        if refused.fields:
            from userdm.cli.fields import list_fields

            sys.stderr.write(list_fields())
        _complain(*refused.lines)
        return 1
    except Failed as failed:
        # dmsetup has no words for the reason: a program that parses its output gets none
        reasons = [] if drop_in else failed.detail.splitlines()
        _complain(*failed.lines, "Command failed.", *(f"userdm: {line}" for line in reasons))
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        # the daemon could not be asked, or its answer makes no sense
        _complain(f"userdm: {error.strerror or error}", "Command failed.")
        return 1
    return 0


def _select(session: Session, act: Callable[[Session], None]) -> None:
    """Run the verb once for each device that -S wants. Where one fails, the others have their turn."""
    from userdm.cli.report import selected
    from userdm.cli.session import Failed, Session

    details: list[str] = []
    failed = False
    for name in selected(session):
        try:
            act(Session(session.options, [name], drop_in=session.drop_in, many=True))
        except Failed as error:
            failed = True
            _complain(*error.lines)
            details.append(error.detail)
    if failed:
        raise Failed(detail="\n".join(filter(None, details)))


def _check_report(session: Session, verb: str) -> None:
    """-c is for reports; with another verb its options must make sense all the same."""
    if verb in ("info", "splitname", "stats", "help"):
        return
    from userdm.cli.report import Report
    from userdm.cli.session import Refused

    if verb in ("table", "status") and session.options.flag("sort"):
        raise Refused("--sort is not yet supported with status and table.")
    Report(session)


def _check_cookie(options: Options) -> None:
    """udev has no part in what we do; a cookie that is none is told all the same."""
    given = options.value("udevcookie") or os.environ.get("DM_UDEV_COOKIE")
    if given:
        from userdm.cli.udev import cookie_value

        if cookie_value(given) is None:
            sys.stderr.write("Incorrect cookie value.\n")


def _devmap_name(words: list[str]) -> list[str]:
    numbers = words[0].split(":") if len(words) == 1 else words
    if len(numbers) != 2:
        return ["--help"]
    return ["info", "-c", "--noheadings", "-o", "name", "-j", numbers[0], "-m", numbers[1]]


def _wrong(error: WrongOption, program: str) -> int:
    text = str(error)
    text = text if text.endswith((".", ". ")) else f"{program}: {text}"
    sys.stderr.write(f"{text}\nCouldn't process command line.\n")
    return 1


def _complain(*lines: str) -> None:
    sys.stdout.flush()
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def entry() -> int:
    """The installed program; under dmsetup's name it says nothing that dmsetup does not."""
    # a name may hold bytes that are no UTF-8: they go out as they came in
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    program = os.path.basename(sys.argv[0])  # noqa: PTH119
    try:
        code = run(sys.argv[1:], program if program in DMSETUP else "userdm")
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read us has read enough; and Python must not find that out again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code
