"""Which bytes of a device: extents, and set algebra on whole change maps.

A change map of 10 million extents is two arrays of 80 MB; an object per extent would be over 1 GB.
So `ChangeMap` is two numpy arrays, every operation works on whole arrays, and `Extent` is for
people, tests and the few places where there is only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import xxhash

Offsets = npt.NDArray[np.uint64]
"""A one-dimensional array of byte positions or byte counts."""

MAX_SIZE = 1 << 63
"""No device is larger than this many bytes (loff_t of Linux is signed)."""

_BUILDER_ROWS = 1 << 18  # extents that a builder makes room for at a time: 4 MiB
_BLOCK = 1 << 16  # extents handled at a time where a whole-map temporary would cost memory


class Extent(NamedTuple):
    """A half-open byte range ``[offset, offset + length)``."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind the range."""
        return self.offset + self.length


class ChangeMap:
    """A set of bytes of one device, as sorted, disjoint, merged extents.

    Attributes:
        offsets: where each extent starts, ascending.
        ends: where each extent ends (first byte behind it); ``ends[i] < offsets[i + 1]``.
    """

    __slots__ = ("ends", "offsets")

    def __init__(self, offsets: Offsets, ends: Offsets) -> None:
        """Take arrays that already are sorted, disjoint and merged; use the ``from_`` methods for others."""
        self.offsets = offsets
        self.ends = ends

    @classmethod
    def empty(cls) -> Self:
        """Return the map of nothing."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))

    @classmethod
    def whole(cls, size: int) -> Self:
        """Return the map of all bytes of a device of ``size`` bytes."""
        return cls.from_extents([(0, size)])

    @classmethod
    def from_extents(cls, extents: Iterable[tuple[int, int]]) -> Self:
        """Build from ``(offset, length)`` pairs in any order, overlapping or empty ones included."""
        table = np.array(list(extents), dtype=np.uint64).reshape(-1, 2)
        return cls.from_arrays(table[:, 0], table[:, 1])

    @classmethod
    def from_arrays(cls, offsets: Offsets, lengths: Offsets) -> Self:
        """Build from arrays of offsets and lengths (bytes) in any order, overlapping or empty ones included."""
        keep = lengths > 0
        starts = offsets[keep]
        merged = _merge(starts, starts + lengths[keep])
        return cls(merged.offsets, merged.ends)

    @classmethod
    def from_chunks(cls, chunks: Offsets, chunk_size: int, size: int) -> Self:
        """Build from chunk numbers in any order, repeated ones included.

        Args:
            chunks: chunk numbers; **sorted in place**, so that 10 million need no second copy.
            chunk_size: bytes of a chunk.
            size: bytes of the device; the last chunk is clipped to it.
        """
        chunks.sort()
        first = np.ones(len(chunks), bool)
        last = np.ones(len(chunks), bool)
        for begin in range(0, len(chunks) - 1, _BLOCK):  # in blocks: no temporary as long as the map
            piece = chunks[begin : begin + _BLOCK + 1]
            gap = piece[1:] - piece[:-1] > 1
            first[begin + 1 : begin + len(piece)] = gap
            last[begin : begin + len(piece) - 1] = gap
        offsets, ends = chunks[first], chunks[last]
        ends += np.uint64(1)
        offsets *= np.uint64(chunk_size)
        ends *= np.uint64(chunk_size)
        np.minimum(ends, np.uint64(size), out=ends)
        return cls(offsets, ends)

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Extent]:
        for offset, end in zip(self.offsets.tolist(), self.ends.tolist(), strict=True):
            yield Extent(offset, end - offset)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChangeMap):
            return NotImplemented
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self.ends, other.ends)

    __hash__ = None  # type: ignore[assignment]  # holds arrays that can be changed

    def __repr__(self) -> str:
        return f"<ChangeMap: {len(self)} extents, {self.total_bytes} bytes>"

    @property
    def total_bytes(self) -> int:
        """Bytes in the map."""
        # Two sums instead of a sum of differences: no temporary array. Either may wrap around at 2**64.
        return (int(self.ends.sum()) - int(self.offsets.sum())) % (1 << 64)

    @property
    def end(self) -> int:
        """First byte behind the last extent; 0 for an empty map."""
        return int(self.ends[-1]) if len(self) else 0

    def __or__(self, other: ChangeMap) -> ChangeMap:
        """Return the bytes that are in either map."""
        if not len(self) or not len(other):
            return other if not len(self) else self
        offsets = np.concatenate([self.offsets, other.offsets])
        return ChangeMap.from_arrays(offsets, np.concatenate([self.ends, other.ends]) - offsets)

    def __and__(self, other: ChangeMap) -> ChangeMap:
        """Return the bytes that are in both maps."""
        return _sweep(self, other, wanted=2)

    def __sub__(self, other: ChangeMap) -> ChangeMap:
        """Return the bytes of this map that are not in ``other``."""
        if not len(self):
            return self
        return self & other.complement(self.end)

    def complement(self, size: int) -> ChangeMap:
        """Return the bytes of ``[0, size)`` that are not in this map."""
        inside = self.clip(size)
        offsets = np.concatenate([np.zeros(1, np.uint64), inside.ends])
        ends = np.concatenate([inside.offsets, np.array([size], np.uint64)])
        keep = offsets < ends
        return ChangeMap(offsets[keep], ends[keep])

    def clip(self, size: int) -> ChangeMap:
        """Return the bytes of this map below ``size``."""
        count = int(np.searchsorted(self.offsets, np.uint64(size), "left"))
        if count == len(self) and self.end <= size:
            return self
        return ChangeMap(self.offsets[:count], np.minimum(self.ends[:count], np.uint64(size)))

    def overlaps(self, offsets: Offsets, ends: Offsets) -> bool:
        """Tell whether any of the given non-empty ranges shares a byte with this map.

        Costs a binary search a range, whatever the size of the map.
        """
        # The first of our extents that ends behind the range's start: it is the only candidate.
        candidate = np.searchsorted(self.ends, offsets, "right")
        inside = candidate < len(self)
        return bool(np.any(self.offsets[candidate[inside]] < ends[inside]))

    def digest(self) -> str:
        """Return a 128-bit hex digest: equal maps, equal digests (XXH3 over offset, end as le64 pairs)."""
        hasher = xxhash.xxh3_128()
        for begin in range(0, len(self), _BLOCK):
            hasher.update(
                np.stack([self.offsets[begin : begin + _BLOCK], self.ends[begin : begin + _BLOCK]], axis=1)
                .astype("<u8", copy=False)
                .tobytes()
            )
        return hasher.hexdigest()

    def batches(self, max_bytes: int, max_extents: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield ``(offsets, lengths)`` lists, in order, each of at most so many bytes and extents.

        A long extent is cut at multiples of ``max_bytes`` from its own start, so that every piece
        but the last stays aligned as the extent is.
        """
        for begin in range(0, len(self), _BLOCK):
            block_offsets = self.offsets[begin : begin + _BLOCK]
            lengths = self.ends[begin : begin + _BLOCK] - block_offsets
            yield from _fill(block_offsets, lengths, max_bytes, max_extents)


def _merge(starts: Offsets, ends: Offsets) -> ChangeMap:
    """Return the map of ranges in any order; both arrays are sorted in place, each for itself."""
    starts.sort()
    ends.sort()
    # A gap is where as many ranges have ended as have begun.
    first = np.ones(len(starts), bool)
    first[1:] = starts[1:] > ends[:-1]
    if first.all():
        return ChangeMap(starts, ends)
    last = np.ones(len(starts), bool)
    last[:-1] = first[1:]
    return ChangeMap(starts[first], ends[last])


def _fill(
    offsets: Offsets, lengths: Offsets, max_bytes: int, max_extents: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut one block of extents into batches; whole runs of short extents go by one binary search."""
    cumulative = np.cumsum(lengths)
    index, count, done = 0, len(offsets), 0  # ``done``: bytes of extent ``index`` that are out already
    while index < count:
        length = int(lengths[index]) - done
        if length >= max_bytes:
            yield [int(offsets[index]) + done], [max_bytes]
            done += max_bytes
            if length == max_bytes:
                index, done = index + 1, 0
            continue
        before = int(cumulative[index]) - length  # bytes out before this batch
        stop = int(np.searchsorted(cumulative, np.uint64(before + max_bytes), "right"))
        stop = min(stop, index + max_extents)
        batch_offsets, batch_lengths = offsets[index:stop].tolist(), lengths[index:stop].tolist()
        batch_offsets[0] += done
        batch_lengths[0] -= done
        yield batch_offsets, batch_lengths
        index, done = stop, 0


def _sweep(a: ChangeMap, b: ChangeMap, wanted: int) -> ChangeMap:
    """Return the bytes covered by ``wanted`` of the two maps, by counting openings and closings."""
    points = np.concatenate([a.offsets, b.offsets, a.ends, b.ends])
    opened = len(a) + len(b)
    order = np.argsort(points, kind="stable")
    steps = np.where(order < opened, 1, -1).astype(np.int8)
    depth = np.cumsum(steps, dtype=np.int64)
    points = points[order]
    offsets, ends = points[:-1], points[1:]
    keep = (depth[:-1] >= wanted) & (ends > offsets)
    # Pieces that touch (one map closes where the other opens again) are merged by from_arrays.
    return ChangeMap.from_arrays(offsets[keep], (ends - offsets)[keep])


class MapBuilder:
    """Makes a map of ranges that come in ascending order, piece by piece, in 16 bytes an extent."""

    def __init__(self) -> None:
        # Large arrays: the memory of a large one is given back as soon as it is not needed.
        self._full: list[npt.NDArray[np.uint64]] = []
        self._rows = np.empty((_BUILDER_ROWS, 2), np.uint64)  # offset and end of each range
        self._count = 0  # ranges in the last array
        self._end: int | None = None  # of the last range so far

    def add(self, offsets: Offsets, ends: Offsets) -> None:
        """Append ranges that are sorted, disjoint and merged among themselves, and behind all before them."""
        if not len(offsets):
            return
        if self._end is not None and int(offsets[0]) == self._end:  # goes on where the last one ended
            self._rows[self._count - 1, 1] = ends[0]
            self._end = int(ends[0])
            offsets, ends = offsets[1:], ends[1:]
        while len(offsets):
            if self._count == _BUILDER_ROWS:
                self._full.append(self._rows)
                self._rows, self._count = np.empty((_BUILDER_ROWS, 2), np.uint64), 0
            room = min(len(offsets), _BUILDER_ROWS - self._count)
            part = self._rows[self._count : self._count + room]
            part[:, 0], part[:, 1] = offsets[:room], ends[:room]
            self._count += room
            self._end = int(part[-1, 1])
            offsets, ends = offsets[room:], ends[room:]

    def add_blocks(self, blocks: Offsets, block_size: int) -> None:
        """Append whole blocks, by ascending numbers, each behind all before it."""
        if not len(blocks):
            return
        gaps = np.flatnonzero(blocks[1:] - blocks[:-1] != 1)
        firsts = np.concatenate([blocks[:1], blocks[gaps + 1]])
        lasts = np.concatenate([blocks[gaps], blocks[-1:]])
        self.add(firsts * np.uint64(block_size), (lasts + np.uint64(1)) * np.uint64(block_size))

    def build(self) -> ChangeMap:
        """Return the map; nothing can be added after this."""
        count = len(self._full) * _BUILDER_ROWS + self._count
        offsets, ends = np.empty(count, np.uint64), np.empty(count, np.uint64)
        pieces = [self._rows[: self._count], *reversed(self._full)]
        del self._rows
        self._full.clear()
        at = 0
        while pieces:  # each is let go as soon as it is copied
            piece = pieces.pop()
            offsets[at : at + len(piece)], ends[at : at + len(piece)] = piece[:, 0], piece[:, 1]
            at += len(piece)
        return ChangeMap(offsets, ends)


class Covered:
    """A growing set of ranges that arrive in any order, with a cheap "was any of this seen before?".

    Kept as a few maps of falling size, merged when two are alike: adding n extents costs n log n
    in all, and a question costs a binary search in each.
    """

    def __init__(self) -> None:
        self._levels: list[ChangeMap] = []

    def add(self, ranges: ChangeMap) -> None:
        """Take ``ranges`` into the set."""
        self._levels.append(ranges)
        while len(self._levels) > 1 and len(self._levels[-2]) <= 2 * len(self._levels[-1]):
            maps = [self._levels.pop(), self._levels.pop()]
            parts = [[one.offsets for one in maps], [one.ends for one in maps]]
            maps.clear()
            # The old arrays go one after the other, so that no more than one and a half sets are there at a time.
            starts = np.concatenate(parts.pop(0))
            ends = np.concatenate(parts.pop(0))
            self._levels.append(_merge(starts, ends))

    def unseen(self, ranges: ChangeMap) -> ChangeMap:
        """Return the bytes of ``ranges`` that are not in the set."""
        for level in self._levels:
            if level.overlaps(ranges.offsets, ranges.ends):
                ranges = ranges - level
        return ranges


def as_table(offsets: Sequence[int], lengths: Sequence[int]) -> Offsets:
    """Return an array of shape ``(n, 2)`` with offset and length (bytes) of each range."""
    table = np.empty((len(offsets), 2), np.dtype("<u8"))
    table[:, 0] = offsets
    table[:, 1] = lengths
    return table
