"""The device mapper, asked through its control node: no program is started, so that it costs microseconds.

Everything here may be missing (no node, no permission, a container): then `control` yields None, and dmsetup is asked.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lvmsync.errors import CommandError, FormatError
from lvmsync.formats import dm_ioctl
from lvmsync.formats.dm_ioctl import Answer, Number, Target

CONTROL = Path("/dev/mapper/control")

_ROOM, _MOST = 16 << 10, 64 << 20  # bytes of an answer: what is tried first, and what is no sensible one
_MAJOR = 4  # of the interface

_T = TypeVar("_T")


class Control:
    """The open node. Answers of devices that are gone are None."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._room = _ROOM

    def list_numbers(self) -> list[Number]:
        """Return the numbers of all mapped devices."""
        buffer = self._ask("the list of devices", dm_ioctl.LIST_DEVICES)
        return [] if buffer is None else _read(dm_ioctl.parse_numbers, buffer)

    def describe(self, number: Number) -> Answer | None:
        """Return what a device is."""
        buffer = self._ask(_name(number), dm_ioctl.DEV_STATUS, number)
        return None if buffer is None else Answer.parse(buffer)

    def read_table(self, number: Number) -> tuple[Answer, list[Target]] | None:
        """Return what a device is, and the lines of its table; none of one without."""
        # A table may hold keys: the kernel is to wipe its copy of them.
        flags = dm_ioctl.STATUS_TABLE_FLAG | dm_ioctl.SECURE_DATA_FLAG
        return self._read_lines(number, flags)

    def read_status(self, number: Number) -> tuple[Answer, list[Target]] | None:
        """Return what a device is, and the status of its lines; a thin pool commits its metadata before, as ever."""
        return self._read_lines(number, 0)

    def _read_lines(self, number: Number, flags: int) -> tuple[Answer, list[Target]] | None:
        buffer = self._ask(_name(number), dm_ioctl.TABLE_STATUS, number, flags)
        if buffer is None:
            return None
        answer = Answer.parse(buffer)
        return answer, _read(dm_ioctl.parse_targets, buffer) if answer.has_table else []

    def _ask(self, what: str, request: int, number: Number | None = None, flags: int = 0) -> bytearray | None:
        """Return the answer to a request, however long it is; None: there is no such device."""
        while True:
            buffer = dm_ioctl.request(self._room, number=number, flags=flags)
            try:
                fcntl.ioctl(self._fd, request, buffer)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return None
                raise _failed(f"the device mapper does not tell of {what}", error) from error
            if not Answer.parse(buffer).is_full:
                return buffer
            if self._room >= _MOST:
                raise CommandError(f"the device mapper's answer about {what} is longer than {_MOST} bytes")
            self._room *= 4


@contextmanager
def control() -> Iterator[Control | None]:
    """Open the node; None: it is not there, not for us, or speaks another version."""
    try:
        fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield Control(fd) if _is_usable(fd) else None
    finally:
        os.close(fd)


def _is_usable(fd: int) -> bool:
    buffer = dm_ioctl.request(dm_ioctl.HEADER_SIZE)
    try:
        fcntl.ioctl(fd, dm_ioctl.VERSION, buffer)
        if Answer.parse(buffer).version[0] != _MAJOR:
            return False
        # VERSION is for everyone; whether we may ask for more, this tells.
        fcntl.ioctl(fd, dm_ioctl.LIST_DEVICES, dm_ioctl.request(dm_ioctl.HEADER_SIZE))
    except OSError:
        return False
    return True


def _read(parse: Callable[[bytearray], _T], buffer: bytearray) -> _T:
    try:
        return parse(buffer)
    except FormatError as error:
        raise CommandError(f"cannot read what the kernel says: {error}") from error


def _failed(what: str, error: OSError) -> CommandError:
    why = "it is gone" if error.errno == errno.ENXIO else error.strerror
    return CommandError(f"{what}: {why}")


def _name(number: Number) -> str:
    return f"device {number[0]}:{number[1]}"
