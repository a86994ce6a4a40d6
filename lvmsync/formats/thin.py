"""The metadata of a dm-thin pool: superblock, device details, mappings, and how two thin devices differ.

Source: Linux v6.1, drivers/md/dm-thin-metadata.c and dm-thin.c (status and table lines). A mapping leads
from a virtual block of a thin device to a data block of the pool, and says when it was made (the pool's
clock, which rises by one at each snapshot). A virtual block without a mapping reads as zeros.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import MAX_SIZE, ChangeMap, MapBuilder, Offsets
from lvmsync.formats.pdata import (
    BLOCK_SIZE,
    SECTOR,
    BTree,
    Level,
    ReadBlocks,
    check_superblock,
    damaged,
    unshared_leaves,
)

THIN_SUPERBLOCK_MAGIC = 27022010
THIN_VERSIONS = (1, 2)
"""Of the same layout; the kernel writes 2, and thin_restore what it is told."""
SUPERBLOCK_LOCATION = 0
NEEDS_CHECK = 1  # THIN_METADATA_NEEDS_CHECK_FLAG
MIN_DATA_BLOCK, MAX_DATA_BLOCK = 128, 2097152  # sectors: 64 KiB, 1 GiB (dm-thin.c, DATA_DEV_BLOCK_SIZE_*)

_SUPERBLOCK_XOR = 160774
_SUPERBLOCK = struct.Struct("<2IQ16sQ2I2Q128s128s2Q2IQ3I")
_DETAILS = np.dtype(
    [("mapped_blocks", "<u8"), ("transaction_id", "<u8"), ("creation_time", "<u4"), ("snapshotted_time", "<u4")]
)
_NR_BLOCKS = struct.Struct("<Q")  # the first field of a space map's root (struct disk_sm_root)
_TIME_BITS = np.uint64(24)
_MAX_BLOCKS = (255 * ((1 << 14) - 64)) // (BLOCK_SIZE // 4096)  # THIN_METADATA_MAX_SECTORS, in blocks

_STATUS = re.compile(r"(\d+) (\d+)/(\d+) (\d+)/(\d+) (-|\d+) (\S+)(?: (.*))?")
_TABLE = re.compile(r"(\d{1,9}):(\d{1,9}) (\d{1,9}):(\d{1,9}) (\d{1,10}) .*")
_THIN_TABLE = re.compile(r"(\d{1,9}):(\d{1,9}) (\d{1,8})(?: .*)?")


class Superblock(NamedTuple):
    """``struct thin_disk_superblock``: block 0, or the copy of it that is a metadata snapshot."""

    csum: int
    flags: int
    blocknr: int
    uuid: bytes
    magic: int
    version: int
    time: int
    trans_id: int
    held_root: int
    data_space_map_root: bytes
    metadata_space_map_root: bytes
    data_mapping_root: int
    device_details_root: int
    data_block_size: int  # sectors
    metadata_block_size: int  # sectors
    metadata_nr_blocks: int
    compat_flags: int
    compat_ro_flags: int
    incompat_flags: int

    @classmethod
    def parse(cls, block: bytes | memoryview, number: int = SUPERBLOCK_LOCATION) -> Self:
        """Decode and check a superblock.

        Args:
            block: 4096 bytes.
            number: of the block that it was read from.

        Raises:
            FormatError: it is none, damaged, or of an unknown version.
            ChangesLost: the kernel asks for a check of the metadata.
        """
        check_superblock(block, number, magic=THIN_SUPERBLOCK_MAGIC, xor=_SUPERBLOCK_XOR, what="thin-pool")
        found = cls._make(_SUPERBLOCK.unpack_from(block))
        if found.version not in THIN_VERSIONS or found.incompat_flags:
            raise damaged(
                number,
                f"version {found.version} with incompatible features {found.incompat_flags:#x}, not 1 or 2 with"
                " none: not known to this lvmsync",
            )
        if found.flags & NEEDS_CHECK:
            raise ChangesLost(
                "the thin pool's metadata is marked as needing a check: run 'lvconvert --repair' on the pool first"
            )
        size = found.data_block_size
        if not MIN_DATA_BLOCK <= size <= MAX_DATA_BLOCK or size % MIN_DATA_BLOCK:
            raise damaged(number, f"a data block of {size} sectors; the kernel allows multiples of 128: it is damaged")
        if found.metadata_block_size * SECTOR != BLOCK_SIZE:
            raise damaged(number, f"metadata blocks of {found.metadata_block_size} sectors, not 8: it is damaged")
        return found

    @property
    def data_blocks(self) -> int:
        """How many data blocks the pool has; 0 in a metadata snapshot, where the kernel leaves that out."""
        count: int = _NR_BLOCKS.unpack_from(self.data_space_map_root)[0]
        return count

    @property
    def chunk_size(self) -> int:
        """Bytes of a data block."""
        return self.data_block_size * SECTOR


@dataclass(frozen=True)
class Details:
    """What the pool knows of one thin device (``struct disk_device_details``).

    Attributes:
        mapped_blocks: how many virtual blocks are mapped.
        transaction_id: LVM's number of the change that made it.
        creation_time: the pool's clock when it was made.
        snapshotted_time: the pool's clock when its last snapshot was made.
    """

    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int


@dataclass(frozen=True)
class Delta:
    """How the head, a thin device, differs from the base.

    Attributes:
        changes: bytes whose mapping is another; clipped to the device.
        holes: those of them that are not mapped any more, and read as zeros.
        base_is_written: the base has mappings that were made after it was: a snapshot was written to.
    """

    changes: ChangeMap
    holes: ChangeMap
    base_is_written: bool


class Pool:
    """The metadata of one pool, as one superblock shows it: the live one, or that of a metadata snapshot.

    Attributes:
        superblock: checked.
    """

    def __init__(self, read: ReadBlocks, nr_blocks: int, superblock: Superblock, data_blocks: int) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            read: gives the metadata's blocks.
            nr_blocks: how many there are.
            superblock: where its trees begin.
            data_blocks: how many data blocks the pool has; the live superblock tells (a pool never shrinks).

        Raises:
            FormatError: the metadata is shorter than its superblock says.
        """
        if superblock.metadata_nr_blocks > nr_blocks:
            raise FormatError(
                f"thin metadata: {nr_blocks} blocks, not {superblock.metadata_nr_blocks} as the superblock says: it is"
                " cut short"
            )
        self.superblock = superblock
        self._read = read
        self._nr_blocks = nr_blocks
        self._data_blocks = data_blocks

    def devices(self, most: int) -> list[int]:
        """Return the numbers of the pool's thin devices, ``most`` of them at the most."""
        found: list[int] = []
        for keys, _ in self._tree(self.superblock.device_details_root, _DETAILS).items():
            found += keys[: most - len(found)].tolist()
            if len(found) >= most:
                break
        return found

    def details(self, device: int) -> Details | None:
        """Return what the pool knows of a thin device; None if there is no such device.

        Raises:
            FormatError: the details are damaged.
        """
        value = self._tree(self.superblock.device_details_root, _DETAILS).find(device)
        return None if value is None else Details(*map(int, value.tolist()))

    def last_mapping(self, device: int) -> int | None:
        """Return the byte at which the last mapping of a thin device begins; None where it has none.

        Raises:
            FormatError: there is no such device, or its mappings are damaged.
        """
        tree, _ = self._mappings(device)
        last = tree.last_key()
        return None if last is None else last * self.superblock.chunk_size

    def mapped(self, device: int, size: int) -> ChangeMap:
        """Return which bytes of a thin device of ``size`` bytes are mapped.

        Raises:
            FormatError: there is no such device, or its mappings are damaged.
        """
        tree, details = self._mappings(device)
        mapped = MapBuilder()
        count = 0
        for keys, _, _ in self._decoded(tree, tree.leaf_level()):
            count += len(keys)
            mapped.add_blocks(self._within(keys, size), self.superblock.chunk_size)
        self._require_count(device, count, details.mapped_blocks)
        return mapped.build().clip(size)

    def diff(self, base: int, head: int, size: int) -> Delta:
        """Return how thin device ``head`` differs from ``base``; reads only what they do not share.

        Args:
            base: number of the older device.
            head: number of the newer one.
            size: bytes of the head; what is behind that is left out.

        Raises:
            FormatError: one is not there, or its mappings are damaged.
        """
        base_tree, base_details = self._mappings(base)
        head_tree, head_details = self._mappings(head)
        changes, holes = MapBuilder(), MapBuilder()
        counts = [0, 0]
        is_written = False
        if base_tree.root != head_tree.root:
            base_level, head_level = unshared_leaves(base_tree, head_tree)
            old, new = self._decoded(base_tree, base_level), self._decoded(head_tree, head_level)
            for was, now in _in_step(old, new):
                counts[0] += len(was.keys)
                counts[1] += len(now.keys)
                is_written = is_written or bool((was.times >= base_details.creation_time).any())
                changed, gone = _compare(was, now)
                changes.add_blocks(self._within(changed, size), self.superblock.chunk_size)
                holes.add_blocks(self._within(gone, size), self.superblock.chunk_size)
        # What both share is in both counts.
        self._require_count(head, counts[1] - counts[0], head_details.mapped_blocks - base_details.mapped_blocks)
        return Delta(changes.build().clip(size), holes.build().clip(size), is_written)

    def _tree(self, root: int, value: np.dtype[np.void] | np.dtype[np.uint64]) -> BTree:
        return BTree(self._read, self._nr_blocks, root, value)

    def _mappings(self, device: int) -> tuple[BTree, Details]:
        value_type = np.dtype(np.uint64)
        root = self._tree(self.superblock.data_mapping_root, value_type).find(device)
        details = self.details(device)
        if root is None or details is None:
            raise FormatError(f"thin metadata: thin device {device} has no mappings, or no details: it is damaged")
        return self._tree(int(root), value_type), details

    def _decoded(self, tree: BTree, level: Level) -> Iterator[_Mappings]:
        limit = np.uint64(self._data_blocks)
        for keys, values in tree.leaves(level):
            blocks = values >> _TIME_BITS
            if (blocks >= limit).any():
                block = int(blocks[int((blocks >= limit).argmax())])
                raise damaged(
                    tree.root, f"a mapping to data block {block}, and the pool has {int(limit)}: it is damaged"
                )
            yield _Mappings(keys, blocks, values & np.uint64((1 << 24) - 1))

    def _within(self, keys: Offsets, size: int) -> Offsets:
        """Return those of some ascending virtual blocks that begin before ``size``."""
        if len(keys) and int(keys[-1]) >= MAX_SIZE // self.superblock.chunk_size:
            raise FormatError(f"thin metadata: a mapping of virtual block {int(keys[-1])}: no device is so large")
        return keys[: int(np.searchsorted(keys, np.uint64(-(-size // self.superblock.chunk_size))))]

    def _require_count(self, device: int, found: int, expected: int) -> None:
        if found != expected:
            raise FormatError(
                f"thin metadata: thin device {device} has {found - expected:+} mappings more or less than its details"
                " say: it is damaged; run thin_check on the pool"
            )


class _Mappings(NamedTuple):
    """Mappings in ascending order: virtual blocks, their data blocks, and when each was made."""

    keys: Offsets
    blocks: Offsets
    times: Offsets

    def split(self, last: int) -> tuple[_Mappings, _Mappings]:
        """Return those up to virtual block ``last``, and the others."""
        at = int(np.searchsorted(self.keys, np.uint64(last), "right"))
        return _Mappings(*(part[:at] for part in self)), _Mappings(*(part[at:] for part in self))


_NO_MAPPINGS = _Mappings(*[np.empty(0, np.uint64)] * 3)


def _in_step(one: Iterator[_Mappings], other: Iterator[_Mappings]) -> Iterator[tuple[_Mappings, _Mappings]]:
    """Yield pairs of pieces that cover the same range of virtual blocks each, in order."""
    sides = [one, other]
    pieces = [_NO_MAPPINGS, _NO_MAPPINGS]
    while True:
        for index, side in enumerate(sides):
            if not len(pieces[index].keys):
                pieces[index] = next(side, _NO_MAPPINGS)
        lasts = [int(piece.keys[-1]) for piece in pieces if len(piece.keys)]
        if not lasts:
            return
        # A side without a piece has ended, so that the other one's piece is all there is up to its last.
        (was, was_left), (now, now_left) = (piece.split(min(lasts)) for piece in pieces)
        pieces = [was_left, now_left]
        yield was, now


def _compare(was: _Mappings, now: _Mappings) -> tuple[Offsets, Offsets]:
    """Return the virtual blocks that changed, and those of them that are not mapped any more; both ascend."""
    if np.array_equal(was.keys, now.keys):
        return now.keys[was.blocks != now.blocks], now.keys[:0]
    if not len(was.keys):
        return now.keys, was.keys
    if not len(now.keys):
        return was.keys, was.keys
    at = np.minimum(np.searchsorted(was.keys, now.keys), len(was.keys) - 1)
    is_in_both = was.keys[at] == now.keys
    is_same = is_in_both & (was.blocks[at] == now.blocks)
    is_gone = np.ones(len(was.keys), bool)
    is_gone[at[is_in_both]] = False
    gone = was.keys[is_gone]
    changed = now.keys[~is_same]
    if len(gone):
        changed = np.concatenate([changed, gone])
        changed.sort(kind="stable")  # merges two sorted runs
    return changed, gone


@dataclass(frozen=True)
class PoolStatus:
    """The status of a ``thin-pool`` target that works.

    Attributes:
        transaction_id: LVM's.
        data_blocks: how many data blocks the pool has.
        used_data_blocks: how many of them are mapped.
        metadata_blocks: how many metadata blocks (4 KiB each) the pool has.
        used_metadata_blocks: how many of those are in use.
        held_root: block of the metadata snapshot; None where none is reserved.
        mode: "rw", "ro" or "out_of_data_space".
    """

    transaction_id: int
    data_blocks: int
    used_data_blocks: int
    metadata_blocks: int
    used_metadata_blocks: int
    held_root: int | None
    mode: str


class PoolTable(NamedTuple):
    """The table of a ``thin-pool`` target.

    Attributes:
        metadata: major and minor number of the metadata device.
        data: of the data device.
        block_sectors: size of a data block, in sectors.
    """

    metadata: tuple[int, int]
    data: tuple[int, int]
    block_sectors: int


def parse_pool_status(text: str, name: str) -> PoolStatus:
    """Read the status of a ``thin-pool`` target, as in ``1 15/1024 32/1600 - rw ...``.

    Raises:
        ChangesLost: the kernel says that the pool failed, or that its metadata needs a check.
        FormatError: none of what the kernel writes.
    """
    text = text.strip()
    if text in ("Fail", "Error"):
        raise ChangesLost(f"{name} has failed (status '{text}'): repair the pool first", device=name)
    match = _STATUS.fullmatch(text)
    if not match:
        raise FormatError(f"{name}: status '{text}'; expected ID USED/TOTAL USED/TOTAL ROOT MODE", device=name)
    if "needs_check" in (match[8] or "").split():
        raise ChangesLost(
            f"{name}: its metadata needs a check: run 'lvconvert --repair' on the pool first", device=name
        )
    transaction_id, used_metadata, metadata, used_data, data = map(int, match.group(1, 2, 3, 4, 5))
    held_root = None if match[6] == "-" else int(match[6])
    return PoolStatus(transaction_id, data, used_data, metadata, used_metadata, held_root, match[7])


def parse_pool_table(text: str, name: str) -> PoolTable:
    """Read the table of a ``thin-pool`` target, as in ``254:0 254:1 128 0 ...``.

    Raises:
        FormatError: none of what the kernel writes.
    """
    match = _TABLE.fullmatch(text.strip() + " ")
    if not match:
        raise FormatError(f"{name}: table '{text.strip()}'; expected METADATA DATA BLOCK LOW-WATER", device=name)
    a, b, c, d, block_sectors = map(int, match.group(1, 2, 3, 4, 5))
    return PoolTable((a, b), (c, d), block_sectors)


def parse_thin_table(text: str, name: str) -> tuple[tuple[int, int], int]:
    """Return the number of the pool's device, and the thin device's number in it, in a ``thin`` target's table.

    Raises:
        FormatError: none of what the kernel writes.
    """
    match = _THIN_TABLE.fullmatch(text.strip())
    if not match:
        raise FormatError(f"{name}: table '{text.strip()}'; expected POOL ID", device=name)
    return (int(match[1]), int(match[2])), int(match[3])
