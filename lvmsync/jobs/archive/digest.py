"""The digest of a whole state of a device: XXH3-128 over the digests of its MiBs, so that holes cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xxhash

from lvmsync.extents import ChangeMap
from lvmsync.interfaces import Readable
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
