"""Which device is this really: names change with a reboot, identities do not."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from lvmsync.errors import DeviceError
from lvmsync.system import ioctl


def canonical_name(path: str, fd: int) -> str:
    """Return the name that a target keeps over reboots: of a mapped device its mapper path, else the real path."""
    mapped = _device_fact(fd, "dm/name")
    return f"/dev/mapper/{mapped}" if mapped else str(Path(path).resolve())


def identify(fd: int) -> dict[str, str]:
    """Return what makes the open device or file this one and no other.

    Of a mapped device its DM uuid (which holds LVM's ids), of a loop device its backing file, of another
    device its serial number or world-wide id; of a file its inode (the number of its file system may
    change with a reboot), and which file it is that has had this inode, where the file system counts them.
    """
    state = os.fstat(fd)
    if not state.st_rdev:
        generation = ioctl.get_inode_generation(fd)
        found = {"inode": str(state.st_ino)}
        return found if generation is None else {**found, "inode generation": str(generation)}
    for key, fact in (
        ("dm uuid", "dm/uuid"),
        ("backing file", "loop/backing_file"),
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("serial", "device/serial"),
        ("dm name", "dm/name"),
    ):
        value = _device_fact(fd, fact)
        if value:
            partition = _device_fact(fd, "partition")
            return {key: value, "partition": partition} if partition else {key: value}
    return {"device number": f"{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}"}


def is_weak(identity: Mapping[str, str]) -> bool:
    """Tell whether another device may come to have the same identity: numbers and names are given anew at boot."""
    return not identity.keys() - {"device number", "dm name", "partition"}


def find_dm_uuid(path: str) -> str:
    """Return what device mapper's maker calls the device at a path; empty of another device, or where none is."""
    try:
        state = Path(path).stat()
        folder = Path(f"/sys/dev/block/{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}")
        return (folder / "dm/uuid").read_text().strip() if stat.S_ISBLK(state.st_mode) else ""
    except OSError:
        return ""


def is_read_only(path: str) -> bool:
    """Tell whether the kernel lets nobody write to the block device at a path; no of what is none."""
    try:
        state = Path(path).stat()
        ro = Path(f"/sys/dev/block/{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}/ro")
        return stat.S_ISBLK(state.st_mode) and ro.read_text().strip() == "1"
    except OSError:
        return False


def boot_id(root: Path = Path("/")) -> str:
    """Return what names this boot of the machine.

    Args:
        root: where proc is.

    Raises:
        DeviceError: the kernel does not say.
    """
    path = root / "proc/sys/kernel/random/boot_id"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error


def is_same_device(path: str, other: str) -> bool:
    """Tell whether two paths lead to one device, by its number, or to one file; no if one of them is not there."""
    try:
        one, two = Path(path).stat(), Path(other).stat()
    except OSError:
        return False
    if one.st_rdev or two.st_rdev:
        return one.st_rdev == two.st_rdev
    return os.path.samestat(one, two)


def is_same_storage(path: str, other: str) -> bool:
    """Tell whether a write to one path changes what the other holds: one device or file, or a loop device's file.

    Two loop devices on one file count as the same, wherever in it they are. No if one path is not there.
    """
    try:
        return _storage_of(path) == _storage_of(other)
    except OSError:
        return False


def _storage_of(path: str) -> tuple[int, int]:
    """Return what is the same for all paths to the same bytes: of a loop device, that of its file."""
    state = Path(path).stat()
    if not stat.S_ISBLK(state.st_mode):
        return state.st_dev, state.st_ino
    folder = Path(f"/sys/dev/block/{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}")
    try:
        return _storage_of((folder / "loop/backing_file").read_text().rstrip("\n"))
    except OSError:  # no loop device, or its file is gone
        return 0, state.st_rdev


def _device_fact(fd: int, fact: str) -> str:
    """Return a line of sysfs about the open block device; empty where there is none."""
    number = os.fstat(fd).st_rdev
    if not number:
        return ""
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for place in (folder / fact, folder.resolve().parent / fact):  # the parent: a partition's disk
        try:
            return place.read_text().strip()
        except OSError:
            continue
    return ""
