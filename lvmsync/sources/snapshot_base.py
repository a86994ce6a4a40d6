"""What an origin was when its snapshot was taken, put together as the kernel does it: from the store and the origin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lvmsync.extents import Offsets
from lvmsync.sources.difference import split_at_blocks
from lvmsync.system.device import Device


class Kept:
    """A `Readable`: each chunk from the store where that keeps it, and from the origin elsewhere.

    Attributes:
        name: what messages call it.
        size: bytes of the origin.
    """

    def __init__(self, name: str, store: Device, origin: Device, chunk_size: int, old: Offsets, new: Offsets) -> None:
        """Take the exceptions: ``old`` chunks, sorted, and the ``new`` chunk of the store that keeps each."""
        self.name = name
        self.size = origin.size
        self._sides = origin, store
        self._chunk_size = chunk_size
        self._old = old
        self._new = new

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Fill ``out`` with the given ranges; see `Readable`."""
        table = np.array([offsets, lengths], np.uint64)
        starts, stops = split_at_blocks(table[0], table[0] + table[1], self._chunk_size)
        unit = np.uint64(self._chunk_size)
        chunks = starts // unit
        index = np.searchsorted(self._old, chunks)
        is_kept = np.zeros(len(chunks), bool)
        inside = index < len(self._old)
        is_kept[inside] = self._old[index[inside]] == chunks[inside]
        places = starts.copy()
        places[is_kept] = self._new[index[is_kept]] * unit + starts[is_kept] % unit
        sizes = stops - starts
        # Pieces that lie one behind the other on one side are one read.
        first = np.ones(len(places), bool)
        first[1:] = (is_kept[1:] != is_kept[:-1]) | (places[1:] != places[:-1] + sizes[:-1])
        at = (np.cumsum(sizes) - sizes)[first].astype(np.int64).tolist()
        for place, kept, start, stop in zip(
            places[first].tolist(), is_kept[first].tolist(), at, [*at[1:], len(out)], strict=True
        ):
            self._sides[kept].read([place], [stop - start], out[start:stop])
