"""How much room a file system has."""

from __future__ import annotations

import os
from pathlib import Path

from lvmsync.errors import DeviceError


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder lies.

    Raises:
        DeviceError: there is no such folder, or nobody may look at it.
    """
    try:
        state = os.statvfs(folder)
    except OSError as error:
        raise DeviceError(f"cannot use {folder}: {error.strerror}", device=str(folder)) from error
    return state.f_bavail * state.f_frsize
