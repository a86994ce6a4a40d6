"""Loop devices: a file as a block device, which the kernel lets go of by itself when nobody has it open any more.

Source: Linux v6.1, include/uapi/linux/loop.h. LOOP_CONFIGURE is there since Linux v5.8, 3448914e8cc5 ("loop: Add
LOOP_CONFIGURE ioctl"); it sets all at once, so that a program which is killed leaves no loop device behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvmsync.errors import DeviceError

CONTROL = Path("/dev/loop-control")

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4

_CONFIG = struct.Struct("=2I 5Q 4I 64s 64s 32s 2Q 64x")  # struct loop_config, with its struct loop_info64
_TRIES = 64


@contextmanager
def attached(path: str, *, read_only: bool) -> Iterator[tuple[int, int]]:
    """Make a loop device of a file, and yield its number.

    It stays until this ends, and for as long as something else has it open then: a mapped device, say.

    Args:
        path: of the file; a part of a sector at its end is not seen.
        read_only: nothing can write to it.

    Raises:
        DeviceError: there are no loop devices, or it cannot be made one of.
    """
    try:
        backing = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}", device=path) from error
    try:
        fd = _configure(path, backing, read_only=read_only)
    finally:
        os.close(backing)
    try:
        number = os.fstat(fd).st_rdev
        yield os.major(number), os.minor(number)
    finally:
        os.close(fd)


def _configure(path: str, backing: int, *, read_only: bool) -> int:
    """Return the open descriptor of a loop device that shows a file."""
    flags = LO_FLAGS_AUTOCLEAR | (LO_FLAGS_READ_ONLY if read_only else 0)
    name = os.fsencode(path)[:63]
    config = _CONFIG.pack(backing, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    try:
        for tries_left in reversed(range(_TRIES)):
            fd = os.open(f"/dev/loop{_find_free()}", (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, config)
                return fd
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY or not tries_left:  # busy: another program was quicker
                    raise
    except OSError as error:
        raise DeviceError(f"cannot make a loop device of {path}: {error.strerror}", device=path) from error
    raise AssertionError


def _find_free() -> int:
    fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(fd, LOOP_CTL_GET_FREE)
    finally:
        os.close(fd)
