"""The control nodes and /proc files of elastio-snap and dattobd, whose requests are the same.

The drivers answer no request while their /proc file is open, so it is read in one go and closed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from lvmsync.errors import DeviceError, FormatError
from lvmsync.formats.dattobd_control import REQUESTS, Info, Tracked, parse_tracked

ROOT = Path("/")
"""Where /dev and /proc are looked for; tests name another folder."""


@dataclass(frozen=True)
class Driver:
    """One of the two drivers.

    Attributes:
        name: of the kernel module.
        magic: of its ioctl requests.
        stem: what its device nodes begin with.
        proc_name: its file in /proc.
        can_expand: whether it knows the requests that let a COW file grow.
    """

    name: str
    magic: int
    stem: str
    proc_name: str
    can_expand: bool

    @property
    def control(self) -> Path:
        """The node that takes its requests."""
        return ROOT / "dev" / f"{self.stem}-ctl"

    @property
    def proc(self) -> Path:
        """The file that tells of its devices; it is there while the module is loaded."""
        return ROOT / "proc" / self.proc_name

    @property
    def is_loaded(self) -> bool:
        """Whether the module is loaded."""
        return self.proc.exists()

    def snapshot_path(self, minor: int) -> str:
        """Return the path of a device's snapshot, which is there only in snapshot mode."""
        return str(ROOT / "dev" / f"{self.stem}{minor}")


DATTOBD = Driver("dattobd", 0x91, "datto", "datto-info", can_expand=True)
ELASTIO = Driver("elastio-snap", 0x41, "elastio-snap", "elastio-snap-info", can_expand=False)
DRIVERS = (DATTOBD, ELASTIO)
"""Every driver."""


class Tracking(NamedTuple):
    """One tracked device, and whose it is."""

    driver: Driver
    device: Tracked

    @property
    def snapshot_path(self) -> str:
        """The path of its snapshot device."""
        return self.driver.snapshot_path(self.device.minor)


def list_tracked(drivers: tuple[Driver, ...] = DRIVERS) -> list[Tracking]:
    """Return what the drivers track; of one that is not loaded, nothing.

    Raises:
        FormatError: a driver says what this lvmsync does not understand.
        DeviceError: its /proc file cannot be read.
    """
    found = []
    for driver in drivers:
        text = _read_proc(driver)
        if text is None:
            continue
        try:
            _, devices = parse_tracked(text)
        except FormatError as error:
            raise FormatError(f"{driver.proc}: {error}", device=str(driver.proc)) from error
        found += [Tracking(driver, device) for device in devices]
    return found


Ioctl = Callable[[int, int, Any], int]
"""As fcntl.ioctl with a buffer that the kernel may change: descriptor, request number, buffer."""


def call_ioctl(fd: int, number: int, argument: Any) -> int:
    """Call ioctl(2); what the kernel writes is then in ``argument``."""
    return int(fcntl.ioctl(fd, number, argument, True))


class Control:
    """The open control node of a driver; a context manager. One method a request.

    Every method raises DeviceError, which says what to do next, where the driver refuses. Sizes of 0 mean
    what the driver thinks fit: a COW file of 10 % of the device (or as before), 300 MiB of memory.
    """

    def __init__(self, driver: Driver, ioctl: Ioctl | None = None) -> None:
        """Open the node.

        Args:
            driver: whose it is.
            ioctl: instead of the kernel's.
        """
        self.driver = driver
        self._ioctl = ioctl or call_ioctl
        try:
            self._fd = os.open(driver.control, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _opening_failed(driver, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def setup(self, device: str, cow: str, minor: int, *, space_mib: int = 0, cache_size: int = 0) -> None:
        """Begin to track a mounted device: with the first snapshot, in snapshot mode.

        Args:
            device: path of the block device.
            cow: absolute path of the new COW file, on that device's file system.
            minor: of the device to be made, one that is free.
            space_mib: MiB for the COW file.
            cache_size: bytes of memory for its index.
        """
        self._call(
            "setup", f"track {device} with {cow} as minor {minor}",
            bdev=device, cow=cow, fallocated_space=space_mib, cache_size=cache_size, minor=minor,
        )  # fmt: skip

    def reload(self, device: str, cow: str, minor: int, *, snapshot: bool, cache_size: int = 0) -> None:
        """Go on after a reboot, before the device is mounted.

        Args:
            device: path of the block device.
            cow: path of its COW file relative to the root of its file system, as in ``/.datto``.
            minor: of the device to be made.
            snapshot: whether it was in snapshot mode, not in incremental mode.
            cache_size: bytes of memory for the index.
        """
        self._call(
            "reload_snapshot" if snapshot else "reload_incremental", f"go on with {device} and {cow} as minor {minor}",
            bdev=device, cow=cow, cache_size=cache_size, minor=minor,
        )  # fmt: skip

    def reload_snapshot(self, device: str, cow: str, minor: int, *, cache_size: int = 0) -> None:
        """Go on with a device that was in snapshot mode; see `reload`."""
        self.reload(device, cow, minor, snapshot=True, cache_size=cache_size)

    def reload_incremental(self, device: str, cow: str, minor: int, *, cache_size: int = 0) -> None:
        """Go on with a device that was in incremental mode; see `reload`."""
        self.reload(device, cow, minor, snapshot=False, cache_size=cache_size)

    def destroy(self, minor: int) -> None:
        """Stop tracking; the driver removes the current COW file."""
        self._call("destroy", f"stop tracking minor {minor}", minor=minor)

    def to_incremental(self, minor: int) -> None:
        """Give the snapshot up, and only record what changes since it was taken."""
        self._call("to_incremental", f"give up the snapshot of minor {minor}", minor=minor)

    def to_snapshot(self, minor: int, cow: str, *, space_mib: int = 0) -> None:
        """Take the next snapshot; the old COW file is then complete.

        Args:
            minor: of the device.
            cow: absolute path of the new COW file.
            space_mib: MiB for it.
        """
        self._call(
            "to_snapshot", f"take a snapshot of minor {minor} with {cow}",
            cow=cow, fallocated_space=space_mib, minor=minor,
        )  # fmt: skip

    def reconfigure(self, minor: int, cache_size: int) -> None:
        """Set the bytes of memory for the index."""
        self._call("reconfigure", f"set the cache of minor {minor}", cache_size=cache_size, minor=minor)

    def read_info(self, minor: int) -> Info:
        """Return what the driver says of a device."""
        return Info.parse(self._call("info", f"ask for minor {minor}", minor=minor, uuid=b"", cow=b"", bdev=b""))

    def find_free_minor(self) -> int:
        """Return a minor that no device has."""
        found = REQUESTS["find_free_minor"].decode(self._call("find_free_minor", "find a free minor"))
        if found["minor"] < 0:
            raise DeviceError(f"{self.driver.name} has no free minor", device=str(self.driver.control))
        return int(found["minor"])

    def expand(self, minor: int, size_mib: int) -> None:
        """Let the COW file grow by so many MiB (dattobd only)."""
        self._call("expand", f"let the COW file of minor {minor} grow", size=size_mib, minor=minor)

    def auto_expand(self, minor: int, step_mib: int, reserved_mib: int) -> None:
        """Let the COW file grow by itself (dattobd only).

        Args:
            minor: of the device.
            step_mib: MiB at a time.
            reserved_mib: MiB that stay free in the file system.
        """
        self._call(
            "auto_expand", f"let the COW file of minor {minor} grow by itself",
            step_size=step_mib, reserved_space=reserved_mib, minor=minor,
        )  # fmt: skip

    def _call(self, name: str, what: str, **values: int | str | bytes) -> bytes:
        """Make one request, and return its struct as the kernel left it."""
        if name in ("expand", "auto_expand") and not self.driver.can_expand:
            raise DeviceError(
                f"{self.driver.name} cannot let a COW file grow; give it enough space when it is made",
                device=str(self.driver.control),
            )
        request = REQUESTS[name]
        strings, fields = [], {}  # the strings are kept until the call is over
        for key, value in values.items():
            if isinstance(value, str):
                strings.append(ctypes.create_string_buffer(os.fsencode(value)))
                value = ctypes.addressof(strings[-1])
            fields[key] = value
        argument = bytearray(request.encode(**fields))
        try:
            self._ioctl(self._fd, request.number(self.driver.magic), argument)
        except OSError as error:
            reason = _reason(name, error)
            raise DeviceError(
                f"{self.driver.name}: cannot {what}: {reason}", device=str(self.driver.control)
            ) from error
        return bytes(argument)


def _read_proc(driver: Driver) -> str | None:
    """Return the text of a driver's /proc file; None: the module is not loaded."""
    try:
        return os.fsdecode(driver.proc.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(f"cannot read {driver.proc}: {error.strerror}", device=str(driver.proc)) from error


def _opening_failed(driver: Driver, error: OSError) -> DeviceError:
    match error.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            reason = f"the module is not loaded; run 'modprobe {driver.name}'"
        case errno.EACCES | errno.EPERM:
            reason = "permission denied; run as root"
        case _:
            reason = error.strerror or str(error)
    return DeviceError(f"cannot open {driver.control}: {reason}", device=str(driver.control))


_SETUP = {
    errno.EINVAL: "the device is not mounted for writing, or is tracked already, or the COW file is not on its file"
    " system, or the minor is out of range (0 to 23, unless the module was told otherwise); see 'lvmsync dattobd"
    " status'",
    errno.EBUSY: "the minor is taken; leave it out, and a free one is found",
    errno.ENOENT: "there is no such device, or no such folder for the COW file",
    errno.ENOTBLK: "it is no block device",
    errno.EEXIST: "the COW file is there already; choose another name",
}
_RELOAD = {
    errno.EINVAL: "the device is mounted (it must not be, yet), or is tracked already, or the minor is out of range;"
    " a device that is mounted needs a new setup and a full compare",
    errno.EBUSY: "the minor is taken; see 'lvmsync dattobd status'",
    errno.ENOENT: "there is no such device",
}
_OPEN = "its snapshot device is open; close what reads it (see 'fuser -v'), then run it again"
_TRANSITION = {errno.EBUSY: _OPEN, errno.ENOENT: "there is no such minor; see 'lvmsync dattobd status'"}
_REASONS = {
    "setup": _SETUP,
    "reload_snapshot": _RELOAD,
    "reload_incremental": _RELOAD,
    "to_incremental": _TRANSITION
    | {errno.EINVAL: "it is not an active snapshot, or has failed; see 'lvmsync dattobd status'"},
    "to_snapshot": _TRANSITION
    | {
        errno.EINVAL: "it is not actively tracking in incremental mode, or has failed, or the COW file is not on its"
        " file system; see 'lvmsync dattobd status'",
        errno.EEXIST: _SETUP[errno.EEXIST],
    },
}


def _reason(name: str, error: OSError) -> str:
    """Return what an error of a request means, and what to do next."""
    number = error.errno
    known = _REASONS.get(name, _TRANSITION | {errno.EINVAL: "the minor is out of range, or the value is"})
    if number in known:
        return known[number]
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            going_on = "; tracking goes on as it was" if name == "to_snapshot" else ""
            return f"the file system has no room for the COW file{going_on}; make room, or give it less space"
        case errno.EACCES | errno.EPERM:
            return "permission denied; run as root"
        case errno.ENOTTY:
            return "the driver does not know this request; is it another version?"
        case _:
            return error.strerror or str(error)
