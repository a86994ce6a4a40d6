"""Metadata of dm-thin pools, made by hand: trees of any shape, shared as a test wants it, checksums right.

Source: Linux v6.1, drivers/md/persistent-data/dm-btree-internal.h and drivers/md/dm-thin-metadata.c. Written
apart from lvmsync.formats, so that one mistake is not made on both sides; blocks are `bytearray`, for damage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from crc32c import crc32c

from lvmsync.errors import FormatError
from lvmsync.extents import Offsets
from lvmsync.formats.pdata import BATCH, Blocks

BLOCK = 4096
NODE_XOR, ARRAY_XOR, THIN_XOR = 121107, 595846735, 160774
INTERNAL, LEAF = 1, 2
THIN_MAGIC = 27022010

Cut = Callable[[int, int], bool]
"""Whether a new node begins at a key, on a level (0: the leaves)."""


def seal(block: bytearray, xor: int) -> None:
    """Write the checksum that goes with the rest of a block."""
    block[:4] = struct.pack("<I", crc32c(bytes(block[4:])) ^ 0xFFFFFFFF ^ xor)


def room(value_size: int) -> int:
    """Return how many entries a node takes: a multiple of three."""
    return (BLOCK - 32) // (8 + value_size) // 3 * 3


class Reader:
    """Reads blocks of an image in memory, as a `MetadataReader` does those of a device; notes which."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.nr_blocks = len(image) // BLOCK
        self._blocks = np.frombuffer(image, np.uint8, self.nr_blocks * BLOCK).reshape(-1, BLOCK)
        self.numbers: list[int] = []

    def __call__(self, numbers: Offsets) -> Blocks:
        assert 0 < len(numbers) <= BATCH
        if (numbers >= self.nr_blocks).any():
            raise FormatError("past the end")
        self.numbers += numbers.tolist()
        return self._blocks[numbers.astype(np.intp)]

    def read_block(self, number: int) -> bytes:
        block: bytes = self(np.array([number], np.uint64))[0].tobytes()
        return block


class Store:
    """Metadata blocks, as they are added; block 0 is left for a superblock.

    Attributes:
        blocks: all of them.
        nodes: where each node is, by what it holds: one that is added again is shared.
    """

    def __init__(self) -> None:
        self.blocks = [bytearray(BLOCK)]
        self.nodes: dict[bytes, int] = {}

    @property
    def image(self) -> bytes:
        return b"".join(self.blocks)

    def add_node(
        self,
        keys: Sequence[int],
        values: Sequence[bytes],
        flags: int,
        *,
        share: bool = True,
        size: int = 8,
        **wrong: int,
    ) -> int:
        """Add a node; return its block number. ``wrong`` replaces fields: nr_entries, max_entries, value_size."""
        size = len(values[0]) if values else size
        most = room(size)
        assert len(keys) == len(values) <= most
        fields = {"nr_entries": len(keys), "max_entries": most, "value_size": size} | wrong
        body = struct.pack("<4I", *(fields[name] for name in ("nr_entries", "max_entries", "value_size")), 0)
        body += struct.pack(f"<{len(keys)}Q", *keys).ljust(8 * most, b"\xa5")  # behind the last there is rubbish
        body = (body + b"".join(values)).ljust(BLOCK - 16, b"\x5a")
        key = struct.pack("<I", flags) + body
        if share and key in self.nodes:
            return self.nodes[key]
        number = len(self.blocks)
        block = bytearray(struct.pack("<2IQ", 0, flags, number) + body)
        seal(block, NODE_XOR)
        self.blocks.append(block)
        self.nodes[key] = number
        return number

    def add_tree(
        self,
        items: Mapping[int, bytes],
        *,
        cut: Cut = lambda _key, _level: False,
        height: int = 1,
        share: bool = True,
        slack: int = 0,
        size: int = 8,
    ) -> int:
        """Add a tree; return its root. Nodes that are there already are shared.

        Args:
            items: what it holds.
            cut: where nodes begin; besides, none is filled beyond its room.
            height: levels at the least; a root with one child makes up for those that are missing.
            share: whether nodes that are there already are used.
            slack: how far below its first key the key of a node in its parent is.
            size: bytes of a value, for a tree that has none.
        """
        level: list[tuple[int, bytes]] = sorted(items.items())
        flags, depth = LEAF, 0
        while True:
            nodes = list(self._fill(level, depth, cut))
            numbers = [
                self.add_node([key for key, _ in node], [value for _, value in node], flags, share=share, size=size)
                for node in nodes
            ]
            depth += 1
            if len(nodes) == 1 and (depth >= height or not items):
                return numbers[0]
            below = slack if depth == 1 else 0  # above the leaves, keys between two nodes are those of leaves
            level = [
                (max(node[0][0] - below, before[-1][0] + 1 if before else 0), struct.pack("<Q", number))
                for before, node, number in zip([[], *nodes], nodes, numbers, strict=False)
            ]
            flags = INTERNAL

    def add_array(self, values: Sequence[bytes], **wrong: int) -> int:
        """Add a dm-array; return its root. ``wrong`` replaces fields of its last block."""
        size = len(values[0])
        most = (BLOCK - 24) // size
        index: dict[int, bytes] = {}
        for first in range(0, len(values), most):
            part = values[first : first + most]
            number = len(self.blocks)
            fields = {"max_entries": most, "nr_entries": len(part), "value_size": size}
            if first + most >= len(values):
                fields |= wrong
            names = ("max_entries", "nr_entries", "value_size")
            header = struct.pack("<4IQ", 0, *(fields[name] for name in names), number)
            block = bytearray((header + b"".join(part)).ljust(BLOCK, b"\xa5"))
            seal(block, ARRAY_XOR)
            self.blocks.append(block)
            index[first // most] = struct.pack("<Q", number)
        return self.add_tree(index)

    @staticmethod
    def _fill(items: Sequence[tuple[int, bytes]], depth: int, cut: Cut) -> Iterable[list[tuple[int, bytes]]]:
        most = room(len(items[0][1]) if items else 8)
        node: list[tuple[int, bytes]] = []
        for key, value in items:
            # An internal node of one child among others would never end to grow in height.
            if len(node) == most or (cut(key, depth) and len(node) >= (1 if depth == 0 else 2)):
                yield node
                node = []
            node.append((key, value))
        yield node


@dataclass(frozen=True)
class Thin:
    """A thin device.

    Attributes:
        mappings: virtual block to data block and time.
        creation_time: the pool's clock then.
        mapped_blocks: what its details say; None: the truth.
        root: of its mappings; None: a tree is made as the other fields say.
        cut: where the nodes of its tree begin.
        height: levels of its tree at the least.
        share: whether its tree uses the nodes of others.
        slack: see `Store.add_tree`.
    """

    mappings: Mapping[int, tuple[int, int]]
    creation_time: int = 0
    mapped_blocks: int | None = None
    root: int | None = None
    cut: Cut = lambda _key, _level: False
    height: int = 1
    share: bool = True
    slack: int = 0


def build_superblock(
    *,
    magic: int = THIN_MAGIC,
    version: int = 2,
    flags: int = 0,
    number: int = 0,
    time: int = 5,
    held_root: int = 0,
    data_blocks: int = 1 << 20,
    mapping_root: int = 1,
    details_root: int = 2,
    data_block_sectors: int = 128,
    metadata_block_sectors: int = 8,
    metadata_blocks: int = 8,
    incompat: int = 0,
) -> bytes:
    """Return a superblock."""
    block = bytearray(BLOCK)
    struct.pack_into("<IQ16xQ2I2Q", block, 4, flags, number, magic, version, time, 7, held_root)
    struct.pack_into("<Q", block, 64, data_blocks)
    struct.pack_into(
        "<2Q2IQ3I",
        block,
        320,
        mapping_root,
        details_root,
        data_block_sectors,
        metadata_block_sectors,
        metadata_blocks,
        0,
        0,
        incompat,
    )
    seal(block, THIN_XOR)
    return bytes(block)


def build_pool(devices: Mapping[int, Thin], *, is_held: bool = False, **fields: int) -> Store:
    """Return the metadata of a pool, with a metadata snapshot of the same state if ``is_held``."""
    store = Store()
    roots: dict[int, bytes] = {}
    details: dict[int, bytes] = {}
    for device, thin in devices.items():
        values = {block: struct.pack("<Q", data << 24 | when) for block, (data, when) in thin.mappings.items()}
        root = thin.root
        if root is None:
            root = store.add_tree(values, cut=thin.cut, height=thin.height, share=thin.share, slack=thin.slack)
        roots[device] = struct.pack("<Q", root)
        count = len(values) if thin.mapped_blocks is None else thin.mapped_blocks
        details[device] = struct.pack("<2Q2I", count, 1, thin.creation_time, thin.creation_time)
    fields = {
        "mapping_root": store.add_tree(roots, share=False),
        "details_root": store.add_tree(details, share=False, size=24),
        "metadata_blocks": len(store.blocks) + is_held,
    } | fields
    if is_held:
        number = len(store.blocks)
        store.blocks.append(bytearray(build_superblock(number=number, **{**fields, "data_blocks": 0})))
        fields["held_root"] = number
    store.blocks[0] = bytearray(build_superblock(**fields))
    return store
