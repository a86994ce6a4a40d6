"""A device whose own bytes are the head: opened so that nobody else writes, and watched until it has been read."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from lvmsync.errors import DeviceError, UsageError
from lvmsync.history import UNNAMED, Point
from lvmsync.names import Volume
from lvmsync.sources.source import Reading
from lvmsync.system import dm, ioctl, seen
from lvmsync.system.device import Device, open_device

_WAY_OUT = "unmount it or stop what uses it, name a snapshot of it, or say --frozen if nothing writes to it"


class Watch:
    """Notices writes to a device or file from now on."""

    def __init__(self, device: Device) -> None:
        self._device = device
        # Of a file whose clock has not ticked since its last write another one would not show.
        self._state = self._look() if device.number else seen.look_when_settled(device.fd) or seen.look(device.fd)

    def confirm(self) -> None:
        """Raise DeviceError if it was written to, so that what was read is no one state of it."""
        if self._look() != self._state:
            raise DeviceError(
                f"{self._device.name} was written to while it was read, so what was read is no one state of it; stop"
                " what writes to it, or name a snapshot of it",
                device=self._device.name,
            )

    def _look(self) -> object:
        device = self._device
        if not device.number:
            return seen.look(device.fd)
        with suppress(OSError):  # not root
            ioctl.flush_buffers(device.fd)  # what is in the page cache only has not been counted yet
        return dm.count_writes(device.number)


@contextmanager
def open_head(name: Volume, reading: Reading) -> Iterator[tuple[Device, Watch]]:
    """Open a device or file whose bytes are the head; nobody else may have it open unless it is frozen.

    Raises:
        DeviceError: it is in use, or not there.
        UsageError: -r was given, which is for sources with a tracker.
    """
    if reading.data_source:
        raise UsageError(
            f"-r {reading.data_source}: {name.word} is read itself, and no tracker of it; name what to read instead"
        )
    with open_quiet(name, frozen=reading.frozen or not reading.with_data) as device:
        yield device, Watch(device)


def open_quiet(volume: Volume, *, frozen: bool) -> Device:
    """Open a device for reading; nobody else may have it open, unless it is said to be frozen.

    Raises:
        DeviceError: it is in use, or not there.
    """
    device = open_device(volume.path)
    if frozen or not device.number:
        return device
    number = device.number
    device.close()
    if not dm.wait_until_closed(number):
        raise DeviceError(f"{volume.word} is open: {_WAY_OUT}", device=volume.word)
    try:
        return open_device(volume.path, exclusive=True)
    except DeviceError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY:
            raise DeviceError(f"{error}: {_WAY_OUT}", device=error.device) from error
        raise


def choose_size(device: Device, size: int | None) -> int:
    """Return how many bytes of a device count: ``size``, or all.

    Raises:
        UsageError: it has less.
    """
    if size is None:
        return device.size
    if size > device.size:
        raise UsageError(f"size={size}: {device.name} has only {device.size} bytes", device=device.name)
    return size


def make_point() -> Point:
    """Return a point for the state that a device is in now, which nothing else names."""
    return Point(f"{UNNAMED}{uuid.uuid4().hex}", None, datetime.now(UTC).isoformat(timespec="seconds"))
