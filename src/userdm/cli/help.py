"""help: the usage, one verb's part of it, the fields of a report, or a target's manual."""

from __future__ import annotations

import sys

from userdm.cli.session import Failed, Session

SYNTAX = {
    "clear": "<device>...",
    "create": "<name> [<table file>|--table <table>|-n|--notable] [-r|--readonly]\n"
    "\t\t[-u|--uuid <uuid>] [-j|--major <major> -m|--minor <minor>]\n"
    "\t\t[--readahead [+]<sectors>|auto|none]\n"
    "\tcreate --concise [<name>,<uuid>,<minor>,ro|rw,<table line>[,<table line>...][;...]]",
    "daemon": "start|status|log|upgrade|stop [--force|--retry|--kill]",
    "deps": "[-o devno|blkdevname|devname] [--inactive] [<device>...]",
    "help": "[-c] [<command>|<target>]",
    "info": "[--inactive] [<device>...]\n"
    "\tinfo -c|-C|--columns [-o [+]<fields>] [-O|--sort [-]<fields>] [-S <selection>]\n"
    "\t\t[--noheadings] [--separator <separator>] [--rows] [--nameprefixes] [--unquoted]\n"
    "\t\t[--count <times>] [--interval <seconds>] [--inactive] [<device>...]",
    "load": "<device> [<table file>|--table <table>] [-r|--readonly]",
    "ls": "[--target <target>] [--exec <command>] [-o devno|blkdevname|devname]\n"
    "\tls --tree [-o [no]device,blkdevname,active,open,rw,uuid,inverted,compact,notrunc,ascii|utf|vt100]",
    "mangle": "[--manglename auto|hex|none] [<device>...]",
    "measure": "[--target <target>] [<device>...]",
    "message": "[-f|--force] <device> <sector> <message>...",
    "mknodes": "[<device>...]",
    "reload": "<device> [<table file>|--table <table>] [-r|--readonly]",
    "remove": "[-f|--force] [--retry] [--deferred] <device>...",
    "remove_all": "[-f|--force] [--deferred]",
    "rename": "<device> <new name>\n" "\trename --setuuid <device> <uuid>",
    "resume": "[--noflush] [--nolockfs] [--readahead [+]<sectors>|auto|none] <device>...",
    "setgeometry": "<device> <cylinders> <heads> <sectors> <start>",
    "splitname": "<name> [<subsystem>] [options of info -c]",
    "stats": "list|report [<device>...]",
    "status": "[--target <target>] [--exec <command>] [--noflush] [--inactive] [<device>...]",
    "suspend": "[--noflush] [--nolockfs] <device>...",
    "table": "[--concise] [--target <target>] [--exec <command>] [--showkeys] [--inactive] [<device>...]",
    "target-version": "<target>...",
    "targets": "",
    "udevcomplete": "<cookie>",
    "udevcomplete_all": "[<minutes>]",
    "udevcookies": "",
    "udevcreatecookie": "",
    "udevflags": "<cookie>",
    "udevreleasecookie": "[<cookie>]",
    "version": "",
    "wait": "[--noflush] <device> [<event number>]",
    "wipe_table": "[-f|--force] [--noflush] [--nolockfs] <device>...",
}


def syntax(verb: str) -> str:
    return f"\t{verb} {SYNTAX[verb]}".rstrip() + "\n"


USAGE = (
    "Usage:\n\nuserdm <command> [-v] [--manglename auto|hex|none] ...\n\n"
    + "".join(map(syntax, SYNTAX))
    + """
<device> is a name, the path of a device's node, or in its place -u <uuid> or -j <major> -m <minor>.
<table> is a line "<first sector> <sectors> <target> <arguments>...", a table file has one a line; without
either it is read from the standard input. Sectors are 512 bytes.
-S <selection> picks devices by what info -c shows of them: 'open=0 && name=~"^vg-"'. The verbs clear, deps,
measure, remove, resume, status, suspend, table and wipe_table take it, too.
"help -c" lists the fields, "help <target>" prints a target's manual. See dmsetup(8) for what is common to both.
"""
)


def help_(session: Session) -> None:
    # dmsetup has it on stderr
    write = sys.stderr.write if session.drop_in else session.write
    if not session.arguments:
        write(USAGE)
        if session.flag("columns"):
            from userdm.cli.fields import list_fields

            write("\n" + list_fields())
        return
    word = session.arguments[0]
    if word in SYNTAX:
        write(f"Usage:\n\n{syntax(word)}")
        return
    from userdm.targets.registry import targets

    found = targets().get(word)
    if found is None:
        raise Failed(f"{word} is neither a command nor a target; targets are {', '.join(sorted(targets()))}.")
    manual = sys.modules[found.__module__].__doc__ or "It has no manual."
    write(f"{manual.strip()}\n\nVersion %d.%d.%d\n" % found.version)


VERBS = {"help": help_}
