"""The ioctl and fallocate requests of Linux that Python has no function for.

Source: Linux v6.1, include/uapi/linux/fs.h and include/uapi/linux/falloc.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

BLKROGET = 0x125E  # _IO(0x12, 94)
BLKFLSBUF = 0x1261  # _IO(0x12, 97)
BLKSSZGET = 0x1268  # _IO(0x12, 104)
BLKGETSIZE64 = 0x80081272  # _IOR(0x12, 114, size_t)
BLKDISCARD = 0x1277  # _IO(0x12, 119)
BLKZEROOUT = 0x127F  # _IO(0x12, 127)

FS_IOC_GETFLAGS = 0x80086601  # _IOR('f', 1, long); what it reads and writes is an int
FS_IOC_SETFLAGS = 0x40086602  # _IOW('f', 2, long)
FS_IMMUTABLE_FL = 0x10
FS_IOC_FSGETXATTR = 0x801C581F  # _IOR('X', 31, struct fsxattr), of which the first word is the flags
FS_XFLAG_REALTIME = 0x1

FS_IOC_GETVERSION = 0x80087601  # _IOR('v', 1, long)

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_INT = struct.Struct("i")
_U64 = struct.Struct("Q")
_RANGE = struct.Struct("QQ")


def get_size(fd: int) -> int:
    """Return the size of a block device in bytes."""
    return int(_U64.unpack(fcntl.ioctl(fd, BLKGETSIZE64, bytes(_U64.size)))[0])


def get_logical_block_size(fd: int) -> int:
    """Return the smallest unit that a block device reads and writes, in bytes."""
    return int(_INT.unpack(fcntl.ioctl(fd, BLKSSZGET, bytes(_INT.size)))[0])


def is_read_only(fd: int) -> bool:
    """Tell whether a block device is set read-only."""
    return bool(_INT.unpack(fcntl.ioctl(fd, BLKROGET, bytes(_INT.size)))[0])


def get_inode_generation(fd: int) -> int | None:
    """Return which of the files it is that have had one inode number; None: the file system does not count them."""
    try:
        # The kernel fills in an int, whatever the number says (Linux v6.1, ext4_ioctl).
        return int(_INT.unpack(fcntl.ioctl(fd, FS_IOC_GETVERSION, bytes(8))[: _INT.size])[0])
    except OSError:
        return None


def flush_buffers(fd: int) -> None:
    """Write back and drop the page cache of one block device."""
    fcntl.ioctl(fd, BLKFLSBUF, 0)


def zero_out(fd: int, offset: int, length: int) -> None:
    """Write zeros to a range of a block device; both numbers are multiples of its logical block."""
    fcntl.ioctl(fd, BLKZEROOUT, _RANGE.pack(offset, length))


def discard(fd: int, offset: int, length: int) -> None:
    """Unmap a range of a block device; what it then reads as is the device's own affair."""
    fcntl.ioctl(fd, BLKDISCARD, _RANGE.pack(offset, length))


def set_immutable(fd: int, *, is_immutable: bool) -> None:
    """Let a file be neither changed nor removed, by nobody, or let it be so again."""
    flags = _INT.unpack(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_INT.size)))[0]
    flags = flags | FS_IMMUTABLE_FL if is_immutable else flags & ~FS_IMMUTABLE_FL
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, _INT.pack(flags))


def is_realtime(fd: int) -> bool:
    """Tell whether a file lies on the second device of its XFS, so that its extents are not of the first."""
    return bool(_INT.unpack_from(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))[0] & FS_XFLAG_REALTIME)


def fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Call fallocate(2); return False where the file system or device cannot do ``mode``."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))
