"""Metadata of dm-era, made by hand: any eras and writesets, checksums right.

Source: Linux v6.1, drivers/md/dm-era-target.c. Written apart from lvmsync.formats, see `metadata_store`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.metadata_store import BLOCK, Store, seal

ERA_XOR = 146538381
ERA_MAGIC = 2126579579


@dataclass(frozen=True)
class Bits:
    """A writeset.

    Attributes:
        blocks: which were written.
        nr_bits: how many blocks it knows of.
        root: of its bitset; None: one is made.
        nr_words: of its bitset; None: as many as it needs.
    """

    blocks: frozenset[int]
    nr_bits: int
    root: int | None = None
    nr_words: int | None = None

    def add_to(self, store: Store) -> bytes:
        """Add the bitset; return the value that the writeset tree has for it."""
        number = sum(1 << block for block in self.blocks)
        count = -(-self.nr_bits // 64) if self.nr_words is None else self.nr_words
        words = [struct.pack("<Q", number >> 64 * at & (1 << 64) - 1) for at in range(count)]
        root = self.root
        if root is None:
            root = store.add_array(words) if words else store.add_tree({})
        return struct.pack("<IQ", self.nr_bits, root)


def build_era_superblock(
    *,
    magic: int = ERA_MAGIC,
    version: int = 1,
    number: int = 0,
    flags: int = 0,
    data_block_sectors: int = 8,
    metadata_block_sectors: int = 8,
    nr_blocks: int = 0,
    era: int = 1,
    nr_bits: int = 0,
    current_root: int = 0,
    tree_root: int = 1,
    array_root: int = 2,
    snap: int = 0,
) -> bytes:
    """Return a superblock."""
    block = bytearray(BLOCK)
    struct.pack_into("<IQ16xQI", block, 4, flags, number, magic, version)
    struct.pack_into(
        "<5I4Q", block, 172, data_block_sectors, metadata_block_sectors, nr_blocks, era, nr_bits, current_root,
        tree_root, array_root, snap,
    )  # fmt: skip
    seal(block, ERA_XOR)
    return bytes(block)


def build_era(
    eras: Sequence[int],
    archived: Mapping[int, Bits] | None = None,
    current: Bits | None = None,
    *,
    era: int = 9,
    is_held: bool = False,
    spare: int = 16,
    **fields: int,
) -> Store:
    """Return the metadata of an era device.

    Args:
        eras: the era array.
        archived: writesets that are not digested yet, by era.
        current: of the current era.
        era: the current one.
        is_held: with a metadata snapshot of the same state.
        spare: blocks that nothing uses.
        fields: of the superblock, instead of the right ones.
    """
    store = Store()
    values = [struct.pack("<I", one) for one in eras]
    array_root = store.add_array(values) if values else store.add_tree({})
    sets = {key: bits.add_to(store) for key, bits in (archived or {}).items()}
    shown = {"nr_blocks": len(eras), "era": era, "array_root": array_root}
    shown["tree_root"] = store.add_tree(sets, share=False, size=12)
    if current:
        shown["nr_bits"], shown["current_root"] = struct.unpack("<IQ", current.add_to(store))
    shown |= fields
    store.blocks += [bytearray(BLOCK) for _ in range(spare)]
    if is_held:
        shown["snap"] = len(store.blocks)
        copy = {**shown, "number": shown["snap"], "snap": 0}
        store.blocks.append(bytearray(build_era_superblock(**copy)))
    store.blocks[0] = bytearray(build_era_superblock(**shown))
    return store
