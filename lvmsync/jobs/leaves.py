"""Compare with a device on another machine: each side hashes its own, and only digests travel.

The far side says ``lvmsync LEAVES {"size": S}`` on a line, and then, without being asked, the digests of all
its leaves (1 MiB each) in order. Then it answers requests: u32 count, and so many u64 leaf numbers (all
little-endian), ascending; the answer is the digests of their blocks of 4 KiB. A count of 0 ends it.

A digest is XXH3, 128 bits, with a random seed that our side has chosen for this comparison alone, so that
nobody can prepare two blocks with the same digest.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from lvmsync.errors import StreamError, TransportError
from lvmsync.extents import ChangeMap, Offsets
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.protocol import ANSWER, encode
from lvmsync.jobs.background import in_background
from lvmsync.jobs.progress import Progress, Report
from lvmsync.names import Comparison
from lvmsync.sources.compare import build_source
from lvmsync.sources.difference import BLOCK, common_size, join_maps
from lvmsync.sources.head import Watch, choose_size, open_head
from lvmsync.sources.source import Reading, Source
from lvmsync.stream.frames import Buffer
from lvmsync.system.device import Device, aligned_buffer, open_device
from lvmsync.system.holes import find_holes

LEAVES = "lvmsync LEAVES"
LEAF = 1 << 20
"""Bytes of a leaf; the last one of a device may be shorter."""
DIGEST = 16
MOST_ASKED = 256
"""Leaves in a request, at the most."""

_GROUP = 64  # leaves that are given out together
_TOGETHER = 8  # leaves of a file that one task reads
_COUNT = struct.Struct("<I")
_ASKED_AHEAD = 2  # requests under way: they fit into any pipe

Digests = npt.NDArray[np.uint8]
"""An array of shape ``(n, 16)``."""


# The far side


def answer(
    target: str, size: int, seed: int, send: Callable[[Sequence[Buffer]], None], receive: Callable[[memoryview], int]
) -> None:
    """Hash a device for the other side, until that has no more questions.

    Args:
        target: path of the device or file.
        size: bytes of the other side.
        seed: of the digests.
        send: takes what is said.
        receive: fills a buffer with what is asked; returns how many bytes, 0 if the line is cut.

    Raises:
        StreamError: what is asked makes no sense.
        DeviceError: the device cannot be read, is in use, or was written to meanwhile.
    """
    with open_device(target, exclusive=True) as device:
        watch = Watch(device)
        limit = common_size(size, device.size)
        send([encode(LEAVES, {"size": device.size})])
        for digests in hash_leaves(device, limit, seed):
            send([digests.tobytes()])
        data = find_data(device, limit)
        with ThreadPoolExecutor(_workers(device)) as pool:
            while (asked := _receive_request(receive, limit)) is not None:
                send([digest.tobytes() for digest in hash_blocks(device, data, asked, limit, seed, pool)])
        watch.confirm()


def _receive_request(receive: Callable[[memoryview], int], limit: int) -> list[int] | None:
    head = _receive_exactly(receive, _COUNT.size)
    if len(head) != _COUNT.size:
        raise StreamError("the other side was cut off before it had asked for all it wanted")
    count = _COUNT.unpack(head)[0]
    if not count:
        return None
    if count > MOST_ASKED:
        raise StreamError(f"the other side asks for {count} leaves at once; {MOST_ASKED} are possible")
    body = _receive_exactly(receive, count * 8)
    asked = np.frombuffer(body[: len(body) // 8 * 8], "<u8")
    if len(asked) != count or int(asked.max()) >= -(-limit // LEAF) or (asked[1:] <= asked[:-1]).any():
        raise StreamError("the other side asks for leaves that are not there, or not in order, or was cut off")
    return [int(number) for number in asked]


# This side


@contextmanager
def open_far_comparison(
    name: Comparison, reading: Reading, connect: Callable[[int, int], Peer], report: Report
) -> Iterator[Source]:
    """Compare a device with the far side's, and yield where they differ, as a source.

    Args:
        name: of the comparison; its old side is the far one.
        reading: how its new side is opened.
        connect: starts the far side, given our size and the seed, and returns it.
        report: takes the progress.

    Raises:
        PeerError: the far side failed.
        TransportError: the line failed, or something else talks on it.
    """
    with open_head(name.new, reading) as (device, watch):
        size = choose_size(device, name.size)
        seed = secrets.randbits(64)
        peer = connect(size, seed)
        differing, far_size = ask(device, size, seed, peer, report)
        yield build_source(name, device, size, differing, watch.confirm, old_size=far_size, old_name=peer.place)


def ask(device: Device, size: int, seed: int, peer: Peer, report: Report) -> tuple[ChangeMap, int]:
    """Return where a device differs from the far side's, in blocks of 4 KiB, and the size of that."""
    far_size = _parse_size(peer.expect(LEAVES), peer.place)
    limit = common_size(size, far_size)
    numbers = _find_leaves(device, limit, seed, peer, report)
    found = _find_blocks(device, limit, seed, numbers, peer, report)
    past = ChangeMap.from_extents([(limit, size - limit)])
    differing = join_maps(found) | past
    peer.send([_COUNT.pack(0)])
    peer.expect(ANSWER)  # it stands by what it said
    return differing, far_size


def _parse_size(values: Mapping[str, Any], place: str) -> int:
    size = values.get("size")
    if type(size) is int and 0 <= size < 1 << 63:
        return size
    raise TransportError(f"{place}: its size is not readable: '{str(size)[:80]!a}'")


def _find_leaves(device: Device, limit: int, seed: int, peer: Peer, report: Report) -> Offsets:
    """Return the numbers of the leaves that differ, while both sides hash."""
    found: list[npt.NDArray[np.int64]] = []
    first = 0
    with in_background(hash_leaves(device, limit, seed), 4) as groups:
        for mine in groups:
            found.append(np.flatnonzero((mine != _receive_digests(peer, len(mine))).any(axis=1)) + first)
            first += len(mine)
            report(Progress("hashing", min(first * LEAF, limit), limit))
    return np.concatenate([np.empty(0, np.int64), *found]).astype(np.uint64)


def _find_blocks(
    device: Device, limit: int, seed: int, numbers: Offsets, peer: Peer, report: Report
) -> Iterator[ChangeMap]:
    """Yield the blocks that differ within the given leaves."""
    asked = [numbers[at : at + MOST_ASKED] for at in range(0, len(numbers), MOST_ASKED)]
    per_leaf = np.arange(LEAF // BLOCK, dtype=np.uint64)
    blocks = np.uint64(-(-limit // BLOCK))
    data = find_data(device, limit)
    sent = 0
    with ThreadPoolExecutor(_workers(device)) as pool:
        for index, leaves in enumerate(asked):
            while sent < min(index + _ASKED_AHEAD, len(asked)):
                peer.send([_COUNT.pack(len(asked[sent])), asked[sent].astype("<u8").tobytes()])
                sent += 1
            places = (leaves[:, None] * np.uint64(len(per_leaf)) + per_leaf).ravel()
            places = places[places < blocks]
            mine = np.concatenate(hash_blocks(device, data, leaves.tolist(), limit, seed, pool))
            differs = (mine != _receive_digests(peer, len(mine))).any(axis=1)
            yield ChangeMap.from_chunks(places[differs], BLOCK, limit)
            report(Progress("comparing", min((index + 1) * MOST_ASKED, len(numbers)) * LEAF, len(numbers) * LEAF))


def _receive_digests(peer: Peer, count: int) -> Digests:
    received = _receive_exactly(peer.receive_some, count * DIGEST)
    if len(received) != count * DIGEST:
        peer.fail("it ended in the middle of its answer")
    return np.frombuffer(received, np.uint8).reshape(-1, DIGEST)


# Both sides


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

    with ThreadPoolExecutor(_workers(device)) as pool:
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
        digests[has_data] = np.frombuffer(found, np.uint8).reshape(-1, DIGEST)
    return digests


def hash_blocks(
    device: Device, data: ChangeMap, numbers: Sequence[int], limit: int, seed: int, pool: ThreadPoolExecutor
) -> list[Digests]:
    """Return the digests of the blocks of 4 KiB in each of the given leaves; ``data``: as of `find_data`."""

    def work(number: int) -> Digests:
        view = _read_leaf(device, data, number, limit)
        digests = [xxhash.xxh3_128_digest(view[at : at + BLOCK], seed) for at in range(0, len(view), BLOCK)]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)

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


def _workers(device: Device) -> int:
    return max(device.depth, os.cpu_count() or 1)


def _receive_exactly(receive: Callable[[memoryview], int], length: int) -> memoryview:
    """Return ``length`` bytes, or fewer if the line ends before them."""
    buffer = memoryview(bytearray(length))
    filled = 0
    while filled < length and (count := receive(buffer[filled:])):
        filled += count
    return buffer[:filled]
