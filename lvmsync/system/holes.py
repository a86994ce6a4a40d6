"""Where a file has holes: ranges that take no space and read as zeros, as its file system tells."""

from __future__ import annotations

import errno
import os
from array import array

import numpy as np

from lvmsync.errors import DeviceError
from lvmsync.extents import ChangeMap
from lvmsync.system.device import Device


def find_holes(device: Device, size: int) -> ChangeMap:
    """Return the holes below ``size``; of a block device none, for nothing tells them.

    A file system that knows no holes calls everything data, which is no error.
    """
    if device.is_block:
        return ChangeMap.empty()
    size = min(size, device.size)
    starts, ends = array("Q"), array("Q")  # of what is data: a file may have millions of holes
    at = 0
    try:
        while at < size:
            start = os.lseek(device.fd, at, os.SEEK_DATA)
            at = os.lseek(device.fd, start, os.SEEK_HOLE)
            starts.append(start)
            ends.append(at)
    except OSError as error:
        if error.errno == errno.EINVAL:  # the file system cannot say
            return ChangeMap.empty()
        if error.errno != errno.ENXIO:  # no data behind this byte
            raise DeviceError(
                f"{device.name}: cannot find its holes at byte {at}: {error.strerror}", device=device.name, offset=at
            ) from error
    data = ChangeMap(np.array(starts, np.uint64), np.array(ends, np.uint64))
    return data.complement(size)
