"""Which device is meant, what drives it, and where its COW files go."""

from __future__ import annotations

import os
from pathlib import Path

from lvmsync.errors import ChangesLost, DeviceError, UsageError
from lvmsync.jobs.dattobd_record import Series, find_mount, list_series, require_identity
from lvmsync.names import parse_volume
from lvmsync.system.dattobd import DRIVERS, Driver, Tracking, list_tracked
from lvmsync.system.device import open_device
from lvmsync.system.identity import identify, is_same_device
from lvmsync.system.mounts import Mount, list_mounts

COW_NAME = ".lvmsync-cow"
"""What the names of our COW files begin with, in the root of the file system."""


def is_device(path: str, other: str) -> bool:
    """Tell whether two paths are the same, or lead to one device."""
    return path == other or is_same_device(path, other)


def find_tracking(word: str) -> Tracking:
    """Return what a driver tracks, by device or by minor.

    Raises:
        DeviceError: nothing is tracked under this name.
        UsageError: more than one is.
    """
    found = look_up(word)
    if found is None:
        names = ", ".join(f"{one.device.block_device} (minor {one.device.minor})" for one in list_tracked())
        loaded = any(driver.is_loaded for driver in DRIVERS)
        hint = f"tracked are: {names or 'nothing'}" if loaded else "neither dattobd nor elastio-snap is loaded"
        raise DeviceError(f"{word} is not tracked; {hint}; see 'lvmsync dattobd status'", device=word)
    return found


def look_up(word: str) -> Tracking | None:
    """Return what a driver tracks, by device or by minor; None: nothing under this name.

    Raises:
        UsageError: more than one is.
    """
    tracked = list_tracked()
    if word.isdecimal():
        found = [one for one in tracked if one.device.minor == int(word)]
    else:
        path = parse_volume(word).path
        found = [one for one in tracked if is_device(path, one.device.block_device)]
    if len(found) > 1:
        names = ", ".join(f"{one.driver.name} minor {one.device.minor} ({one.device.words})" for one in found)
        raise UsageError(f"{word} may be {names}; name one that only one of them has, or destroy what is not needed")
    return found[0] if found else None


def require_active(tracking: Tracking) -> None:
    """Refuse a device that is not tracked now, with the next step.

    Raises:
        ChangesLost: the driver gave up.
        DeviceError: it is not mounted.
    """
    device = tracking.device
    what = f"{device.block_device} (minor {device.minor} of {tracking.driver.name}): {device.words}"
    if device.has_failed:
        raise ChangesLost(
            f"{what}: nothing is tracked any more{_full(device.error)}; run 'lvmsync dattobd destroy"
            f" {device.block_device}', and then 'lvmsync dattobd cycle', which compares the whole device",
            device=device.block_device,
        )
    if not device.is_verified:
        raise DeviceError(
            f"{what}: its COW file has not been read; mount {device.block_device}, then run this again",
            device=device.block_device,
        )
    if not device.is_active:
        raise DeviceError(
            f"{what}: it is not mounted; mount {device.block_device}, then run this again", device=device.block_device
        )


def recorded_under(state: Path, path: str) -> list[Series]:
    """Return the records of a path, whatever device was there."""
    return [one for one in list_series(state) if is_device(path, one.block_device)]


def series_of(state: Path, device: str) -> list[Series]:
    """Return the records of a device.

    Raises:
        ConflictError: another one is recorded under its path, and neither closed nor tracked elsewhere.
    """
    with open_device(device) as opened:
        identity = identify(opened.fd)
    found = []
    for one in recorded_under(state, device):
        if not one.ended and all(other.device.uuid != one.uuid for other in list_tracked()):
            require_identity(one, identity)
        if one.is_of(identity):
            found.append(one)
    return found


def find_again(tracking: Tracking) -> Tracking:
    """Return what the driver says of a device now.

    Raises:
        ChangesLost: it gave up, or the device is gone.
    """
    for one in list_tracked((tracking.driver,)):
        if one.device.minor == tracking.device.minor and one.device.uuid == tracking.device.uuid:
            require_active(one)
            return one
    raise ChangesLost(
        f"{tracking.device.block_device} is not tracked any more: another program ended that; run 'lvmsync dattobd"
        " cycle', which begins anew and compares",
        device=tracking.device.block_device,
    )


def choose_driver(name: str | None) -> Driver:
    """Return the driver of this name, or the one that is loaded."""
    if name is not None:
        for driver in DRIVERS:
            if driver.name == name:
                return driver
        raise UsageError(f"--driver {name}: there are {' and '.join(one.name for one in DRIVERS)}")
    loaded = [driver for driver in DRIVERS if driver.is_loaded]
    if len(loaded) > 1:
        raise UsageError("dattobd and elastio-snap are both loaded; choose one with --driver")
    if not loaded:
        raise DeviceError("neither dattobd nor elastio-snap is loaded; run 'modprobe dattobd' (see docs/dattobd.md)")
    return loaded[0]


def require_mount(device: str) -> Mount:
    """Return where a device is mounted.

    Raises:
        DeviceError: it is not.
    """
    mount = find_mount(device)
    if mount is None:
        raise DeviceError(
            f"{device} is not mounted: the COW file lies on its own file system; mount it first", device=device
        )
    return mount


def new_cow(mount: Mount, cow: str | None, seqid: int, folder: str | None = None) -> str:
    """Return the path of a COW file that is not there yet, on the device's file system."""
    if cow is not None:
        path = Path(cow).absolute()
        if path.exists() or path.is_symlink():
            raise DeviceError(f"{path} is there already, and would be overwritten; choose another name", device=cow)
        around = os.path.realpath(path.parent)
        below = [one for one in reversed(list_mounts()) if _is_below(around, one.point)]  # the last one hides others
        holder = max(below, key=lambda one: len(one.point), default=None)
        if holder is None or holder.number != mount.number:
            raise DeviceError(
                f"{path} is not on the file system of the device, which is mounted at {mount.point}; choose a name"
                " there",
                device=cow,
            )
        relative = os.path.relpath(os.path.join(around, path.name), holder.point)
        return str(Path(mount.point) / relative) if holder.root == "/" else str(path)
    base = Path(folder or mount.point)
    names = [f"{COW_NAME}.{seqid}", *(f"{COW_NAME}.{seqid}.{more}" for more in range(1, 100))]
    for name in names:
        if not os.path.lexists(base / name):  # through a dangling link the driver would write elsewhere
            return str(base / name)
    raise DeviceError(f"{base} is full of old COW files ({names[0]}...); remove them", device=str(base))


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _full(error: int | None) -> str:
    return " (the COW file was full; give it more with --space)" if error == -27 else ""
