"""Compare with a device on another machine: each side hashes its own, and only digests travel.

The far side says ``lvmsync LEAVES {"size": S}`` on a line. Then it answers requests of two u32, a level of its
tree (see `jobs.hash_tree`) and a count, and so many u64 numbers of nodes of that level, ascending (all
little-endian):

    level ~0, count 0     ``lvmsync ROOT {"root": R}``, once it has hashed the whole device
    level L, count N      ``lvmsync DIGESTS {"count": C}``, and the C digests of what is below these nodes:
                          below a leaf (level 0) those are of its blocks of 4 KiB
    level ~1, count 0     nothing: this side is still there, and hashes
    level 0, count 0      the end

So devices that are equal cost one root, and of others only the branches that differ are looked into.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvmsync.errors import DeviceError, StreamError, TransportError, VerifyError
from lvmsync.extents import ChangeMap, Offsets
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.protocol import ANSWER, encode
from lvmsync.jobs.hash_tree import (
    DIGEST,
    FAN_OUT,
    LEAF,
    Digests,
    HashTree,
    Shape,
    as_digests,
    find_data,
    hash_blocks,
    hash_node,
    hash_root,
    hash_tree,
    leaves_of,
    workers,
)
from lvmsync.jobs.progress import Progress, Report
from lvmsync.names import Comparison
from lvmsync.sources.compare import build_source
from lvmsync.sources.difference import BLOCK, common_size, join_maps
from lvmsync.sources.head import Watch, choose_size, open_head
from lvmsync.sources.source import Reading, Source
from lvmsync.stream.frames import Buffer
from lvmsync.system.device import Device, open_device

LEAVES, ROOT, DIGESTS = "lvmsync LEAVES", "lvmsync ROOT", "lvmsync DIGESTS"
MOST_ASKED = 256
"""Nodes in a request, at the most."""
BEAT = 10.0
"""Seconds after which the other side is told that we are still there."""

_REQUEST = struct.Struct("<II")
_WHOLE, _STILL_THERE, _END = (0xFFFFFFFF, 0), (0xFFFFFFFE, 0), (0, 0)
_ASKED_AHEAD = 2  # requests under way: they fit into any pipe

Receive = Callable[[memoryview], int]
Asked = tuple[int, Offsets]


# The far side


def answer(target: str, size: int, seed: int, send: Callable[[Sequence[Buffer]], None], receive: Receive) -> None:
    """Hash a device for the other side, until that has no more questions.

    Args:
        target: path of the device or file.
        size: bytes of the other side.
        seed: of the digests.
        send: takes what is said.
        receive: fills a buffer with what is asked; returns how many bytes, 0 if the line is cut.

    Raises:
        StreamError: what is asked makes no sense, or the line was cut.
        DeviceError: the device cannot be read, is in use, or was written to meanwhile.
    """
    with open_device(target, exclusive=True) as device, ThreadPoolExecutor(workers(device)) as pool:
        watch = Watch(device)
        shape = Shape(common_size(size, device.size))
        send([encode(LEAVES, {"size": device.size})])
        data = find_data(device, shape.limit)
        tree: HashTree | None = None
        while (asked := _receive_request(receive, shape, has_tree=tree is not None)) is not None:
            level, numbers = asked
            if level == _STILL_THERE[0]:
                continue
            if level == _WHOLE[0]:
                tree = hash_tree(device, shape, seed, lambda _: None)
                send([encode(ROOT, {"root": tree.root})])
            elif level == 0:
                found = hash_blocks(device, data, numbers.tolist(), shape.limit, seed, pool)
                _send_digests(send, np.concatenate(found))
            elif tree:
                _send_digests(send, tree.levels[level - 1][shape.children(level, numbers)])
        watch.confirm()


def _send_digests(send: Callable[[Sequence[Buffer]], None], digests: Digests) -> None:
    send([encode(DIGESTS, {"count": len(digests)}), digests.tobytes()])


def _receive_request(receive: Receive, shape: Shape, *, has_tree: bool) -> Asked | None:
    """Read one request; None: there are no more."""
    head = _receive_exactly(receive, _REQUEST.size)
    if len(head) != _REQUEST.size:
        raise StreamError("the other side was cut off before it had asked for all it wanted")
    level, count = _REQUEST.unpack(head)
    if (level, count) == _END:
        return None
    if (level, count) in (_WHOLE, _STILL_THERE):
        return level, np.empty(0, np.uint64)
    counts = shape.counts if has_tree else shape.counts[:1]
    if level >= len(counts) or not 0 < count <= MOST_ASKED:
        raise StreamError(
            f"the other side asks for {count} nodes of level {level}; 1 to {MOST_ASKED} of levels below {len(counts)}"
            " are possible"
        )
    body = _receive_exactly(receive, count * 8)
    if len(body) != count * 8:
        raise StreamError("the other side asks for nodes, and was cut off before it had said for which")
    asked = np.frombuffer(body, "<u8").astype(np.uint64)
    if int(asked.max()) >= counts[level] or (asked[1:] <= asked[:-1]).any():
        raise StreamError("the other side asks for nodes that are not there, or not in order")
    return level, asked


# This side


@dataclass(frozen=True)
class Compared:
    """What a comparison with the far side has found.

    Attributes:
        differing: the blocks of 4 KiB that differ; what the far side lacks is among them.
        size: bytes of this side that count.
        place: what messages call the far side.
        far_size: bytes of it.
        root: of this side's tree; empty where only some ranges were asked for.
        far_root: the same of the far side's.
    """

    differing: ChangeMap
    size: int
    place: str
    far_size: int
    root: str = ""
    far_root: str = ""


Connect = Callable[[int, int], Peer]
"""Starts the far side, given our size and the seed, and returns it."""


@contextmanager
def open_far_comparison(name: Comparison, reading: Reading, connect: Connect, report: Report) -> Iterator[Source]:
    """Compare a device with the far side's, and yield where they differ, as a source.

    Args:
        name: of the comparison; its old side is the far one.
        reading: how its new side is opened.
        connect: starts the far side.
        report: takes the progress.

    Raises:
        PeerError: the far side failed.
        TransportError: the line failed, or something else talks on it.
    """
    with open_head(name.new, reading) as (device, watch):
        size = choose_size(device, name.size)
        found = compare_device(device, size, connect, report)
        yield build_source(
            name, device, size, found.differing, watch.confirm, old_size=found.far_size, old_name=found.place
        )


def compare_device(
    device: Device, size: int, connect: Connect, report: Report, within: ChangeMap | None = None
) -> Compared:
    """Return where a device differs from the far side's.

    Args:
        device: this side; nothing writes to it meanwhile.
        size: bytes of it that count.
        connect: starts the far side.
        report: takes the progress.
        within: look at no other ranges, and not at the roots; None: at everything.

    Raises:
        PeerError: the far side failed.
        DeviceError: this side cannot be read.
        VerifyError: what the far side says does not fit together.
        TransportError: the line failed, or something else talks on it.
    """
    seed = secrets.randbits(64)
    peer = connect(size, seed)
    far_size = _parse_size(peer.expect(LEAVES), peer.place)
    limit = common_size(size, far_size)
    near = _Near(device, Shape(limit), seed, peer, report)
    past = ChangeMap.from_extents([(limit, size - limit)])
    root = far_root = ""
    if within is None:
        root, far_root, leaves = near.find_leaves()
        inside = near.find_blocks(leaves, must_differ=True)
    else:
        inside = near.find_blocks(leaves_of(within.clip(limit)), must_differ=False) & within
        past &= within
    peer.send([_REQUEST.pack(*_END)])
    peer.expect(ANSWER)  # it stands by what it said
    return Compared(inside | past, size, peer.place, far_size, root, far_root)


class _Near:
    """This side of a comparison."""

    def __init__(self, device: Device, shape: Shape, seed: int, peer: Peer, report: Report) -> None:
        self._device = device
        self._shape = shape
        self._seed = seed
        self._peer = peer
        self._report = report
        self._said = time.monotonic()

    def find_leaves(self) -> tuple[str, str, Offsets]:
        """Return both roots, and the numbers of the leaves that differ; both sides hash all they hold."""
        self._peer.send([_REQUEST.pack(*_WHOLE)])
        tree = hash_tree(self._device, self._shape, self._seed, self._tell)
        far_root = _parse_root(self._peer.expect(ROOT), self._peer.place)
        if tree.root == far_root:
            return tree.root, far_root, np.empty(0, np.uint64)
        if not self._shape.limit:
            raise self._contradiction()
        top = len(tree.levels) - 1
        numbers, theirs = np.zeros(1, np.uint64), None
        for level in range(top, 0, -1):
            numbers, theirs = self._find_children(tree, level, numbers, theirs, far_root)
        return tree.root, far_root, numbers

    def _find_children(
        self, tree: HashTree, level: int, numbers: Offsets, theirs: Digests | None, far_root: str
    ) -> tuple[Offsets, Digests]:
        """Return the numbers of what differs below nodes that differ, and the far side's digests of it.

        Args:
            tree: this side's.
            level: of the nodes.
            numbers: of the nodes.
            theirs: the far side's digests of the nodes; None: there is one node, the topmost, under this root.
            far_root: the far side's.
        """
        found, digests = [np.empty(0, np.uint64)], [np.empty((0, DIGEST), np.uint8)]
        begun = 0
        for asked, far in self._ask(level, numbers):
            below = self._shape.children(level, asked)
            parents = np.searchsorted(asked, below // np.uint64(FAN_OUT))
            bounds = np.searchsorted(parents, np.arange(len(asked) + 1)).tolist()
            for index in range(len(asked)):
                node = hash_node(far[bounds[index] : bounds[index + 1]], self._seed)
                if theirs is None:
                    is_sound = hash_root(as_digests(node), self._shape.limit, self._seed) == far_root
                else:
                    is_sound = node == theirs[begun + index].tobytes()
                if not is_sound:
                    raise self._contradiction()
            begun += len(asked)
            differs = (tree.levels[level - 1][below] != far).any(axis=1)
            found.append(below[differs])
            digests.append(far[differs])
        return np.concatenate(found), np.concatenate(digests)

    def find_blocks(self, leaves: Offsets, *, must_differ: bool) -> ChangeMap:
        """Return the blocks that differ within the given leaves.

        Args:
            leaves: their numbers.
            must_differ: whether it is known of each that something in it does.
        """
        return join_maps(self._iter_blocks(leaves, must_differ=must_differ))

    def _iter_blocks(self, leaves: Offsets, *, must_differ: bool) -> Iterator[ChangeMap]:
        limit = self._shape.limit
        data = find_data(self._device, limit)
        done = 0
        with ThreadPoolExecutor(workers(self._device)) as pool:
            for asked, far in self._ask(0, leaves):
                blocks = self._shape.children(0, asked)
                mine = np.concatenate(hash_blocks(self._device, data, asked.tolist(), limit, self._seed, pool))
                differs = (mine != far).any(axis=1)
                if must_differ and len(np.unique(blocks[differs] // np.uint64(LEAF // BLOCK))) != len(asked):
                    raise DeviceError(
                        f"{self._device.name} or {self._peer.place} was written to while they were compared: what"
                        " differed at first did not differ later",
                        device=self._device.name,
                    )
                yield ChangeMap.from_chunks(blocks[differs], BLOCK, limit)
                done += len(asked)
                self._report(Progress("comparing", done * LEAF, len(leaves) * LEAF))

    def _ask(self, level: int, numbers: Offsets) -> Iterator[tuple[Offsets, Digests]]:
        """Yield, for some nodes at a time, their numbers and the far side's digests of what is below them."""
        parts = [numbers[at : at + MOST_ASKED] for at in range(0, len(numbers), MOST_ASKED)]
        sent = 0
        for index, part in enumerate(parts):
            while sent < min(index + _ASKED_AHEAD, len(parts)):
                self._peer.send([_REQUEST.pack(level, len(parts[sent])), parts[sent].astype("<u8").tobytes()])
                sent += 1
            yield part, self._receive_digests(len(self._shape.children(level, part)))

    def _receive_digests(self, count: int) -> Digests:
        told = self._peer.expect(DIGESTS).get("count")
        if told != count:
            raise TransportError(f"{self._peer.place}: {count} digests were asked for, and it has {str(told)[:20]!a}")
        received = _receive_exactly(self._peer.receive_some, count * DIGEST)
        if len(received) != count * DIGEST:
            self._peer.fail("it ended in the middle of its answer")
        return as_digests(received)

    def _tell(self, done: int) -> None:
        self._report(Progress("hashing", done, self._shape.limit))
        if time.monotonic() - self._said >= BEAT:
            self._peer.send([_REQUEST.pack(*_STILL_THERE)])
            self._said = time.monotonic()

    def _contradiction(self) -> VerifyError:
        return VerifyError(
            f"{self._peer.place}: its digests do not fit its root: bytes were lost on the way, or it is not honest;"
            " nothing is known about it"
        )


def _parse_size(values: Mapping[str, Any], place: str) -> int:
    size = values.get("size")
    if type(size) is int and 0 <= size < 1 << 63:
        return size
    raise TransportError(f"{place}: its size is not readable: '{str(size)[:80]!a}'")


def _parse_root(values: Mapping[str, Any], place: str) -> str:
    root = values.get("root")
    if isinstance(root, str) and len(root) == 2 * DIGEST:
        return root
    raise TransportError(f"{place}: its root is not readable: '{str(root)[:80]!a}'")


def _receive_exactly(receive: Receive, length: int) -> memoryview:
    """Return ``length`` bytes, or fewer if the line ends before them."""
    buffer = memoryview(bytearray(length))
    filled = 0
    while filled < length and (count := receive(buffer[filled:])):
        filled += count
    return buffer[:filled]
