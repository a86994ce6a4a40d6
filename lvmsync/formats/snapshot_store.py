"""A COW store of dm-snapshot, written: another state of an origin, laid out as if the kernel had kept it.

Source: Linux v6.1, drivers/md/dm-snap-persistent.c (disk version 1). Chunks are kept in the order of the origin, one
behind the other, so that the kernel remembers runs of them and not each (dm_consecutive_chunk_count, dm-exception-
store.h). read_exceptions() goes on from an area to the next until an entry's ``new`` is 0, so behind areas that are
full there is one more, which is empty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from lvmsync.extents import ChangeMap, Offsets
from lvmsync.formats.snapshot import (
    ENTRY_SIZE,
    MAX_CHUNK_SECTORS,
    NUM_SNAPSHOT_HDR_CHUNKS,
    SECTOR,
    SNAP_MAGIC,
    SNAPSHOT_DISK_VERSION,
)

LEAST_CHUNK = 4096
"""Bytes of a chunk at the least: no larger block is read or written by any device, and smaller ones cost entries."""

MOST_EXCEPTIONS = 8 << 20
"""Entries that a store should have at the most: 128 MiB are read when it is opened, and the kernel remembers them."""

_HEADER = struct.Struct("<4I")
_MOST_CHUNK = (MAX_CHUNK_SECTORS + 1 >> 1) * SECTOR
_NUMBER = np.dtype("<u8")


class Piece(NamedTuple):
    """Data of a store that lie in one place.

    Attributes:
        position: byte of the store where they go.
        offsets: which ranges of the state they are, one behind the other.
        lengths: bytes of each; that of the last chunk of a device may be a part of a chunk.
    """

    position: int
    offsets: list[int]
    lengths: list[int]


@dataclass(frozen=True, eq=False)
class NewStore:
    """What is in a store.

    Attributes:
        chunk_size: bytes of a chunk.
        size: bytes of the origin.
        runs: the chunks that it keeps: a map in chunks, not bytes.
    """

    chunk_size: int
    size: int
    runs: ChangeMap

    @classmethod
    def of(cls, changes: ChangeMap, size: int, chunk_size: int | None = None) -> Self:
        """Return the store that keeps all that a map has, in whole chunks.

        Args:
            changes: what is not as it is in the origin, in bytes.
            size: bytes of the origin.
            chunk_size: bytes, a power of two; None: the smallest with `MOST_EXCEPTIONS`.
        """
        if chunk_size is not None:
            return cls(chunk_size, size, _in_chunks(changes, chunk_size))
        chunk_size = LEAST_CHUNK
        runs = _in_chunks(changes, chunk_size)
        while runs.total_bytes > MOST_EXCEPTIONS and chunk_size < _MOST_CHUNK:
            chunk_size *= 2
            runs = _in_chunks(runs, 2)
        return cls(chunk_size, size, runs)

    @property
    def exceptions(self) -> int:
        """How many chunks it keeps."""
        return self.runs.total_bytes

    @property
    def stored(self) -> int:
        """Bytes of the store, when nothing is written to it later."""
        return self._bytes(self.exceptions)

    def stored_with(self, room: int) -> int:
        """Return its bytes when so many bytes may be written to it later, in chunks that it does not keep yet."""
        more = -(-room // self.chunk_size)
        return self._bytes(min(self.exceptions + more, -(-self.size // self.chunk_size)))

    def header(self) -> bytes:
        """Return the first chunk."""
        header = _HEADER.pack(SNAP_MAGIC, 1, SNAPSHOT_DISK_VERSION, self.chunk_size // SECTOR)
        return header.ljust(self.chunk_size, b"\0")

    def areas(self) -> Iterator[tuple[int, bytes]]:
        """Yield the areas of exceptions: where each goes, and its bytes; the last one ends the table."""
        total = self.exceptions
        for area in range(total // self._per_area + 1):
            first = area * self._per_area
            count = min(self._per_area, total - first)
            entries = np.zeros((self._per_area, 2), _NUMBER)
            entries[:count, 0] = self.chunks(first, count)
            entries[:count, 1] = np.arange(count, dtype=np.uint64) + np.uint64(self._place(first))
            yield (NUM_SNAPSHOT_HDR_CHUNKS + area * (self._per_area + 1)) * self.chunk_size, entries.tobytes()

    def pieces(self, most: int) -> Iterator[Piece]:
        """Yield all data, in the order of the store, in pieces of about so many bytes, and one chunk at the least."""
        step, total, first = max(most // self.chunk_size, 1), self.exceptions, 0
        while first < total:
            count = min(step, total - first, self._per_area - first % self._per_area)
            old = self.chunks(first, count)
            starts = np.flatnonzero(np.concatenate([[True], old[1:] - old[:-1] != 1]))
            offsets = old[starts] * np.uint64(self.chunk_size)
            lasts = old[np.concatenate([starts[1:] - 1, [count - 1]])]
            ends = np.minimum((lasts + np.uint64(1)) * np.uint64(self.chunk_size), np.uint64(self.size))
            yield Piece(self._place(first) * self.chunk_size, offsets.tolist(), (ends - offsets).tolist())
            first += count

    def chunks(self, first: int, count: int) -> Offsets:
        """Return the numbers of some of the chunks that it keeps, by their place among all of them."""
        wanted = np.arange(first, first + count, dtype=np.uint64)
        run = np.searchsorted(self._behind, wanted, "right")
        chunks: Offsets = self.runs.ends[run] - (self._behind[run] - wanted)
        return chunks

    @cached_property
    def _behind(self) -> Offsets:
        """How many chunks are kept in each run and those before it."""
        return np.cumsum(self.runs.ends - self.runs.offsets, dtype=np.uint64)

    @property
    def _per_area(self) -> int:
        return self.chunk_size // ENTRY_SIZE

    def _place(self, number: int) -> int:
        """Return the chunk of the store where its data of a number lie."""
        return NUM_SNAPSHOT_HDR_CHUNKS + 1 + number // self._per_area + number

    def _bytes(self, count: int) -> int:
        return (NUM_SNAPSHOT_HDR_CHUNKS + count // self._per_area + 1 + count) * self.chunk_size


def _in_chunks(changes: ChangeMap, unit: int) -> ChangeMap:
    """Return a map in units of several: those that have a part of it."""
    firsts = changes.offsets // np.uint64(unit)
    ends = (changes.ends + np.uint64(unit - 1)) // np.uint64(unit)
    return ChangeMap.from_arrays(firsts, ends - firsts)
