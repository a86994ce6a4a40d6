"""Where two devices differ: every byte of both is read and compared, in blocks of 4 KiB."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local

import numpy as np
import numpy.typing as npt

from lvmsync.extents import ChangeMap, Offsets
from lvmsync.interfaces import Readable
from lvmsync.system.device import Device, aligned_buffer

BLOCK = 4096
"""Bytes that are told apart; blocks begin at multiples of it."""
BATCH = 1 << 20
"""Bytes of each side that are read at once, at the most."""
BATCH_EXTENTS = 4096
"""Ranges that are read at once, at the most."""

_TOGETHER = 8  # batches of files that one task reads
_JOIN = 1024  # maps that are joined at a time
_WORD = 8

Batch = tuple[list[int], list[int]]
Told = Callable[[int], None]
"""Takes how many bytes have been compared so far."""


class Zeros:
    """A `Readable` of zeros."""

    name = "zeros"

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Fill ``out`` with zeros."""
        np.frombuffer(out, np.uint8)[:] = 0


def find_differences(new: Readable, old: Readable, ranges: ChangeMap, tell: Told | None = None) -> ChangeMap:
    """Return the blocks of ``ranges`` in which two devices differ, held to ``ranges``.

    What is past the end of ``old`` counts as different, from the start of the block that its end is in.

    Args:
        new: one side; it has all of ``ranges``.
        old: the other.
        ranges: where to look.
        tell: takes the progress.
    """
    end = common_size(ranges.end, old.size)
    past = ranges - ChangeMap.whole(end) if end < ranges.end else ChangeMap.empty()
    return join_maps(itertools.chain(iter_differences(new, old, ranges.clip(end), tell), [past]))


def common_size(new_size: int, old_size: int) -> int:
    """Return how many bytes of two sides can be compared: a block that the old side ends in counts as different."""
    return new_size if old_size >= new_size else old_size // BLOCK * BLOCK


def iter_differences(new: Readable, old: Readable, ranges: ChangeMap, tell: Told | None = None) -> Iterator[ChangeMap]:
    """Yield the blocks of ``ranges`` in which two devices differ, in order; both sides have all of ``ranges``.

    Each of a few threads reads a batch of both sides and compares it, so that devices have many reads
    under way. Of files the kernel is told what will come next.
    """
    sides = new, old
    depth = max(side.depth if isinstance(side, Device) else 1 for side in sides)
    workers = max(depth, os.cpu_count() or 1)
    own = local()  # buffers are for one thread

    def work(group: list[Batch]) -> tuple[list[ChangeMap], int]:
        if not hasattr(own, "buffers"):
            own.buffers = aligned_buffer(BATCH), aligned_buffer(BATCH)
        found, done = [], 0
        for batch in group:
            length = sum(batch[1])
            one, other = (buffer[:length] for buffer in own.buffers)
            new.read(*batch, one)
            old.read(*batch, other)
            if (differing := compare_batch(batch, one, other)) is not None:
                found.append(differing)
            done += length
        return found, done

    together = 1 if depth > 1 else _TOGETHER
    batches = ranges.batches(BATCH, BATCH_EXTENTS)
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[tuple[list[ChangeMap], int]]] = deque()
        try:
            while True:
                group = list(itertools.islice(batches, together))
                for batch in group:
                    for side in sides:
                        if isinstance(side, Device):
                            side.prefetch(*batch)
                if group:
                    under_way.append(pool.submit(work, group))
                    if len(under_way) <= 2 * workers:
                        continue
                if not under_way:
                    return
                found, length = under_way.popleft().result()
                yield from found
                done += length
                if tell:
                    tell(done)
        finally:
            pool.shutdown(cancel_futures=True)


def compare_batch(batch: Batch, one: memoryview, other: memoryview) -> ChangeMap | None:
    """Return the blocks in which the bytes of a batch differ; None where they do not.

    Args:
        batch: offsets and lengths of the ranges that the bytes are of, ascending.
        one: bytes of all of them, one behind the other.
        other: the same, of the other side.
    """
    whole = len(one) // _WORD * _WORD
    differs = np.frombuffer(one[:whole], np.uint64) != np.frombuffer(other[:whole], np.uint64)
    if not differs.any() and bytes(one[whole:]) == bytes(other[whole:]):
        return None
    table = np.array(batch, np.uint64)
    offsets, ends = table[0], table[0] + table[1]
    starts, stops = split_at_blocks(offsets, ends, BLOCK)
    is_aligned = not (table % np.uint64(BLOCK)).any()
    if is_aligned:
        keep = differs.reshape(-1, BLOCK // _WORD).any(axis=1)
    else:
        lengths = (stops - starts).astype(np.int64)
        each = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
        keep = np.logical_or.reduceat(each, np.cumsum(lengths) - lengths)
    return ChangeMap.from_arrays(starts[keep], (stops - starts)[keep])


def split_at_blocks(offsets: Offsets, ends: Offsets, block: int) -> tuple[Offsets, Offsets]:
    """Cut ranges at every multiple of ``block``; return where the pieces start and end."""
    unit = np.uint64(block)
    first = offsets // unit
    counts = ((ends - np.uint64(1)) // unit - first).astype(np.int64) + 1
    before = np.cumsum(counts) - counts
    index: npt.NDArray[np.int64] = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(before, counts)
    starts = (np.repeat(first, counts) + index.astype(np.uint64)) * unit
    stops = np.minimum(starts + unit, np.repeat(ends, counts))
    return np.maximum(starts, np.repeat(offsets, counts)), stops


def join_maps(maps: Iterable[ChangeMap]) -> ChangeMap:
    """Return the bytes that are in any of many maps; they are joined as they come, a thousand at a time."""
    whole = ChangeMap.empty()
    maps = iter(maps)
    while some := list(itertools.islice(maps, _JOIN)):
        some.append(whole)
        offsets = np.concatenate([one.offsets for one in some])
        ends = np.concatenate([one.ends for one in some])
        whole = ChangeMap.from_arrays(offsets, ends - offsets)
    return whole
