"""The program's entry: finds the verb, runs it, prints what went wrong. Exit codes: 0, or 1 for any failure."""

from __future__ import annotations

import os
import sys

from userdm.cli.options import WrongOption, parse

MANY = 1 << 30

# verb: (module, least and most arguments)
VERBS = {
    "clear": ("load", 0, MANY),
    "create": ("create", 0, 2),
    "daemon": ("daemon", 1, 1),
    "deps": ("deps", 0, MANY),
    "help": ("help", 0, 1),
    "info": ("info", 0, MANY),
    "load": ("load", 0, 2),
    "ls": ("ls", 0, 0),
    "message": ("message", 2, MANY),
    "reload": ("load", 0, 2),
    "remove": ("remove", 0, MANY),
    "rename": ("rename", 1, 2),
    "resume": ("suspend", 0, MANY),
    "status": ("table", 0, MANY),
    "suspend": ("suspend", 0, MANY),
    "table": ("table", 0, MANY),
    "target-version": ("targets", 1, MANY),
    "targets": ("targets", 0, 0),
    "version": ("targets", 0, 0),
    "wait": ("wait", 0, 2),
}


def usage() -> str:
    from userdm.cli.help import USAGE

    return USAGE


def run(words: list[str]) -> int:
    """One command, without the program's name; the exit code."""
    try:
        options, arguments = parse(words)
        if options.value("table") is not None and options.flag("notable"):
            raise WrongOption("--table and --notable are incompatible.")
        if (options.value("major") is None) != (options.value("minor") is None):
            raise WrongOption("Please specify both major number and minor number.")
    except WrongOption as error:
        text = str(error)
        sys.stderr.write(text if text.endswith(".") else f"userdm: {text}")
        sys.stderr.write("\nCouldn't process command line.\n")
        return 1
    if options.flag("help"):
        sys.stdout.write(usage())
        return 0
    if options.flag("version"):
        arguments = ["version"]
    if not arguments:
        sys.stderr.write(usage())
        return 1
    verb = arguments.pop(0)
    if verb not in VERBS:
        sys.stderr.write(f"Unknown command.\n{usage()}")
        return 1
    module, least, most = VERBS[verb]
    if not least <= len(arguments) <= most:
        sys.stderr.write(f"Incorrect number of arguments.\n{usage()}")
        return 1
    from userdm.cli.session import Failed, Session

    try:
        # what importlib.import_module would do, without importing importlib
        __import__(f"userdm.cli.{module}")
        sys.modules[f"userdm.cli.{module}"].VERBS[verb](Session(options, arguments))
    except Failed as failed:
        _complain(*failed.lines, "Command failed.", *(f"userdm: {line}" for line in failed.detail.splitlines()))
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        # the daemon could not be asked, or its answer makes no sense
        _complain(f"userdm: {error.strerror or error}", "Command failed.")
        return 1
    return 0


def _complain(*lines: str) -> None:
    sys.stdout.flush()
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def entry() -> int:
    """The installed program."""
    # a name may hold bytes that are no UTF-8: they go out as they came in
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read us has read enough; and Python must not find that out again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code
