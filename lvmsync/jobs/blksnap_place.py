"""Where a device stands among the others: whether blksnap sees what is written to it, and what must not lie on it.

blksnap tracks one device node, exactly. What is written through a partition of it, or (v1 and v7) by a device
mapper above it, is neither in the map nor in the snapshot.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from lvmsync.errors import DeviceError, UsageError
from lvmsync.formats.blksnap_abi import Abi
from lvmsync.sources import blksnap
from lvmsync.system.blksnap import DeviceName
from lvmsync.system.device import open_device
from lvmsync.system.identity import is_same_storage
from lvmsync.system.mounts import device_of_file, list_mounts

Number = tuple[int, int]


def require_visible(device: DeviceName, abi: Abi, *, force: bool) -> list[str]:
    """Raise DeviceError if a device is used in a way that blksnap does not see; return what the user should know.

    Args:
        device: to be tracked.
        abi: of the module.
        force: only tell.
    """
    folder = _folder(device.number)
    problems = []
    for name, number in _partitions(folder).items():
        if is_mounted(number) or _names(_folder(number) / "holders") or _is_claimed(name, number):
            problems.append(
                f"its partition {name} is in use, and what is written through that is not seen: track /dev/{name}"
            )
    holders = _names(folder / "holders")
    if holders and abi is not Abi.UP:
        problems.append(
            f"{', '.join(holders)} {'lies' if len(holders) == 1 else 'lie'} on it, and this module does not see what is"
            " written from there: track that"
        )
    if problems and not force:
        raise DeviceError(
            f"{device.path}: {'; '.join(problems)}, or give --force if nothing writes that way", device=device.path
        )
    parts = ", ".join(_partitions(folder))
    notes = [f"{device.path} has partitions ({parts}): what is written through them is not seen."] if parts else []
    return [*notes, *(f"{device.path}: {problem}." for problem in problems)]


def describe(device: DeviceName) -> list[str]:
    """Return what the user should know of a device when its tracking begins."""
    if (_folder(device.number) / "partition").exists():
        return [f"{device.path} is a partition: what is written through the whole disk is not seen."]
    return []


def require_apart(place: Number | None, devices: Iterable[DeviceName], word: str) -> None:
    """Raise DeviceError if the difference storage lies on a device that is to be held, or the other way round."""
    below = _all_below(place) if place else set()
    for device in devices:
        if device.number in below or place in _all_below(device.number):
            raise DeviceError(
                f"the difference storage {word} lies on {device.path}, which is to be held: old data would be saved by"
                " writes that must be saved again; name a place on another disk",
                device=word,
            )


def require_targets(devices: Sequence[DeviceName], targets: Sequence[str]) -> None:
    """Raise UsageError if a target is a device that is to be held, or overlaps one, or if two targets are the same.

    Args:
        devices: to be held.
        targets: paths on this machine.
    """
    for at, target in enumerate(targets):
        for device in devices:
            if _is_overlapping(device.path, target):
                raise UsageError(
                    f"{device.path} and the target {target} are the same, or one is a part of the other: the copy would"
                    " be itself; name another target",
                    device=target,
                )
        for other in targets[:at]:
            if _is_overlapping(other, target):
                raise UsageError(
                    f"the targets {other} and {target} are the same, or one is a part of the other: name a target of"
                    " its own for each device",
                    device=target,
                )


def require_no_target(spare: DeviceName, targets: Sequence[str]) -> None:
    """Raise UsageError if a spare device is a target on this machine, or overlaps one."""
    for target in targets:
        if _is_overlapping(spare.path, target):
            raise UsageError(
                f"the difference storage {spare.path} and the target {target} are the same, or one is a part of the"
                " other: each would overwrite the other; name another place",
                device=spare.path,
            )


def _is_overlapping(one: str, other: str) -> bool:
    """Tell whether two paths lead to the same bytes, or to devices one of which lies on the other."""
    if is_same_storage(one, other):
        return True
    numbers = [_number_of(one), _number_of(other)]
    if None in numbers:
        return False  # a file, or yet to be made
    first, second = (number for number in numbers if number)
    return first in _all_below(second) or second in _all_below(first)


def _number_of(path: str) -> Number | None:
    try:
        state = Path(path).stat()
    except OSError:
        return None
    return (os.major(state.st_rdev), os.minor(state.st_rdev)) if stat.S_ISBLK(state.st_mode) else None


def is_mounted(number: Number) -> bool:
    """Tell whether a file system of a device is mounted."""
    return any(one.number == number for one in list_mounts(blksnap.ROOT / "proc/self/mountinfo"))


def _is_claimed(name: str, number: Number) -> bool:
    """Tell whether a partition is somebody's: of btrfs, as swap space, mounted in another namespace.

    Its node may be missing; then the mounts that tell its name are all that is known.
    """
    node = blksnap.ROOT / "dev" / name.replace("!", "/")
    if any(one.source == f"/dev/{name}" for one in list_mounts(blksnap.ROOT / "proc/self/mountinfo")):
        return True
    if _number_of(str(node)) != number:
        return False
    try:
        open_device(str(node), exclusive=True).close()
    except DeviceError as error:
        return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY
    return False


def is_in_use(number: Number) -> bool:
    """Tell whether a device is mounted, or other devices lie on it, or on a part of it."""
    folder = _folder(number)
    parts = _partitions(folder).values()
    return is_mounted(number) or bool(_names(folder / "holders")) or any(is_in_use(part) for part in parts)


def find_file_device(path: str) -> Number | None:
    """Return the block device that the file system of a file or folder is on; None: it is in memory.

    Raises:
        DeviceError: it is not there, or on no device that is known.
    """
    number = device_of_file(path)
    if number[0]:
        return number
    for mount in list_mounts():  # btrfs and others have numbers of their own
        if mount.number == number:
            if mount.kind in ("tmpfs", "ramfs"):
                return None
            with suppress(OSError):
                state = Path(mount.source).stat()
                if stat.S_ISBLK(state.st_mode):
                    return os.major(state.st_rdev), os.minor(state.st_rdev)
    raise DeviceError(f"{path} lies on no block device that is known; name a place on a local disk", device=path)


def _folder(number: Number) -> Path:
    return blksnap.ROOT / f"sys/dev/block/{number[0]}:{number[1]}"


def _partitions(folder: Path) -> dict[str, Number]:
    found = {}
    for name in _names(folder):
        if (folder / name / "partition").exists():
            number = _number(folder / name)
            if number:
                found[name] = number
    return found


def _all_below(number: Number) -> set[Number]:
    """Return a device, and all that its bytes lie on: the disk of a partition, what a mapped device is made of."""
    found: set[Number] = set()
    todo = [number]
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.add(one)
        folder = _folder(one)
        if (folder / "partition").exists():
            parent = _number(folder.resolve().parent)
            todo += [parent] if parent else []
        below = (_number(folder / "slaves" / name) for name in _names(folder / "slaves"))
        todo += [number for number in below if number]
        with suppress(OSError, DeviceError):
            backing = find_file_device((folder / "loop/backing_file").read_text().strip())
            todo += [backing] if backing else []
    return found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _number(folder: Path) -> Number | None:
    try:
        major, minor = (folder / "dev").read_text().split(":")
        return int(major), int(minor)
    except (OSError, ValueError):
        return None
