"""What the commands share: words into values, and the files that the user names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from lvmsync.errors import DeviceError, UsageError
from lvmsync.names import Volume, parse_target

if TYPE_CHECKING:
    from lvmsync.jobs.send import StreamOptions
    from lvmsync.stream.frames import Buffer


def local_target(word: str) -> str:
    """Return the path of a target of this machine.

    Raises:
        UsageError: it is on another machine, or not a target.
    """
    place = parse_target(word)
    if place.host:
        raise UsageError(f"'{word}' is on another machine: run this there, or use 'lvmsync sync SOURCE {word}'")
    return Volume(place.name).path


def stream_options(stream_format: int, compress: str | None) -> StreamOptions:
    """Read ``--format`` and ``--compress``.

    Raises:
        UsageError: a value out of range, or two that do not go together.
    """
    from lvmsync.jobs.send import StreamOptions

    if stream_format not in (3, 4):
        raise UsageError(f"--format {stream_format}: the formats are 3 (the original's) and 4")
    name, _, level = (compress or "none").partition(":")
    if name == "none" and not level:
        return StreamOptions(stream_format, 0)
    if name != "zstd" or (level and not (level.isdecimal() and 1 <= int(level) <= 19)):
        raise UsageError(f"--compress {compress}: write none, zstd, or zstd:LEVEL with a level of 1 to 19")
    if stream_format == 3:
        raise UsageError("--compress needs --format 4: PROTO[3] has no compression")
    return StreamOptions(stream_format, int(level or 1))


def open_input(path: Path) -> FileIO:
    """Open a stream file for reading.

    Raises:
        DeviceError: it cannot be opened, or is a directory.
    """
    try:
        if path.is_dir():
            from lvmsync.system.device import require_storage

            require_storage(str(path), path.stat())
        return path.open("rb", buffering=0)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}", device=str(path)) from error


def require_new(path: Path) -> None:
    """Raise DeviceError if there is a file of this name already."""
    if path.exists() or path.is_symlink():
        raise DeviceError(f"{path} is there already and is never overwritten; choose another name", device=str(path))


class NewFile:
    """A stream file that is being written; removed again unless it is kept."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._file = file
        self.kept = False

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Append every byte of ``buffers``."""
        try:
            for buffer in buffers:
                view = memoryview(buffer)
                while view:
                    view = view[self._file.write(view) :]
        except OSError as error:
            raise DeviceError(f"cannot write {self._path}: {error.strerror}", device=str(self._path)) from error

    def keep(self) -> None:
        """Make the file durable, and let it stay."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DeviceError(f"cannot write {self._path}: {error.strerror}", device=str(self._path)) from error
        self.kept = True


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """Make a file that must not be there yet, only for its owner's eyes, and yield it.

    Raises:
        DeviceError: it is there already, or cannot be made.
    """
    try:
        file: FileIO = os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0
        )
    except FileExistsError:
        require_new(path)
        raise
    except OSError as error:
        raise DeviceError(f"cannot make {path}: {error.strerror}", device=str(path)) from error
    made = NewFile(path, file)
    try:
        with file:
            yield made
    finally:
        if not made.kept:
            path.unlink(missing_ok=True)


def write_new(path: Path, text: str) -> None:
    """Write ``text`` to a file that must not be there yet."""
    with new_file(path) as file:
        file.send_all([text.encode(errors="replace")])
        file.keep()


def print_text(text: str) -> None:
    """Write text to standard output.

    Raises:
        DeviceError: it is closed, or full.
    """
    if sys.stdout is None:  # closed by whoever started us
        raise DeviceError("cannot write to stdout: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit does not fail again
        raise DeviceError(f"cannot write to stdout: {error.strerror}") from error
