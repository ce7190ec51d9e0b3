"""The udev verbs. udev has no part in our devices, so there are no cookies: what waits for one does not wait."""

from __future__ import annotations

import os
import sys

from userdm.cli.session import Failed, Session

MAGIC = 0x0D4D
"""The upper half of a cookie."""
FLAGS = (
    "DISABLE_DM_RULES",
    "DISABLE_SUBSYSTEM_RULES",
    "DISABLE_DISK_RULES",
    "DISABLE_OTHER_RULES",
    "LOW_PRIORITY",
    "DISABLE_LIBRARY_FALLBACK",
    "PRIMARY_SOURCE",
)


def cookie_value(text: str) -> int | None:
    """As strtoul reads it, with 0x or 0 in front for other bases; None for 0 and for what is no cookie."""
    base, digits = (16, text[2:]) if text[:2].lower() == "0x" else (8, text[1:]) if text[:1] == "0" else (10, text)
    try:
        value = int(digits, base) if digits.isalnum() and digits.isascii() else 0
    except ValueError:
        return None
    return value if 0 < value < 1 << 32 else None


def _cookie(text: str) -> int:
    value = cookie_value(text)
    if value is None:
        raise Failed("Incorrect cookie value.")
    return value


def udevcookies(session: Session) -> None:
    session.write("Cookie       Semid      Value      Last semop time           Last change time\n")


def udevcreatecookie(session: Session) -> None:
    """dmsetup without udev prints none, either."""


def udevreleasecookie(session: Session) -> None:
    given = [*session.arguments, os.environ.get("DM_UDEV_COOKIE", "")][0]
    if not given:
        raise Failed("No udev transaction cookie given.")
    _cookie(given)


def udevcomplete(session: Session) -> None:
    session.write(f"DM_COOKIE_COMPLETED={f'0x{_cookie(session.arguments[0]):x}':<12}\n")


def udevflags(session: Session) -> None:
    bits = _cookie(session.arguments[0]) >> 16
    for bit in range(16):
        if bits >> bit & 1:
            name = (
                f"SUBSYSTEM_UDEV_FLAG{bit - 8}" if bit >= 8 else f"UDEV_{FLAGS[bit]}_FLAG" if bit < 7 else "UDEV_FLAG7"
            )
            session.write(f"DM_{name}='1'\n")


def udevcomplete_all(session: Session) -> None:
    from userdm.cli.options import atoi

    age = 0
    if session.arguments:
        given = session.arguments[0].strip()
        if not given.lstrip("+-")[:1].isdigit():
            raise Failed("Failed to read age_in_minutes parameter.")
        age = atoi(given)
    what = f"semaphores {f'older than {age} minutes ' if age else ''}with keys"
    if not session.flag("yes"):
        sys.stderr.write(f"WARNING: This operation will destroy all {what} that have a prefix {MAGIC} ({MAGIC:#x}).\n")
        if not _agreed(session):
            session.write(f"Semaphores with keys prefixed by {MAGIC} ({MAGIC:#x}) NOT destroyed.\n")
            return
    session.write(f"0 semaphores with keys prefixed by {MAGIC} ({MAGIC:#x}) destroyed. 0 skipped.\n")


def _agreed(session: Session) -> bool:
    """The last y or n of a line; it is asked again after a line without one."""
    while True:
        session.write("Do you really want to continue? [y/n]: ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        answers = [letter for letter in line.lower() if letter in "yn"]
        if not line.endswith("\n"):
            session.write("\n")
            return False
        if answers:
            return answers[-1] == "y"


VERBS = {
    "udevcomplete": udevcomplete,
    "udevcomplete_all": udevcomplete_all,
    "udevcookies": udevcookies,
    "udevcreatecookie": udevcreatecookie,
    "udevflags": udevflags,
    "udevreleasecookie": udevreleasecookie,
}
