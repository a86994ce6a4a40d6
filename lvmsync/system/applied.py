"""How far a target has been changed, noted after every window without a sync: good for as long as the machine runs.

What a killed program has written is in the kernel's hands, and stays; what a power cut takes away is not known. So the
note counts only within the life (see `system.seen.life`) that it was made in. One line: offset, life, checksum.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import xxhash

from lvmsync.errors import DeviceError


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

    def write(self, offset: int) -> None:
        """Note that all changes below ``offset`` have been written. Only for speed: a full disk is no error."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, _line(offset, self._life), 0)

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_applied(path: Path, life: str) -> int:
    """Return the offset that was noted in this life of the target; 0 where there is none."""
    try:
        line = path.read_bytes()
        offset = int(line[:20])
    except (OSError, ValueError):
        return 0
    return offset if life and offset >= 0 and line == _line(offset, life) else 0


def _line(offset: int, life: str) -> bytes:
    text = f"{offset:020d} {life}"  # of one length, so that each write covers the one before
    return f"{text} {xxhash.xxh3_64_hexdigest(text.encode())}\n".encode()
