"""What the drivers dattobd and elastio-snap do not record of a device that they track, as far as it can be found."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np

from lvmsync.errors import DeviceError
from lvmsync.extents import ChangeMap
from lvmsync.formats.dattobd import COW_BLOCK_SIZE
from lvmsync.formats.dattobd_control import Tracked
from lvmsync.system.dattobd import Driver
from lvmsync.system.fiemap import DEVICE_KINDS, find_file_extents
from lvmsync.system.mounts import device_of_file, find_mounts

SYSFS_BLOCK = Path("/sys/dev/block")

_DIFFER = "they differ in a copy, and hold only the driver's own records"


def find_own_blocks(cow_file: str, tracked: Tracked | None, recorded: ChangeMap | None) -> tuple[ChangeMap, str]:
    """Return where the COW files themselves lie on the device: writes to them are not tracked.

    Args:
        cow_file: path of the COW file whose period it is.
        tracked: the device, as the driver knows it now; None: it does not.
        recorded: what was noted of the COW file before the driver cut it short; None: nothing was.

    Returns:
        The bytes, rounded outward to what the drivers track, and a sentence that says what is in them and what is not.
    """
    found, note = _find(cow_file, tracked, recorded)
    unit = np.uint64(COW_BLOCK_SIZE)
    starts, ends = found.offsets // unit * unit, (found.ends + unit - np.uint64(1)) // unit * unit
    return ChangeMap.from_arrays(starts, ends - starts), note


def _find(cow_file: str, tracked: Tracked | None, recorded: ChangeMap | None) -> tuple[ChangeMap, str]:
    if tracked is None:
        return recorded or ChangeMap.empty(), (
            "The COW file's own blocks, which the driver does not track, are read as well."
            if recorded is not None
            else "Where the COW file's own blocks were is not known: they differ in a copy, and hold only the driver's"
            " own records."
        )
    found, missing = _look_up(cow_file, tracked)
    if missing:
        return found | (recorded or ChangeMap.empty()), (
            f"Not all of the COW files' own blocks could be found ({missing}): {_DIFFER}."
        )
    if recorded is None:
        return found, (
            "The COW files' own blocks, which the driver does not track, are read as well, but for those that"
            f" {cow_file} gave back when its snapshot was given up: {_DIFFER}."
        )
    return found | recorded, "The COW files' own blocks, which the driver does not track, are read as well."


def _look_up(cow_file: str, tracked: Tracked) -> tuple[ChangeMap, str]:
    """Return where the old and the current COW file lie, and why not all of it is known; empty: it is."""
    found = ChangeMap.empty()
    try:
        number = number_of(tracked.block_device)
        mount = next(iter(find_mounts(number)), None)
        if mount is None:
            return found, f"{tracked.block_device} is not mounted"
        if mount.kind not in DEVICE_KINDS:
            return found, f"{mount.kind} does not tell where on the device a file lies"
        current = mount.point.rstrip("/") + "/" + tracked.cow_file.lstrip("/")
        for path in dict.fromkeys((str(Path(cow_file).resolve()), current)):
            if device_of_file(path) != number:
                return found, f"{path} is not on {tracked.block_device}"
            extents = find_file_extents(path)
            if extents is None:
                return found, f"the file system does not tell where {path} lies"
            found |= extents
    except DeviceError as error:
        return found, str(error)
    return found, ""


def number_of(path: str) -> tuple[int, int]:
    """Return major and minor number of a block device.

    Raises:
        DeviceError: it is not there.
    """
    try:
        state = Path(path).stat()
    except OSError as error:
        raise DeviceError(f"cannot look at {path}: {error.strerror}", device=path) from error
    if not stat.S_ISBLK(state.st_mode):
        raise DeviceError(f"{path} is not a block device", device=path)
    return os.major(state.st_rdev), os.minor(state.st_rdev)


def warn_of_discards(tracked: Tracked | None) -> tuple[str, ...]:
    """Return a sentence about discards, unless the device is known to do none."""
    if tracked:
        with suppress(DeviceError, OSError, ValueError):
            if _queue_limit(tracked.block_device, "discard_max_bytes") == 0:
                return ()
    return ("Discards are not tracked: what fstrim or a file system gave up keeps its old content in a copy.",)


def warn_of_zeroes(driver: Driver, device: str) -> list[str]:
    """Return a sentence about a crash of dattobd, where a device takes writes of zeros that may bring it about."""
    if driver.name != "dattobd":
        return []
    with suppress(DeviceError, OSError, ValueError):
        if _queue_limit(device, "write_zeroes_max_bytes") > 0:
            return [
                f"{device} takes writes of zeros as such (queue/write_zeroes_max_bytes is not 0), and dattobd 0.12.1"
                " crashes the kernel of Linux 6.1 when one reaches an incremental device: see docs/dattobd.md."
            ]
    return []


def _queue_limit(device: str, name: str) -> int:
    """Return a limit of a block device's queue; of a partition, that of its disk."""
    folder = (SYSFS_BLOCK / ":".join(map(str, number_of(device)))).resolve()
    disk = folder.parent if (folder / "partition").exists() else folder
    return int((disk / "queue" / name).read_text())
