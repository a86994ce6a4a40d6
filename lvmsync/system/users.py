"""Who uses a device, or a file system on it: the processes that we may see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def find_users(number: tuple[int, int]) -> list[str]:
    """Return the processes that have a block device open, or a file or folder of the file system on it.

    Args:
        number: of the device; a file system with numbers of its own (btrfs) tells nothing.

    Returns:
        Of each ``process PID (NAME)``, without our own.
    """
    found = []
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda one: int(one.name)):
        if folder.name != str(os.getpid()) and any(number in pair for pair in _numbers_of(folder)):
            try:
                name = (folder / "comm").read_text().strip()
            except OSError:
                continue
            found.append(f"process {folder.name} ({name})")
    return found


def _numbers_of(folder: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield what all that a process holds lies on, and is."""
    try:
        links = [folder / "cwd", folder / "root", folder / "exe", *(folder / "fd").glob("*")]
    except OSError:
        return
    for link in links:
        try:
            state = link.stat()
        except OSError:
            continue
        device, itself = state.st_dev, state.st_rdev
        yield (os.major(device), os.minor(device)), (os.major(itself), os.minor(itself))
