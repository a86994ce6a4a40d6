"""What a device holds, as a tree of digests: equal devices have one root, and different ones differ along few branches.

A leaf is the digest of 1 MiB; a node is the digest of the digests of 256 nodes or leaves below it, and the root
that of the topmost node and the size. A digest is XXH3, 128 bits, with a random seed that is chosen for one
comparison alone, so that nobody can prepare two blocks with the same digest.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import local

import numpy as np
import numpy.typing as npt
import xxhash

from lvmsync.extents import ChangeMap, Offsets
from lvmsync.sources.difference import BLOCK
from lvmsync.system.device import Device, aligned_buffer
from lvmsync.system.holes import find_holes

LEAF = 1 << 20
"""Bytes of a leaf; the last one of a device may be shorter."""
FAN_OUT = 256
"""Digests that a node is made of, at the most."""
DIGEST = 16
"""Bytes of a digest."""

_GROUP = 64  # leaves that are given out together
_TOGETHER = 8  # leaves of a file that one task reads
_SIZE = struct.Struct("<Q")

Digests = npt.NDArray[np.uint8]
"""An array of shape ``(n, 16)``."""


@dataclass(frozen=True)
class Shape:
    """How a tree over so many bytes looks; two sides that know the size know it both.

    Attributes:
        limit: bytes that it is about.
    """

    limit: int

    @property
    def counts(self) -> list[int]:
        """How many digests each level has: first the leaves, and one at the top (none, if there is nothing)."""
        counts = [-(-self.limit // LEAF)]
        while counts[-1] > 1:
            counts.append(-(-counts[-1] // FAN_OUT))
        return counts

    def children(self, level: int, numbers: Offsets) -> Offsets:
        """Return the numbers of what is below nodes of a level (blocks, below leaves), in their order.

        Args:
            level: of the nodes; 0: they are leaves.
            numbers: of the nodes.
        """
        each = FAN_OUT if level else LEAF // BLOCK
        below = self.counts[level - 1] if level else -(-self.limit // BLOCK)
        found: Offsets = np.add.outer(numbers * np.uint64(each), np.arange(each, dtype=np.uint64)).ravel()
        return found[found < np.uint64(below)]


class HashTree:
    """The digests of a device.

    Attributes:
        shape: of the tree.
        levels: the digests; first those of the leaves.
    """

    def __init__(self, shape: Shape, seed: int, leaves: Digests) -> None:
        """Build the tree upon its leaves."""
        self.shape = shape
        self._seed = seed
        self.levels = [leaves]
        while len(self.levels[-1]) > 1:
            below = self.levels[-1]
            nodes = [hash_node(below[at : at + FAN_OUT], seed) for at in range(0, len(below), FAN_OUT)]
            self.levels.append(as_digests(b"".join(nodes)))

    @property
    def root(self) -> str:
        """The digest of everything, as hex digits."""
        return hash_root(self.levels[-1], self.shape.limit, self._seed)


def hash_node(children: Digests, seed: int) -> bytes:
    """Return the digest of a node."""
    return xxhash.xxh3_128_digest(children.tobytes(), seed)


def hash_root(top: Digests, limit: int, seed: int) -> str:
    """Return the root above the topmost digest, as hex digits."""
    return xxhash.xxh3_128_hexdigest(_SIZE.pack(limit) + top.tobytes(), seed)


def hash_tree(device: Device, shape: Shape, seed: int, tell: Callable[[int], None]) -> HashTree:
    """Read a whole device, and return its tree.

    Args:
        device: to read.
        shape: of the tree.
        seed: of the digests.
        tell: takes how many bytes were hashed so far.
    """
    leaves = np.empty((shape.counts[0], DIGEST), np.uint8)
    first = 0
    for digests in hash_leaves(device, shape.limit, seed):
        leaves[first : first + len(digests)] = digests
        first += len(digests)
        tell(min(first * LEAF, shape.limit))
    return HashTree(shape, seed, leaves)


def leaves_of(ranges: ChangeMap) -> Offsets:
    """Return the numbers of the leaves that ranges touch, ascending."""
    unit = np.uint64(LEAF)
    firsts = ranges.offsets // unit
    touched = ChangeMap.from_arrays(firsts, (ranges.ends + unit - np.uint64(1)) // unit - firsts)
    counts = touched.ends - touched.offsets
    before = np.cumsum(counts) - counts  # numbers that come before those of each run
    shifts = np.repeat(touched.offsets - before, counts.astype(np.intp))
    return (shifts + np.arange(len(shifts), dtype=np.uint64)).astype(np.uint64, copy=False)


def hash_leaves(device: Device, limit: int, seed: int) -> Iterator[Digests]:
    """Yield the digests of all leaves below ``limit``, in order, some at a time; the holes of a file are not read."""
    count = -(-limit // LEAF)
    data = find_data(device, limit)
    of_zeros = np.frombuffer(xxhash.xxh3_128_digest(bytes(LEAF), seed), np.uint8)
    together = 1 if device.depth > 1 else _TOGETHER

    def work(numbers: list[int]) -> bytes:
        return b"".join(xxhash.xxh3_128_digest(_read_leaf(device, data, number, limit), seed) for number in numbers)

    def submit(first: int) -> _Group:
        starts = np.arange(first, min(first + _GROUP, count), dtype=np.uint64) * np.uint64(LEAF)
        ends = np.minimum(starts + np.uint64(LEAF), np.uint64(limit))
        nearest = np.searchsorted(data.ends, starts, "right")
        has_data = nearest < len(data)
        has_data[has_data] = data.offsets[nearest[has_data]] < ends[has_data]
        has_data |= ends - starts < LEAF  # the last one, if it is short
        digests = np.tile(of_zeros, (len(starts), 1))
        numbers = (starts[has_data] // np.uint64(LEAF)).tolist()
        for number in numbers:
            device.prefetch(*_data_of(data, number, limit))
        tasks = [pool.submit(work, numbers[at : at + together]) for at in range(0, len(numbers), together)]
        return digests, has_data, tasks

    with ThreadPoolExecutor(workers(device)) as pool:
        under_way: deque[_Group] = deque()
        try:
            for first in range(0, count, _GROUP):
                under_way.append(submit(first))
                if len(under_way) > 2:
                    yield _collect(under_way.popleft())
            while under_way:
                yield _collect(under_way.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


_Group = tuple[Digests, npt.NDArray[np.bool_], list[Future[bytes]]]


def _collect(group: _Group) -> Digests:
    digests, has_data, tasks = group
    if tasks:
        found = b"".join(task.result() for task in tasks)
        digests[has_data] = as_digests(found)
    return digests


def hash_blocks(
    device: Device, data: ChangeMap, numbers: Sequence[int], limit: int, seed: int, pool: ThreadPoolExecutor
) -> list[Digests]:
    """Return the digests of the blocks of 4 KiB in each of the given leaves; ``data``: as of `find_data`."""

    def work(number: int) -> Digests:
        view = _read_leaf(device, data, number, limit)
        digests = [xxhash.xxh3_128_digest(view[at : at + BLOCK], seed) for at in range(0, len(view), BLOCK)]
        return as_digests(b"".join(digests))

    for number in numbers:
        device.prefetch(*_data_of(data, number, limit))
    return list(pool.map(work, numbers))


_own = local()


def _read_leaf(device: Device, data: ChangeMap, number: int, limit: int) -> memoryview:
    """Return the bytes of a leaf, in a buffer that this thread uses again: new memory takes longer than the read.

    Holes are not read: the kernel would fill its page cache with zeros.
    """
    if not hasattr(_own, "buffer"):
        _own.buffer = aligned_buffer(LEAF)
    start, end = number * LEAF, min((number + 1) * LEAF, limit)
    view: memoryview = _own.buffer[: end - start]
    offsets, lengths = _data_of(data, number, limit)
    if sum(lengths) < len(view):
        np.frombuffer(view, np.uint8)[:] = 0
    for offset, length in zip(offsets, lengths, strict=True):
        device.read([offset], [length], view[offset - start : offset - start + length])
    return view


def _data_of(data: ChangeMap, number: int, limit: int) -> tuple[list[int], list[int]]:
    """Return offsets and lengths of the data in a leaf."""
    start, end = np.uint64(number * LEAF), np.uint64(min((number + 1) * LEAF, limit))
    first = int(np.searchsorted(data.ends, start, "right"))
    last = int(np.searchsorted(data.offsets, end, "left"))
    offsets = np.maximum(data.offsets[first:last], start)
    return offsets.tolist(), (np.minimum(data.ends[first:last], end) - offsets).tolist()


def find_data(device: Device, limit: int) -> ChangeMap:
    """Return what is no hole below ``limit``."""
    return find_holes(device, limit).complement(limit)


def workers(device: Device) -> int:
    """Return how many threads should hash a device."""
    return max(device.depth, os.cpu_count() or 1)


def as_digests(data: bytes | memoryview) -> Digests:
    """Return bytes as an array of digests."""
    return np.frombuffer(data, np.uint8).reshape(-1, DIGEST)
