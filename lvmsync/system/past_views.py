"""Devices of the device mapper that show a past state of another device: made, found, removed, by their uuids.

A view has the uuid ``LVMSYNC-PAST-ID``; below it is its origin, ``LVMSYNC-PAST-ID-origin``, which holds the mirror.
Nothing of them outlives the boot.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from lvmsync.system import dm
from lvmsync.system.command import run_to_end
from lvmsync.system.dm import Mapped, Number

UUID = "LVMSYNC-PAST-"
"""What the uuids of all of them begin with."""

ORIGIN = "-origin"
"""What names and uuids of origins end in."""

BLOCKS = Path("/sys/block")

_TIMEOUT = 60.0


def uuid_of(mount: str, suffix: str = "") -> str:
    """Return the uuid of a mount's view, or of its origin."""
    return f"{UUID}{mount}{suffix}"


def create(name: str, uuid: str, lines: Sequence[str], *, read_only: bool) -> Mapped:
    """Make a device from the lines of a table.

    Raises:
        CommandError: the kernel, or dmsetup, refuses.
    """
    words = ["--readonly"] if read_only else []
    run_to_end(["dmsetup", "create", name, "--uuid", uuid, *words], timeout=_TIMEOUT, text="\n".join(lines) + "\n")
    found = find(uuid)
    assert found is not None
    return found


def remove(device: Mapped) -> None:
    """Remove a device that nobody has open.

    Raises:
        CommandError: it is in use, or gone.
    """
    run_to_end(["dmsetup", "remove", "--retry", device.name], timeout=_TIMEOUT)


def find(uuid: str) -> Mapped | None:
    """Return the device with this uuid."""
    return next((one for one in dm.list_devices() if one.uuid == uuid), None)


def list_views() -> list[Mapped]:
    """Return all views and origins of views that the kernel runs."""
    return [one for one in dm.list_devices() if one.uuid.startswith(UUID)]


def find_above(path: str) -> list[str]:
    """Return the views of past states that hold a device or file, by their paths; what cannot be told is left out."""
    try:
        state = Path(path).stat()
        if stat.S_ISBLK(state.st_mode):
            numbers = [(os.major(state.st_rdev), os.minor(state.st_rdev))]
        else:
            numbers = [number for number in _list_loops() if _is_of(number, state)]
    except OSError:
        return []
    found = []
    for major, minor in numbers:
        for holder in (dm.SYSFS_BLOCK / f"{major}:{minor}" / "holders").glob("*/dm"):
            try:
                uuid, name = (holder / "uuid").read_text().strip(), (holder / "name").read_text().strip()
            except OSError:  # removed just now
                continue
            if uuid.startswith(UUID):
                found.append(str(dm.NODES / name.removesuffix(ORIGIN)))
    return sorted(found)


def refusal(path: str) -> str | None:
    """Return why a device or file cannot be had, if past states are what holds it."""
    views = find_above(path)
    if not views:
        return None
    many = len(views) > 1
    return (
        f"it is the mirror below {'past states that are' if many else 'a past state that is'} mounted"
        f" ({', '.join(views)}); first run 'lvmsync archive umount {views[0]}'{' and so on' if many else ''}, or mount"
        " with --snapshot the next time"
    )


def _list_loops() -> list[Number]:
    found = []
    for folder in BLOCKS.glob("loop*/loop"):
        major, _, minor = (folder.parent / "dev").read_text().strip().partition(":")
        found.append((int(major), int(minor)))
    return found


def _is_of(number: Number, file: os.stat_result) -> bool:
    try:
        text = (dm.SYSFS_BLOCK / f"{number[0]}:{number[1]}" / "loop/backing_file").read_text().rstrip("\n")
        return os.path.samestat(Path(text).stat(), file)
    except OSError:
        return False
