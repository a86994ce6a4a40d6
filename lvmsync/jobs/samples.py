"""Samples of the base: a few places that show whether a target still holds it, before anything is written."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import xxhash

from lvmsync.errors import ConflictError
from lvmsync.extents import ChangeMap, Offsets
from lvmsync.interfaces import Readable
from lvmsync.stream.frames import MAX_SAMPLE, Sample
from lvmsync.system.device import aligned_buffer

_BLOCK, _BLOCKS = 4096, 254
_PIECE = 64 << 10
_MOST_BETWEEN = 4  # bytes of samples for each of the ranges that they are to hold, at the most
_IN_CHANGES = 64  # of the blocks, how many may lie in what is about to be overwritten
_PIECES = 512  # of 64 KiB, where nothing else tells whether a target was written to: 40 KiB on the line


def take_samples(
    base: Readable, changes: ChangeMap, size: int, seed: int | None = None, *, is_unwatched: bool = False
) -> list[Sample]:
    """Return samples of a base: the first and last 64 KiB, and blocks all over it, mostly where nothing changes.

    Args:
        base: where it is read.
        changes: what is about to be sent.
        size: bytes of the device.
        seed: of the choice; None: another one each time.
        is_unwatched: nothing counts what was written to the target meanwhile (it was out of use, or its machine was
            restarted): the samples are 32 MiB then, which is all of a small device.
    """
    chance = random.Random(seed)
    ends = {(0, min(_PIECE, size)), (max(size - _PIECE, 0), min(_PIECE, size))}
    if is_unwatched:
        count = -(-size // _PIECE)
        starts = [_PIECE * piece for piece in chance.sample(range(count), min(count, _PIECES))]
        places = ends | {(start, min(_PIECE, size - start)) for start in starts}
        return _sampled(base, places)
    unchanged = ChangeMap.whole(size) - changes
    blocks = {
        *_choose(chance, unchanged, _BLOCKS - _IN_CHANGES),
        *_choose(chance, ChangeMap.whole(size), _IN_CHANGES),
    }
    return _sampled(base, ends | {(block * _BLOCK, min(_BLOCK, size - block * _BLOCK)) for block in blocks})


def sample_ranges(
    base: Readable, ranges: ChangeMap, size: int, most: int, seed: int | None = None
) -> tuple[tuple[Sample, ...], ChangeMap]:
    """Return samples that hold all bytes of ``ranges``, and where they are; a random part, if that takes too many.

    Ranges that lie close together are in one sample, with what lies between them.

    Args:
        base: where it is read.
        ranges: what is to be in them.
        size: bytes of the device.
        most: samples.
        seed: of the choice; None: another one each time.
    """
    granularity = _BLOCK
    places = _places(ranges, granularity, size)
    while len(places) > most and granularity < MAX_SAMPLE:
        granularity *= 2
        wider = _places(ranges, granularity, size)
        if int(wider[:, 1].sum()) > _MOST_BETWEEN * ranges.total_bytes:
            break
        places = wider
    if len(places) > most:
        places = places[np.sort(np.random.default_rng(seed).choice(len(places), most, replace=False))]
    return tuple(_sampled(base, places.tolist())), ChangeMap.from_arrays(places[:, 0], places[:, 1])


def _places(ranges: ChangeMap, granularity: int, size: int) -> Offsets:
    """Return offset and length of pieces of up to `MAX_SAMPLE` that hold ``ranges``, at multiples of a granularity."""
    unit = np.uint64(granularity)
    starts, ends = ranges.offsets // unit * unit, np.minimum((ranges.ends + unit - 1) // unit * unit, np.uint64(size))
    merged = ChangeMap.from_arrays(starts, ends - starts)
    offsets, lengths = merged.offsets.astype(np.int64), (merged.ends - merged.offsets).astype(np.int64)
    counts = -(-lengths // MAX_SAMPLE)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = np.repeat(offsets, counts) + number * MAX_SAMPLE
    return np.stack([pieces, np.minimum(MAX_SAMPLE, np.repeat(offsets + lengths, counts) - pieces)], axis=1).astype(
        np.uint64
    )


def _sampled(base: Readable, places: Iterable[tuple[int, int]]) -> list[Sample]:
    return [Sample(offset, length, _digest(base, offset, length)) for offset, length in sorted(places) if length]


def check_samples(target: Readable, samples: Iterable[Sample], wanted: str = "the base") -> None:
    """Compare a target with samples of what it should hold.

    Args:
        target: where it is read.
        samples: of that.
        wanted: what it is called.

    Raises:
        ConflictError: it holds something else at one of them.
    """
    different = find_different(target, samples)
    if different:
        (offset, length, digest), found = different
        raise ConflictError(
            f"{target.name} was written to in between: the {length} bytes at {offset} have the digest {found}, and"
            f" those of {wanted} have {digest} (or was it the base that was written to?). Bring it up to date with"
            " 'lvmsync repair' or 'compare:'",
            device=target.name,
            offset=offset,
        )


def find_different(target: Readable, samples: Iterable[Sample]) -> tuple[Sample, str] | None:
    """Return the first sample whose place holds something else on a target, and the digest of that."""
    for sample in samples:
        found = _digest(target, sample.offset, sample.length)
        if found != sample.digest:
            return sample, found
    return None


def _choose(chance: random.Random, ranges: ChangeMap, count: int) -> list[int]:
    """Return numbers of blocks in which bytes of ``ranges`` are, each byte being as likely as any other."""
    if not len(ranges):
        return []
    ends = np.cumsum(ranges.ends - ranges.offsets)
    picks = np.sort(np.array([chance.randrange(int(ends[-1])) for _ in range(count)], np.uint64))
    at = np.searchsorted(ends, picks, side="right")
    found = ranges.ends[at] - (ends[at] - picks)
    return [block // _BLOCK for block in found.tolist()]


def _digest(device: Readable, offset: int, length: int) -> str:
    view = aligned_buffer(length)
    device.read([offset], [length], view)
    return xxhash.xxh3_128_hexdigest(view)
