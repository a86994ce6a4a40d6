"""Files that hold a secret: read only if nobody else could read them, and made for nobody else's eyes."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from lvmsync.errors import DeviceError, UsageError
from lvmsync.system.ledger import sync_folder

LEAST_KEY, MOST_BYTES = 32, 1024
"""Bytes of a key file at the least, and of any secret at the most."""


def read_key_file(path: Path) -> bytes:
    """Return what a key file holds.

    Raises:
        DeviceError: it cannot be read, or others can read it as well.
        UsageError: it has too few bytes, or too many.
    """
    data = _read(path)
    if not LEAST_KEY <= len(data) <= MOST_BYTES:
        has = f"more than {MOST_BYTES}" if len(data) > MOST_BYTES else str(len(data))
        raise UsageError(f"{path} has {has} bytes: a key file has {LEAST_KEY} to {MOST_BYTES} random ones")
    return data


def read_passphrase_file(path: Path) -> bytes:
    """Return the passphrase that a file holds: its one line, without the end of that.

    Raises:
        DeviceError: it cannot be read, or others can read it as well.
        UsageError: it is empty, or has more than a line.
    """
    data = _read(path).removesuffix(b"\n").removesuffix(b"\r")
    if not data or len(data) > MOST_BYTES or b"\n" in data:
        raise UsageError(f"{path} has to hold a passphrase: one line of 1 to {MOST_BYTES} bytes")
    return data


def make_key_file(path: Path) -> bytes:
    """Make a key file that was not there, durably, and return what it holds.

    Raises:
        DeviceError: it is there, or cannot be made.
    """
    data = os.urandom(LEAST_KEY)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, data) < len(data):
                raise DeviceError(f"cannot write {path}: there is no room", device=str(path))
            os.fsync(fd)
            sync_folder(path.absolute().parent)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceError(f"cannot make {path}: {error.strerror}", device=str(path)) from error
    return data


def _read(path: Path) -> bytes:
    """Read a secret, and a byte more than it may have."""
    try:
        with path.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            # As ssh does: what others own may be for a group of theirs. A pipe (a shell's <(...)) has no such bits.
            others = stat.S_IRWXG | stat.S_IRWXO if found.st_uid == os.geteuid() else stat.S_IRWXO
            if stat.S_ISREG(found.st_mode) and found.st_mode & others:
                raise DeviceError(
                    f"{path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o}): a secret is for its owner"
                    f" only: chmod 600 {path}",
                    device=str(path),
                )
            data = b""
            while len(data) <= MOST_BYTES + 2 and (piece := file.read(MOST_BYTES + 3 - len(data))):
                data += piece
            return data
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error
