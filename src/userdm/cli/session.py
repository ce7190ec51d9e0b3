"""What every verb works with: its options and arguments, the control client, and dmsetup's shape of an error."""

from __future__ import annotations

import os
import sys

from userdm.api.control import Control, Device
from userdm.api.errors import ControlError
from userdm.api.names import check_uuid, find_name, unmangle
from userdm.cli.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import ParamSpec, TypeVar

    from userdm.api.control import Info

    P = ParamSpec("P")
    T = TypeVar("T")


class Failed(Exception):
    """The command failed: ``lines`` go to stderr as dmsetup has them, then "Command failed.", then ``detail``."""

    def __init__(self, *lines: str, detail: str = "") -> None:
        super().__init__(*lines)
        self.lines = lines
        self.detail = detail


class Session:
    """One call of the program."""

    def __init__(self, options: Options, arguments: Sequence[str]) -> None:
        self.options = options
        self.arguments = list(arguments)
        self.control = Control(start=True)
        self.write = sys.stdout.write

    def flag(self, name: str) -> bool:
        return self.options.flag(name) > 0

    # ---- which device ----------------------------------------------------------------------------------------

    def named(self, given: str) -> Device:
        """The device of an argument."""
        try:
            return Device(find_name(self.control, given))
        except OSError as error:
            if isinstance(error, ControlError):
                raise
            raise Failed(error.strerror or str(error)) from None

    def by_option(self) -> Device | None:
        """The device that -u, or -j and -m, name."""
        uuid = self.options.value("uuid")
        if uuid is not None:
            return Device(uuid=refused(check_uuid, uuid))
        number = self.number()
        return None if number is None else Device(devno=number)

    def number(self) -> tuple[int, int] | None:
        """-j and -m; that both are there was checked."""
        major, minor = self.options.value("major"), self.options.value("minor")
        if major is None or minor is None:
            return None
        return _integer("major", major), _integer("minor", minor)

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
            many = len(self.arguments) > 1
            for device in self.wanted():
                yield device, f"{unmangle(device.name)}: " if many else ""
            return
        names = self.control.devices()
        if not names:
            self.write("No devices found\n")
        for name, _ in names:
            yield Device(name), f"{unmangle(name)}: "

    # ---- what went wrong -------------------------------------------------------------------------------------

    def ioctl(self, word: str, device: Device, act: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Run a command of the driver's; ``word`` is libdevmapper's for it."""
        try:
            return act(*args, **options)
        except ControlError as error:
            raise failure(word, device, error) from None

    def info(self, device: Device) -> Info | None:
        """None when there is no such device."""
        act = self.control.info
        inactive, open_count = self.flag("inactive"), not self.flag("noopencount")
        return self.ioctl("info", device, act, device, inactive=inactive, open_count=open_count)

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
        f"device-mapper: {word} ioctl on {device.name} {unmangle(device.uuid)}{number} failed: {reason}",
        detail=error.detail,
    )


def refused(check: Callable[[str], str], text: str) -> str:
    """A name or uuid as the driver gets it."""
    try:
        return check(text)
    except OSError as error:
        raise Failed(error.strerror or str(error)) from None


def _integer(what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise Failed(f"Invalid {what} number {text}: must be a decimal number.")
    return int(text)
