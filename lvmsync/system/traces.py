"""The traces of one transaction, noted as it goes on, for a run that goes on with it after a crash.

A line each, with a checksum of its own: what a power cut makes of the end of the file is not believed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import xxhash

from lvmsync.errors import DeviceError
from lvmsync.stream.frames import Sample


class Trace(NamedTuple):
    """A place that was changed.

    Attributes:
        sample: what it holds since.
        differs: whether it held something else before, as far as that is known.
    """

    sample: Sample
    differs: bool


class TraceNote:
    """The file; a context manager is not needed: `close` it."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it; what is there stays.

        Raises:
            DeviceError: it cannot be made.
        """
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DeviceError(f"cannot make {path}: {error.strerror}", device=str(path)) from error

    def append(self, trace: Trace) -> None:
        """Note one more. With fewer notes less is checked: a full disk is no error."""
        with contextlib.suppress(OSError):
            os.write(self._fd, _line(trace))

    def sync(self) -> None:
        """Make all of them durable, if that is possible."""
        with contextlib.suppress(OSError):
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_traces(path: Path, offset: int) -> list[Trace]:
    """Return what was noted of places below byte ``offset`` of the device."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.decode("ascii", "replace").split()
        if len(words) == 5 and all(len(word) < 20 and word.isdecimal() for word in words[:2]):
            trace = Trace(Sample(int(words[0]), int(words[1]), words[2]), words[3] == "1")
            if _line(trace) == line and trace.sample.offset + trace.sample.length <= offset:
                found.append(trace)
    return found


def _line(trace: Trace) -> bytes:
    (offset, length, digest), differs = trace
    text = f"{offset} {length} {digest} {differs:d}"
    return f"{text} {xxhash.xxh3_64_hexdigest(text.encode())}\n".encode()
