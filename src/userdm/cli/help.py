"""help: the usage, one verb's part of it, or a target's manual."""

from __future__ import annotations

from userdm.cli.session import Failed, Session

SYNTAX = {
    "clear": "<device>...",
    "create": "<name> [<table file>|--table <table>|-n|--notable] [-r|--readonly]\n"
    "\t\t[-u|--uuid <uuid>] [-j|--major <major> -m|--minor <minor>]",
    "daemon": "start|status|log|stop [--force|--kill]",
    "deps": "[-o devno|blkdevname|devname] [--inactive] [<device>...]",
    "help": "[<command>|<target>]",
    "info": "[--inactive] [<device>...]\n"
    "\tinfo -c|-C|--columns [-o <fields>] [-O|--sort <fields>]\n"
    "\t\t[--noheadings] [--separator <separator>] [--inactive] [<device>...]",
    "load": "<device> [<table file>|--table <table>] [-r|--readonly]",
    "ls": "[--target <target>] [-o devno|blkdevname|devname]",
    "message": "[-f|--force] <device> <sector> <message>...",
    "reload": "<device> [<table file>|--table <table>] [-r|--readonly]",
    "remove": "[-f|--force] [--retry] [--deferred] <device>...",
    "rename": "<device> <new name>\n" "\trename --setuuid <device> <uuid>",
    "resume": "[--noflush] [--nolockfs] <device>...",
    "status": "[--target <target>] [--noflush] [--inactive] [<device>...]",
    "suspend": "[--noflush] [--nolockfs] <device>...",
    "table": "[--target <target>] [--inactive] [<device>...]",
    "target-version": "<target>...",
    "targets": "",
    "version": "",
    "wait": "[--noflush] <device> [<event number>]",
}


def syntax(verb: str) -> str:
    return f"\t{verb} {SYNTAX[verb]}".rstrip() + "\n"


USAGE = (
    "Usage:\n\nuserdm <command> [-v|--verbose] ...\n\n"
    + "".join(map(syntax, SYNTAX))
    + """
<device> is a name, the path of a device's node, or in its place -u <uuid> or -j <major> -m <minor>.
<table> is a line "<first sector> <sectors> <target> <arguments>...", a table file has one a line; without
either it is read from the standard input. Sectors are 512 bytes.
"help <target>" prints a target's manual. See dmsetup(8) for what is common to both.
"""
)


def help_(session: Session) -> None:
    if not session.arguments:
        session.write(USAGE)
        return
    word = session.arguments[0]
    if word in SYNTAX:
        session.write(f"Usage:\n\n{syntax(word)}")
        return
    import sys

    from userdm.targets.registry import targets

    found = targets().get(word)
    if found is None:
        raise Failed(f"{word} is neither a command nor a target; targets are {', '.join(sorted(targets()))}.")
    manual = sys.modules[found.__module__].__doc__ or "It has no manual."
    session.write(f"{manual.strip()}\n\nVersion %d.%d.%d\n" % found.version)


VERBS = {"help": help_}
