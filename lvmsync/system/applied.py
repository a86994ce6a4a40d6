"""How far a target has been changed, noted after every window without a sync: good for as long as the machine runs.

What a killed program has written is in the kernel's hands, and stays; what a power cut takes away is not known. So the
note counts only within the life (see `system.seen.life`) that it was made in. One line: offset, bytes of the undo,
life, checksum.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import xxhash

from lvmsync.errors import DeviceError


class Place(NamedTuple):
    """Where a transaction stands."""

    offset: int
    """All changes below this byte of the device are on the target."""
    undo_size: int
    """Bytes of the undo that were durable before they were: what they have overwritten. 0 without an undo."""


class AppliedNote:
    """The note of one transaction, written over and over again; a context manager is not needed: `close` it."""

    def __init__(self, path: Path, life: str) -> None:
        """Open, or make, the note at ``path``; without a life nothing is ever noted."""
        self._life = life
        self._fd = -1
        if life:
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise DeviceError(f"cannot make {path}: {error.strerror}", device=str(path)) from error

    def write(self, place: Place) -> None:
        """Note where the transaction stands. Only for speed: a full disk is no error."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, _line(place, self._life), 0)

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_applied(path: Path, life: str) -> Place:
    """Return what was noted in this life of the target; the very beginning where there is nothing."""
    nothing = Place(0, 0)
    try:
        line = path.read_bytes().partition(b"\n")[0] + b"\n"  # behind it may be the end of an earlier life's
        place = Place(int(line[:20]), int(line[21:41]))
    except (OSError, ValueError):
        return nothing
    return place if life and min(place) >= 0 and line == _line(place, life) else nothing


def _line(place: Place, life: str) -> bytes:
    # In one life of one length, so that each write covers the one before.
    text = f"{place.offset:020d} {place.undo_size:020d} {life}"
    return f"{text} {xxhash.xxh3_64_hexdigest(text.encode())}\n".encode()
