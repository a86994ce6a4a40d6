"""The digest of a whole state of a device: XXH3-128 over the digests of its MiBs, so that holes cost nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from lvmsync.extents import ChangeMap
from lvmsync.interfaces import Readable
from lvmsync.stream.frames import Buffer
from lvmsync.system.device import aligned_buffer

PIECE = 1 << 20
"""Bytes of the device that are digested by themselves; the last piece may be shorter."""

_EMPTY = xxhash.xxh3_128_digest(bytes(PIECE))
_RUN = 1 << 16  # empty pieces that are taken at a time


def digest_state(device: Readable, size: int, holes: ChangeMap, tell: Callable[[int], None] = lambda _: None) -> str:
    """Return the digest of the first ``size`` bytes of a device.

    Args:
        device: where it is read.
        size: bytes.
        holes: bytes that are known to be zeros; whole pieces of them are not read.
        tell: takes how many bytes are done.
    """
    whole = xxhash.xxh3_128()
    buffer = aligned_buffer(PIECE)
    at = 0
    for start, end in _empty_pieces(holes.clip(size), size):
        at = _add(whole, device, at, start, buffer, tell)
        for done in range(start, end, _RUN * PIECE):
            whole.update(_EMPTY * ((min(end, done + _RUN * PIECE) - done) // PIECE))
        at = end
    _add(whole, device, at, size, buffer, tell)
    return whole.hexdigest()


def _add(
    whole: xxhash.xxh3_128, device: Readable, at: int, end: int, buffer: memoryview, tell: Callable[[int], None]
) -> int:
    while at < end:
        piece = buffer[: min(PIECE, end - at)]
        device.read([at], [len(piece)], piece)
        whole.update(xxhash.xxh3_128_digest(piece))
        at += len(piece)
        tell(at)
    return end


def _empty_pieces(holes: ChangeMap, size: int) -> list[tuple[int, int]]:
    """Return ranges of whole pieces that lie in holes."""
    piece = np.uint64(PIECE)
    starts = (holes.offsets + piece - np.uint64(1)) // piece * piece
    ends = holes.ends // piece * piece
    keep = starts < ends
    return list(zip(starts[keep].tolist(), ends[keep].tolist(), strict=True))


class Digested:
    """A `Readable` around another one: the digest of its state is made of what is read of it, in whatever order.

    Each byte that is no hole is to be read once. Any thread may read.

    Attributes:
        name: what messages call it.
        size: bytes.
    """

    def __init__(self, device: Readable, holes: ChangeMap) -> None:
        """Begin.

        Args:
            device: what is read.
            holes: bytes of it that are known to be zeros, and that nobody reads.
        """
        self.name = device.name
        self.size = device.size
        self._device = device
        self._holes = holes.clip(device.size)
        self._before = np.concatenate([[0], np.cumsum(self._holes.ends - self._holes.offsets)]).astype(np.int64)
        count = -(-self.size // PIECE)
        self._digests = bytearray(_EMPTY * count)
        if self.size % PIECE:
            self._digests[-len(_EMPTY) :] = xxhash.xxh3_128_digest(bytes(self.size % PIECE))
        self._missing = self.size - int(self._before[-1])
        self._parts: dict[int, tuple[bytearray, int]] = {}  # of pieces, and how much of each is still to come
        self._lock = threading.Lock()

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Fill ``out`` with the given ranges, one behind the other; see `Readable`."""
        self._device.read(offsets, lengths, out)
        at = 0
        for offset, length in zip(offsets, lengths, strict=True):
            done = 0
            while done < length:
                number, within = divmod(offset + done, PIECE)
                step = min(length - done, PIECE - within)
                self._take(number, within, out[at + done : at + done + step])
                done += step
            at += length

    def finish(self) -> str | None:
        """Return the digest, as of `digest_state`; None: not all was read."""
        return None if self._missing else xxhash.xxh3_128_hexdigest(self._digests)

    def _take(self, number: int, within: int, data: memoryview) -> None:
        size = min(PIECE, self.size - number * PIECE)
        if len(data) == size:
            self._note(number, data, len(data))
            return
        with self._lock:
            if number not in self._parts:
                self._parts[number] = bytearray(size), size - self._count_holes(number, size)
            part, left = self._parts.pop(number)
            part[within : within + len(data)] = data
            left -= len(data)
            if left:
                self._parts[number] = part, left
        if not left:
            self._note(number, part, size - self._count_holes(number, size))

    def _note(self, number: int, piece: Buffer, count: int) -> None:
        digest = xxhash.xxh3_128_digest(piece)
        with self._lock:
            self._digests[number * len(digest) : (number + 1) * len(digest)] = digest
            self._missing -= count

    def _count_holes(self, number: int, size: int) -> int:
        """Return how many bytes of a piece are in holes."""
        start, end = np.uint64(number * PIECE), np.uint64(number * PIECE + size)
        first, last = (
            np.searchsorted(self._holes.ends, start, "right"),
            np.searchsorted(self._holes.offsets, end, "left"),
        )
        if first >= last:
            return 0
        cut = max(0, int(start) - int(self._holes.offsets[first])) + max(0, int(self._holes.ends[last - 1]) - int(end))
        return int(self._before[last] - self._before[first]) - cut
