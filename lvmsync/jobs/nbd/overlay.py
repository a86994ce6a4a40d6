"""Writes over something that is only read: they lie in a file without a name, and are gone with it."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lvmsync.errors import DeviceError
from lvmsync.nbd.blocks import BELOW, WRITTEN, ZEROED, Blocks, States, runs
from lvmsync.nbd.replies import Buffer
from lvmsync.system import ioctl

BLOCK = 4096
"""Bytes that are copied at the least when some of them are written."""


class NoRoom(DeviceError):
    """The file system of the overlay is full."""


class Overlay:
    """What was written, over what is below."""

    def __init__(self, folder: Path, size: int, below: Callable[[int, int], Sequence[Buffer]]) -> None:
        """Make an empty one.

        Args:
            folder: the file lies there, without a name.
            size: bytes of the device.
            below: reads what was not written.

        Raises:
            DeviceError: the file cannot be made.
        """
        self._size = size
        self._folder = folder
        self._below = below
        self._blocks = Blocks(-(-size // BLOCK))
        self._lock = threading.Lock()  # of those who write; who reads sees a block as it was, or as it is
        try:
            fd, name = tempfile.mkstemp(prefix=".overlay-", dir=folder)  # 0600
            Path(name).unlink()
        except OSError as error:
            raise self._failed(error) from error
        self._fd = fd

    def close(self) -> None:
        """Throw all of it away."""
        os.close(self._fd)

    def states(self, first: int, end: int) -> States:
        """Return the states of some blocks."""
        with self._lock:
            return self._blocks.get(first, end)

    def read(self, offset: int, length: int) -> list[Buffer]:
        """Return a range as buffers, one behind the other."""
        pieces: list[Buffer] = []
        end = offset + length
        first = offset // BLOCK
        if not length:
            return pieces
        for start, behind, state in runs(self.states(first, -(-end // BLOCK))):
            at, stop = max(offset, (first + start) * BLOCK), min(end, (first + behind) * BLOCK)
            if state == BELOW:
                pieces += self._below(at, stop - at)
            elif state == WRITTEN:
                pieces.append(self._read_own(at, stop - at))
            else:
                pieces.append(bytes(stop - at))
        return pieces

    def write(self, offset: int, payload: memoryview) -> None:
        """Write.

        Raises:
            NoRoom: the file system is full.
            DeviceError: it cannot be written.
        """
        end = offset + len(payload)
        first, last = offset // BLOCK, -(-end // BLOCK)
        with self._lock:
            self._complete(first, offset, end)
            if last - first > 1:
                self._complete(last - 1, offset, end)
            self._write_own(offset, payload)
            self._blocks.set(first, last, WRITTEN)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros.

        Raises:
            NoRoom: the file system is full.
            DeviceError: it cannot be written.
        """
        end = offset + length
        first = -(-offset // BLOCK)
        last = end // BLOCK if end < self._size else self._blocks.count
        if first >= last:
            return self.write(offset, memoryview(bytes(length))) if length else None
        if offset < first * BLOCK:
            self.write(offset, memoryview(bytes(first * BLOCK - offset)))
        if end > last * BLOCK:
            self.write(last * BLOCK, memoryview(bytes(end - last * BLOCK)))
        with self._lock:
            self._blocks.set(first, last, ZEROED)
            mode = ioctl.FALLOC_FL_PUNCH_HOLE | ioctl.FALLOC_FL_KEEP_SIZE
            with suppress(OSError):  # where that cannot be, they take room
                ioctl.fallocate(self._fd, mode, first * BLOCK, (last - first) * BLOCK)

    def _complete(self, block: int, offset: int, end: int) -> None:
        """Bring what is in a block into the file, if only some of it is about to be written."""
        start, stop = block * BLOCK, min((block + 1) * BLOCK, self._size)
        if offset <= start and stop <= end:
            return
        state = int(self._blocks.get(block, block + 1)[0])
        if state == BELOW:
            data: Buffer = b"".join(self._below(start, stop - start))
        elif state == ZEROED:
            data = bytes(stop - start)
        else:
            return
        self._write_own(start, memoryview(data))
        self._blocks.set(block, block + 1, WRITTEN)

    def _read_own(self, offset: int, length: int) -> memoryview:
        out = np.empty(length, np.uint8).data
        done = 0
        try:
            while done < length:
                count = os.preadv(self._fd, [out[done:]], offset + done)
                if not count:
                    raise OSError(errno.EIO, "it is shorter than what was written")
                done += count
        except OSError as error:
            raise self._failed(error) from error
        return out

    def _write_own(self, offset: int, data: memoryview) -> None:
        try:
            while len(data):
                count = os.pwrite(self._fd, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DeviceError:
        kind = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else DeviceError
        return kind(
            f"cannot keep what is written in {self._folder}: {error.strerror}; make room there, or name another folder"
            " with --store",
            device=str(self._folder),
        )
