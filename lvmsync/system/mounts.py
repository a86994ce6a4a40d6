"""What is mounted where: which file systems lie on a device, and which device a file lies on.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import DeviceError

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    """One mount of this machine.

    Attributes:
        number: ``(major, minor)`` of the file system's device; of btrfs and others one that is no block device.
        root: which folder of the file system is seen there; ``/`` for all of it.
        point: where it is mounted.
        kind: of the file system: ext4, xfs, ...
        source: what was mounted, as mount(8) was told.
    """

    number: tuple[int, int]
    root: str
    point: str
    kind: str
    source: str


def list_mounts(path: Path = MOUNTINFO) -> list[Mount]:
    """Return all mounts, in the order that they were made in.

    Raises:
        DeviceError: the kernel's list cannot be read.
    """
    try:
        lines = path.read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error
    found = []
    for line in lines:
        left, dash, right = line.partition(" - ")
        fields, facts = left.split(" "), right.split(" ")
        if not dash or len(fields) < 6 or len(facts) < 2 or not re.fullmatch(r"\d+:\d+", fields[2]):
            raise DeviceError(f"{path}: a line that is not understood: {line[:200]!r}", device=str(path))
        major, minor = map(int, fields[2].split(":"))
        found.append(Mount((major, minor), *map(_unescape, (fields[3], fields[4], *facts[:2]))))
    return found


def find_mounts(number: tuple[int, int], path: Path = MOUNTINFO) -> list[Mount]:
    """Return where a device is mounted whole, the oldest mount first."""
    return [one for one in list_mounts(path) if one.number == number and one.root == "/"]


def find_mounts_above(
    number: tuple[int, int],
    path: Path = MOUNTINFO,
    blocks: Path = Path("/sys/dev/block"),
    *,
    with_own: bool = True,
) -> list[Mount]:
    """Return the mounts of the file systems on a device, and on devices that lie on it (encryption, partitions, LVM).

    Args:
        number: of the device.
        path: the kernel's list.
        blocks: where the kernel tells what lies on what.
        with_own: whether a file system on the device itself counts; else only those on devices that lie on it.

    Raises:
        DeviceError: the kernel's list cannot be read.
    """
    above, todo = set(), [number]
    while todo:
        one = todo.pop()
        if one in above:
            continue
        above.add(one)
        for place in (blocks / f"{one[0]}:{one[1]}").glob("holders/*/dev"):
            major, _, minor = place.read_text().strip().partition(":")
            todo.append((int(major), int(minor)))
    if not with_own:
        above.discard(number)
    return [mount for mount in list_mounts(path) if mount.number in above or _number_of(mount.source) in above]


def _number_of(source: str) -> tuple[int, int] | None:
    """Return the number of a block device that was mounted: btrfs tells one of its own instead."""
    try:
        state = Path(source).stat() if source.startswith("/") else None
    except OSError:
        return None
    return (os.major(state.st_rdev), os.minor(state.st_rdev)) if state and stat.S_ISBLK(state.st_mode) else None


def device_of_file(path: str) -> tuple[int, int]:
    """Return the device number that the file system of a file says; of btrfs and others it is no block device.

    Raises:
        DeviceError: the file is not there.
    """
    try:
        number = Path(path).stat().st_dev
    except OSError as error:
        raise DeviceError(f"cannot look at {path}: {error.strerror}", device=path) from error
    return os.major(number), os.minor(number)


def _unescape(text: str) -> str:
    """Undo what the kernel does to spaces, tabs, line ends and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
