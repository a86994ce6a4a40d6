"""Persistent data of the device mapper: the checksummed blocks and b-trees that dm-thin and dm-era keep.

Source: Linux v6.1, drivers/md/persistent-data/: dm-btree-internal.h, dm-btree.c, dm-btree-spine.c,
dm-array.c, dm-space-map-common.h. Little-endian throughout. A block has 4096 bytes; block n is at byte
n * 4096. Nothing is read here: every function takes a `ReadBlocks`. Whole levels of a tree are read
together and decoded as arrays, so that a tree of millions of entries costs no Python object an entry.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from lvmsync.errors import FormatError
from lvmsync.extents import Offsets

BLOCK_SIZE = 4096
SECTOR = 512
NODE_XOR = 121107  # BTREE_CSUM_XOR
ARRAY_XOR = 595846735  # CSUM_XOR of dm-array.c
INTERNAL_NODE, LEAF_NODE = 1, 2
MAX_HEIGHT = 16
"""No tree is higher: with at least 84 children a node, 11 levels hold any number of keys."""
BATCH = 512
"""Blocks that are read and decoded together, at the most: 2 MiB."""

Blocks = npt.NDArray[np.uint8]
"""An array of shape ``(n, 4096)``: whole blocks."""
ReadBlocks = Callable[[Offsets], Blocks]
"""Takes block numbers, at most `BATCH`; returns those blocks, good until the next call. Raises FormatError
for a number past the end of the metadata, and DeviceError where the device fails."""

_HEADER_SIZE = 32
_SUPERBLOCK_START = struct.Struct("<I4xQ16xQ")  # csum, flags, blocknr, uuid, magic: the same for all targets
_ARRAY_HEADER_SIZE = 24
_LAST_KEY = (1 << 64) - 1
_U64 = np.dtype("<u8")


def checksum(block: bytes | memoryview, xor: int) -> int:
    """Return the checksum of one block: CRC-32C of all behind its first four bytes, made its type's own.

    The kernel's CRC-32C starts with all ones and, unlike the usual function, does not invert the result.
    """
    return crc32c(block[4:BLOCK_SIZE]) ^ 0xFFFFFFFF ^ xor


def check_blocks(blocks: Blocks, numbers: Offsets, xor: int, number_at: int, what: str) -> None:
    """Check the checksum of each block, and the block number that it holds.

    Args:
        blocks: the blocks.
        numbers: the number of each.
        xor: the constant of this type of block.
        number_at: byte of the block where its own number is.
        what: what messages call a block of this type.

    Raises:
        FormatError: a block is damaged, of another type, or in another's place.
    """
    flat = np.ascontiguousarray(blocks).reshape(-1).data
    mask = xor ^ 0xFFFFFFFF
    found = [crc32c(flat[at + 4 : at + BLOCK_SIZE]) ^ mask for at in range(0, len(flat), BLOCK_SIZE)]
    stored = blocks[:, :4].copy().view("<u4")[:, 0]
    is_bad = stored != np.array(found, np.uint64)
    if is_bad.any():
        at = int(is_bad.argmax())
        raise damaged(
            int(numbers[at]), f"checksum {int(stored[at]):#x}, not {found[at]:#x}: it is damaged, or no {what}"
        )
    own = blocks[:, number_at : number_at + 8].copy().view("<u8")[:, 0]
    is_bad = own != numbers
    if is_bad.any():
        at = int(is_bad.argmax())
        raise damaged(int(numbers[at]), f"it says that it is block {int(own[at])}: a {what} in the wrong place")


def check_superblock(block: bytes | memoryview, number: int, *, magic: int, xor: int, what: str) -> None:
    """Check what a superblock of any target begins with: its magic, its checksum and its own number.

    Args:
        block: what was read.
        number: of the block that it was read from.
        magic: of the target.
        xor: the constant of its superblocks.
        what: the target, as messages call it.

    Raises:
        FormatError: it is shorter than a block, of another target, damaged, or in the wrong place.
    """
    if len(block) < BLOCK_SIZE:
        raise FormatError(f"{what} metadata: {len(block)} bytes, not even one block: this is no {what} metadata")
    csum, own, found = _SUPERBLOCK_START.unpack_from(block)
    if found != magic:
        raise damaged(number, f"magic {found}, not {magic}: this is no {what} metadata")
    expected = checksum(block, xor)
    if csum != expected:
        raise damaged(number, f"checksum {csum:#x}, not {expected:#x}: the superblock is damaged")
    if own != number:
        raise damaged(number, f"it says that it is block {own}: a superblock in the wrong place")


def damaged(number: int, why: str) -> FormatError:
    """Return the error for a block that is not as it should be."""
    return FormatError(f"metadata block {number}: {why}", offset=number * BLOCK_SIZE)


def max_entries(value_size: int) -> int:
    """Return how many entries a node with values of so many bytes has room for (calc_max_entries())."""
    return (BLOCK_SIZE - _HEADER_SIZE) // (8 + value_size) // 3 * 3


def node_type(value: npt.DTypeLike) -> np.dtype[np.void]:
    """Return the layout of a node (``struct btree_node``) whose values are of this type."""
    room = max_entries(np.dtype(value).itemsize)
    return np.dtype(
        {
            "names": ["flags", "nr_entries", "max_entries", "value_size", "keys", "values"],
            "formats": ["<u4", "<u4", "<u4", "<u4", ("<u8", (room,)), (value, (room,))],
            "offsets": [4, 16, 20, 24, _HEADER_SIZE, _HEADER_SIZE + 8 * room],
            "itemsize": BLOCK_SIZE,
        }
    )


_INTERNAL_TYPE = node_type(_U64)
_Nodes = tuple[npt.NDArray[np.void], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Level:
    """Nodes of one level of a tree, in the order of their keys, and which keys each may hold.

    Attributes:
        blocks: their block numbers.
        lows: the least key that each may hold.
        highs: the greatest.
    """

    blocks: Offsets
    lows: Offsets
    highs: Offsets

    def __len__(self) -> int:
        return len(self.blocks)

    def where(self, keep: npt.NDArray[np.bool_]) -> Level:
        """Return some of the nodes."""
        return Level(self.blocks[keep], self.lows[keep], self.highs[keep])


class BTree:
    """One b-tree: 64-bit keys, values of one size. Read-only, and no node is believed before it was checked.

    Attributes:
        root: block number of its root.
        value: numpy type of a value.
    """

    def __init__(self, read: ReadBlocks, nr_blocks: int, root: int, value: npt.DTypeLike = _U64) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            read: gives the blocks.
            nr_blocks: how many there are.
            root: block number of the root.
            value: numpy type of a value.
        """
        self.root = root
        self.value = np.dtype(value)
        self._read = read
        self._nr_blocks = nr_blocks
        self._leaf_type = node_type(value)
        self._seen: npt.NDArray[np.bool_] | None = None

    @property
    def top(self) -> Level:
        """The root, as a level."""
        root = np.array([self.root], np.uint64)
        _require_blocks(root, self.root, self._nr_blocks)
        return Level(root, np.zeros(1, np.uint64), np.full(1, _LAST_KEY, np.uint64))

    @cached_property
    def height(self) -> int:
        """How many levels it has; a root that is a leaf is 1.

        Raises:
            FormatError: a node on the way is damaged, or there is no end.
        """
        level = self.top
        for height in range(1, MAX_HEIGHT + 1):
            blocks = self._read(level.blocks)
            check_blocks(blocks, level.blocks, NODE_XOR, 8, "b-tree node")
            flags = int(blocks[0].view(_INTERNAL_TYPE)[0]["flags"])
            if flags == LEAF_NODE:
                return height
            first, _ = self._decode(blocks, level, _INTERNAL_TYPE, INTERNAL_NODE)
            level = Level(first["values"][:, 0].copy(), first["keys"][:, 0].copy(), level.highs)
            _require_blocks(level.blocks, self.root, self._nr_blocks)
        raise damaged(self.root, f"a tree of more than {MAX_HEIGHT} levels: it runs in a circle, it is damaged")

    def children(self, level: Level) -> Level:
        """Return the level below: the children of these internal nodes.

        Raises:
            FormatError: a node is damaged, or leads where another one led already.
        """
        parts = []
        for begin in range(0, len(level), BATCH):
            piece = Level(*(part[begin : begin + BATCH] for part in (level.blocks, level.lows, level.highs)))
            nodes, used = self._nodes(piece, _INTERNAL_TYPE, INTERNAL_NODE)
            keys, blocks = nodes["keys"], nodes["values"]
            # A child holds the keys up to the one before the next child's; the last one, all that its parent may.
            highs = np.empty(keys.shape, np.uint64)
            highs[:, :-1] = keys[:, 1:] - np.uint64(1)
            highs[np.arange(len(nodes)), nodes["nr_entries"].astype(np.intp) - 1] = piece.highs
            parts.append(Level(blocks[used], keys[used], highs[used]))
        below = Level(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("blocks", "lows", "highs"))
        )
        self._note(below.blocks)
        return below

    def _note(self, blocks: Offsets) -> None:
        """Take note of nodes of this tree; each is there once, or the tree runs in a circle."""
        if self._seen is None:
            self._seen = np.zeros(self._nr_blocks, bool)
            self._seen[self.root] = True
        _note_once(self._seen, blocks, self.root)

    def leaves(self, level: Level) -> Iterator[tuple[Offsets, npt.NDArray[Any]]]:
        """Yield keys and values of these leaves, batch by batch, in ascending order of keys.

        Raises:
            FormatError: a leaf is damaged, or holds keys that are not its own.
        """
        for begin in range(0, len(level), BATCH):
            piece = Level(*(part[begin : begin + BATCH] for part in (level.blocks, level.lows, level.highs)))
            nodes, used = self._nodes(piece, self._leaf_type, LEAF_NODE)
            yield nodes["keys"][used], nodes["values"][used]

    def leaf_level(self) -> Level:
        """Return all leaves."""
        level = self.top
        for _ in range(self.height - 1):
            level = self.children(level)
        return level

    def items(self) -> Iterator[tuple[Offsets, npt.NDArray[Any]]]:
        """Yield all keys and values, batch by batch, in ascending order of keys."""
        return self.leaves(self.leaf_level())

    def last_key(self) -> int | None:
        """Return the greatest key; None of an empty tree. Reads one node a level."""
        keys, _ = next(self.leaves(self._leaf_for(_LAST_KEY)))  # no key is greater, so there is a leaf
        return int(keys[-1]) if len(keys) else None

    def find(self, key: int) -> Any:
        """Return the value of one key; None if it is not there. Reads one node a level."""
        for keys, values in self.leaves(self._leaf_for(key)):
            at = int(np.searchsorted(keys, np.uint64(key)))
            if at < len(keys) and int(keys[at]) == key:
                return values[at]
        return None

    def _leaf_for(self, key: int) -> Level:
        """Return the leaf where a key would be; no leaf for one that is less than all there are."""
        level = self.top
        for _ in range(self.height - 1):
            node = self._nodes(level, _INTERNAL_TYPE, INTERNAL_NODE)[0][0]
            count = int(node["nr_entries"])
            at = int(np.searchsorted(node["keys"][:count], np.uint64(key), "right")) - 1
            if at < 0:
                return level.where(np.zeros(1, bool))
            high = int(node["keys"][at + 1]) - 1 if at + 1 < count else int(level.highs[0])
            one = slice(at, at + 1)
            level = Level(node["values"][one].copy(), node["keys"][one].copy(), np.array([high], np.uint64))
            _require_blocks(level.blocks, self.root, self._nr_blocks)
        return level

    def _nodes(self, level: Level, layout: np.dtype[np.void], flags: int) -> _Nodes:
        blocks = self._read(level.blocks)
        check_blocks(blocks, level.blocks, NODE_XOR, 8, "b-tree node")
        return self._decode(blocks, level, layout, flags)

    def _decode(self, blocks: Blocks, level: Level, layout: np.dtype[np.void], flags: int) -> _Nodes:
        """Decode nodes whose checksums are right, and check all that leads on from them.

        Returns:
            The nodes, and which entries of each are in use: an array of shape ``(nodes, entries)``.
        """
        nodes: npt.NDArray[np.void] = blocks.view(layout)[:, 0]
        _require(nodes["flags"] == flags, level, f"not {'a leaf' if flags == LEAF_NODE else 'an internal node'}")
        value_size = layout["values"].base.itemsize
        room = max_entries(value_size)
        _require(nodes["value_size"] == value_size, level, f"values of another size than {value_size} bytes")
        _require(nodes["max_entries"] == room, level, f"room for another number of entries than {room}")
        counts = nodes["nr_entries"]
        # Only a root may be empty, and then it is a leaf.
        least = 0 if flags == LEAF_NODE and len(level) == 1 and int(level.blocks[0]) == self.root else 1
        _require((counts >= least) & (counts <= room), level, f"a number of entries that is not {least} to {room}")
        keys = nodes["keys"]
        used = np.arange(keys.shape[1], dtype=np.uint32) < counts[:, None]
        _require(((keys[:, 1:] > keys[:, :-1]) | ~used[:, 1:]).all(axis=1), level, "keys that do not ascend")
        lasts = keys[np.arange(len(nodes)), np.maximum(counts, 1).astype(np.intp) - 1]
        is_inside = (keys[:, 0] >= level.lows) & (lasts <= level.highs)
        _require(is_inside | (counts == 0), level, "keys that belong to another node")
        return nodes, used


def _require_blocks(blocks: Offsets, root: int, nr_blocks: int) -> None:
    """Raise FormatError unless a tree leads to blocks of the metadata only."""
    is_bad = (blocks == 0) | (blocks >= nr_blocks)
    if is_bad.any():
        number = int(blocks[int(is_bad.argmax())])
        raise damaged(root, f"its tree leads to block {number}, and the metadata has {nr_blocks}: damaged or cut short")


def _note_once(seen: npt.NDArray[np.bool_], blocks: Offsets, root: int) -> None:
    """Mark blocks in ``seen``; raise FormatError for one that is marked already."""
    _require_blocks(blocks, root, len(seen))
    numbers = blocks.astype(np.intp)
    is_again = seen[numbers]
    seen[numbers] = True
    in_order = np.sort(numbers)
    if is_again.any() or (in_order[1:] == in_order[:-1]).any():
        raise damaged(root, "its tree leads to one block twice: it is damaged")


def _require(is_good: Any, level: Level, why: str) -> None:
    if not is_good.all():
        raise damaged(int(level.blocks[int(is_good.argmin())]), f"a b-tree node with {why}: the tree is damaged")


def unshared_leaves(one: BTree, other: BTree) -> tuple[Level, Level]:
    """Return the leaves of each of two trees that are not the other's as well.

    Trees share nodes after a snapshot: a node that both have, in the same place, holds the same in both, with
    all below it. So the cost follows what differs, not the size of the trees.

    Raises:
        FormatError: a node is damaged.
    """
    trees = (one, other)
    levels = [one.top, other.top]
    heights = [one.height, other.height]
    while True:
        if heights[0] == heights[1]:
            levels = _drop_shared(*levels)
        tallest = max(heights)
        if tallest == 1:
            return levels[0], levels[1]
        for index, tree in enumerate(trees):
            if heights[index] == tallest:
                levels[index] = tree.children(levels[index]) if len(levels[index]) else levels[index]
                heights[index] -= 1


def _drop_shared(one: Level, other: Level) -> list[Level]:
    """Return the nodes that are in one of two levels only: another block, or one in another place."""
    _, ours, theirs = np.intersect1d(one.blocks, other.blocks, return_indices=True)
    is_same = one.lows[ours] == other.lows[theirs]
    keep_ours, keep_theirs = np.ones(len(one), bool), np.ones(len(other), bool)
    keep_ours[ours[is_same]] = False
    keep_theirs[theirs[is_same]] = False
    return [one.where(keep_ours), other.where(keep_theirs)]


def read_array(
    read: ReadBlocks, nr_blocks: int, root: int, count: int, value: npt.DTypeLike
) -> Iterator[npt.NDArray[np.generic]]:
    """Yield the ``count`` values of a dm-array, in order, piece by piece.

    Args:
        read: gives the blocks.
        nr_blocks: how many there are.
        root: block number of the array's tree, from index of array block to its block number.
        count: how many values the array has.
        value: numpy type of a value.

    Raises:
        FormatError: a block is damaged, or the array is not as long as it should be.
    """
    kind = np.dtype(value)
    room = (BLOCK_SIZE - _ARRAY_HEADER_SIZE) // kind.itemsize
    wanted = -(-count // room)
    done = 0
    tree = BTree(read, nr_blocks, root)
    seen = np.zeros(nr_blocks, bool)
    for keys, values in tree.items():
        if not np.array_equal(keys, np.arange(done, done + len(keys), dtype=np.uint64)):
            raise damaged(root, f"an array whose blocks do not follow each other at {done}: it is damaged")
        if done + len(keys) > wanted:
            raise damaged(root, f"an array of more than {wanted} blocks, for {count} entries: it is damaged")
        blocks = values.astype(np.uint64)
        _note_once(seen, blocks, root)
        for begin in range(0, len(blocks), BATCH):
            yield _read_array_blocks(read, blocks[begin : begin + BATCH], done + begin, count, kind, room)
        done += len(keys)
    if done != wanted:
        raise damaged(root, f"an array of {done} blocks, not {wanted} for {count} entries: it is damaged")


def _read_array_blocks(
    read: ReadBlocks, numbers: Offsets, first: int, count: int, kind: np.dtype[np.generic], room: int
) -> npt.NDArray[np.generic]:
    """Return the values in some blocks of an array; all but the very last block are full."""
    blocks = read(numbers)
    check_blocks(blocks, numbers, ARRAY_XOR, 16, "array block")
    header = blocks[:, 4:16].copy().view("<u4")  # max_entries, nr_entries, value_size
    expected = np.minimum(count - (first + np.arange(len(numbers), dtype=np.int64)) * room, room)
    is_bad = (header[:, 0] != room) | (header[:, 2] != kind.itemsize) | (header[:, 1] != expected)
    if is_bad.any():
        at = int(is_bad.argmax())
        raise damaged(
            int(numbers[at]),
            f"an array block with {int(header[at, 1])} entries, not {int(expected[at])}: it is damaged",
        )
    values = blocks[:, _ARRAY_HEADER_SIZE : _ARRAY_HEADER_SIZE + room * kind.itemsize]
    return np.ascontiguousarray(values).view(kind).reshape(-1)[: int(expected.sum())]
