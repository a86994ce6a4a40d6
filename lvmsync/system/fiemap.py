"""Where on its device a file lies, as its file system tells (FIEMAP).

Source: Linux v6.1, include/uapi/linux/fiemap.h and Documentation/filesystems/fiemap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from lvmsync.errors import DeviceError
from lvmsync.extents import ChangeMap, Extent

FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
FIEMAP_FLAG_SYNC = 0x1

FIEMAP_EXTENT_LAST = 0x1
FIEMAP_EXTENT_UNKNOWN = 0x2
FIEMAP_EXTENT_DELALLOC = 0x4
FIEMAP_EXTENT_ENCODED = 0x8
FIEMAP_EXTENT_DATA_ENCRYPTED = 0x80
FIEMAP_EXTENT_NOT_ALIGNED = 0x100
FIEMAP_EXTENT_DATA_INLINE = 0x200
FIEMAP_EXTENT_DATA_TAIL = 0x400
FIEMAP_EXTENT_UNWRITTEN = 0x800

DEVICE_KINDS = ("ext2", "ext3", "ext4", "xfs")
"""File systems on one device whose extents are bytes of that device; those of btrfs, for one, are not."""

Ioctl = Callable[[int, int, bytearray], int]
"""As fcntl.ioctl with a buffer that the kernel changes: descriptor, request number, buffer."""

_HEADER = struct.Struct("=2Q4I")  # start, length, flags, mapped_extents, extent_count, reserved
_EXTENT = struct.Struct("=3Q16xI12x")  # logical, physical, length, flags
_ROOM = 512  # extents asked for at a time
_NOWHERE = (  # what is in no place of its own that can be read as it is
    FIEMAP_EXTENT_UNKNOWN
    | FIEMAP_EXTENT_DELALLOC
    | FIEMAP_EXTENT_ENCODED
    | FIEMAP_EXTENT_DATA_ENCRYPTED
    | FIEMAP_EXTENT_NOT_ALIGNED
    | FIEMAP_EXTENT_DATA_INLINE
    | FIEMAP_EXTENT_DATA_TAIL
)
_NOT_TOLD = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EBADR)


def call_ioctl(fd: int, number: int, argument: bytearray) -> int:
    """Call ioctl(2); what the kernel writes is then in ``argument``."""
    return int(fcntl.ioctl(fd, number, argument, True))


def find_file_extents(path: str, ioctl: Ioctl = call_ioctl) -> ChangeMap | None:
    """Return which bytes of its file system's device a file takes, once all of it has been written there.

    Blocks that were only set aside for it are among them. What they mean, the kind of the file system says:
    see `DEVICE_KINDS`.

    Args:
        path: of the file.
        ioctl: instead of the kernel's.

    Returns:
        The bytes; None where the file system does not tell, or not of all of the file.

    Raises:
        DeviceError: the file cannot be opened, or the device fails.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}", device=path) from error
    try:
        return _read_extents(fd, ioctl)
    except OSError as error:
        if error.errno in _NOT_TOLD:
            return None
        raise DeviceError(f"cannot ask where {path} lies: {error.strerror}", device=path) from error
    finally:
        os.close(fd)


def _read_extents(fd: int, ioctl: Ioctl) -> ChangeMap | None:
    found: list[Extent] = []
    start = 0
    while True:
        buffer = bytearray(_HEADER.size + _ROOM * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, start, (1 << 64) - 1 - start, FIEMAP_FLAG_SYNC, 0, _ROOM, 0)
        ioctl(fd, FS_IOC_FIEMAP, buffer)
        count = _HEADER.unpack_from(buffer)[3]
        if count == 0:
            return ChangeMap.from_extents(found)
        for index in range(min(count, _ROOM)):
            logical, physical, length, flags = _EXTENT.unpack_from(buffer, _HEADER.size + index * _EXTENT.size)
            if flags & _NOWHERE:
                return None
            found.append(Extent(physical, length))
            if flags & FIEMAP_EXTENT_LAST:
                return ChangeMap.from_extents(found)
        if logical + length <= start:  # a file system that repeats itself would keep us here for ever
            return None
        start = logical + length
