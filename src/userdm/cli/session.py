"""What every verb works with: its options and arguments, the control client, and dmsetup's shape of an error."""

from __future__ import annotations

import os
import sys

from userdm.api import names
from userdm.api.control import Control, Device
from userdm.api.errors import ControlError
from userdm.cli.options import Options, atoi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import ParamSpec, TypeVar

    from userdm.api.control import Info
    from userdm.cli.style import Style

    P = ParamSpec("P")
    T = TypeVar("T")


class Failed(Exception):
    """The command failed: ``lines`` go to stderr as dmsetup has them, then "Command failed.", then ``detail``."""

    def __init__(self, *lines: str, detail: str = "") -> None:
        super().__init__(*lines)
        self.lines = lines
        self.detail = detail


class Refused(Exception):
    """The report that was asked for makes no sense: ``lines`` go to stderr, the fields there are before them."""

    def __init__(self, *lines: str, fields: bool = False) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.fields = fields


class Session:
    """One call of the program.

    ``many``: each line begins with its device, even if that is the only one. ``drop_in``: called by dmsetup's name,
    the program says nothing that dmsetup does not.
    """

    def __init__(
        self, options: Options, arguments: Sequence[str], *, drop_in: bool = False, many: bool = False
    ) -> None:
        self.options = options
        self.arguments = list(arguments)
        self.many = many
        self.drop_in = drop_in
        # of what a command answers, only info and -v show who has the device open
        self.control = Control(start=True, open_count=options.flag("verbose") > 0)
        self.write = sys.stdout.write
        mode = options.value("manglename") or os.environ.get("DM_DEFAULT_NAME_MANGLING_MODE") or "auto"
        self.mode = mode.lower() if mode.lower() in names.MODES else "auto"
        self._style: Style | None = None

    def flag(self, name: str) -> bool:
        return self.options.flag(name) > 0

    @property
    def style(self) -> Style:
        if self._style is None:
            from userdm.cli.style import Style

            self._style = Style(sys.stdout, plain=self.drop_in)
        return self._style

    # ---- names as they are shown -----------------------------------------------------------------------------

    def shown(self, raw: str, what: str = "name") -> str:
        """A name or uuid of the driver's, as the user wants to see it."""
        if self.mode == "none":
            return raw
        if "\\" not in raw and raw.isalnum() and raw.isascii():
            return raw
        if self.mode == "auto" and "\\x5cx" in raw:
            why = "seems to be mangled more than once. This is not allowed in auto mode."
            raise Failed(f'The {what} "{raw}" {why}')
        if not names.is_mangled(raw):
            raise Failed(f'The {what} "{raw}" should be mangled but it contains blacklisted characters.')
        return names.unmangle(raw)

    def mangled(self, text: str, what: str = "name") -> str:
        return refused(names.mangle, text, self.mode, what)

    def plain(self, text: str) -> str:
        return names.unmangle(text) if self.mode == "none" else text

    # ---- which device ----------------------------------------------------------------------------------------

    def named(self, given: str) -> Device:
        """The device of an argument."""
        try:
            return Device(names.find_name(self.control, given, self.mode))
        except OSError as error:
            if isinstance(error, ControlError):
                raise
            raise Failed(*(error.strerror or str(error)).splitlines()) from None

    def by_option(self) -> Device | None:
        """The device that -u, or -j and -m, name."""
        uuid = self.options.value("uuid")
        if uuid is not None:
            return Device(uuid=refused(names.check_uuid, uuid, self.mode))
        number = self.number()
        return None if number is None else Device(devno=number)

    def number(self) -> tuple[int, int] | None:
        """-j and -m; that both are there was checked."""
        major, minor = self.options.value("major"), self.options.value("minor")
        if major is None or minor is None:
            return None
        number = atoi(major), atoi(minor)
        if number[0] <= 0:
            raise Failed("Missing major number for persistent device.", "Couldn't create ioctl argument.")
        return number

    def wanted(self) -> Iterator[Device]:
        """The devices that the command is for: the arguments', or the options'."""
        if self.arguments:
            yield from map(self.named, self.arguments)
            return
        device = self.by_option()
        if device is None:
            raise Failed("No device specified.")
        yield device

    def take(self, otherwise: str = "No device specified.") -> Device:
        """The one device that the command is for; when that is the first argument, it is taken away."""
        device = self.by_option()
        if device is not None:
            return device
        if not self.arguments:
            raise Failed(otherwise)
        return self.named(self.arguments.pop(0))

    def each(self) -> Iterator[tuple[Device, str]]:
        """(device, prefix of its lines): those that are wanted, or all there are."""
        if self.arguments or self.by_option() is not None:
            many = self.many or len(self.arguments) > 1
            for device in self.wanted():
                yield device, f"{self.shown(device.name)}: " if many else ""
            return
        for name, _ in self.devices():
            yield Device(name), f"{self.shown(name)}: "

    def devices(self) -> list[tuple[str, tuple[int, int]]]:
        """(name, number) of all there are; it is said when there are none."""
        found = self.control.devices()
        if not found:
            self.write("No devices found\n")
        if self.mode != "none":
            self._check_shown([name for name, _ in found])
        return found

    def _check_shown(self, raw: list[str]) -> None:
        wrong: list[str] = []
        for name in raw:
            try:
                self.shown(name)
            except Failed as failed:
                wrong += failed.lines
        if wrong:
            raise Failed(*wrong)

    # ---- what went wrong -------------------------------------------------------------------------------------

    def ioctl(self, word: str, device: Device, act: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Run a command of the driver's; ``word`` is libdevmapper's for it."""
        try:
            return act(*args, **options)
        except ControlError as error:
            raise failure(word, device, error) from None

    def info(self, device: Device, *, open_count: bool = True) -> Info | None:
        """None when there is no such device. ``open_count``: whether anybody wants to know who has it open.

        --noopencount means nothing: the kernel has long given the count all the same.
        """
        act, inactive = self.control.info, self.flag("inactive")
        return self.ioctl("info", device, act, device, inactive=inactive, open_count=open_count)

    def set_read_ahead(self, info: Info) -> None:
        """What --readahead wants of a device that was just resumed."""
        wish = self.options.value("readahead")
        if wish is not None:
            from userdm.cli.blockdev import write_read_ahead

            write_read_ahead(info, wish)

    def report(self, device: Device) -> None:
        """What -v prints after a command."""
        if not self.flag("verbose"):
            return
        from userdm.cli.info import show

        info = self.info(device)
        if info is not None:
            show(self, info)


def failure(word: str, device: Device, error: ControlError) -> Failed:
    number = ""
    if device.devno is not None and device.devno[0] > 0:
        number = f"({device.devno[0]}:{device.devno[1]})"
    reason = os.strerror(error.errno or 0)
    return Failed(
        f"device-mapper: {word} ioctl on {device.name} {device.uuid}{number} failed: {reason}",
        detail=error.detail,
    )


def refused(check: Callable[P, str], *args: P.args, **options: P.kwargs) -> str:
    """A name or uuid as the driver gets it."""
    try:
        return check(*args, **options)
    except OSError as error:
        raise Failed(*(error.strerror or str(error)).splitlines()) from None
