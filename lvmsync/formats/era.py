"""The metadata of dm-era: superblock, era array, writesets, and which blocks were written since an era.

Source: Linux v6.1, drivers/md/dm-era-target.c. An era is a number that only grows. Blocks written in the
current era are bits of its writeset. When an era ends its writeset is archived, and later digested: for
each bit the block's number in the era array becomes that era. Until that is done the writeset stays in a
tree, so that what was written since an era is in array and tree together, never in one of them alone.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import MAX_SIZE, ChangeMap, MapBuilder, Offsets
from lvmsync.formats.pdata import BLOCK_SIZE, SECTOR, BTree, ReadBlocks, check_superblock, damaged, read_array

SUPERBLOCK_MAGIC = 2126579579
ERA_VERSION = 1  # MIN_ERA_VERSION and MAX_ERA_VERSION
SUPERBLOCK_LOCATION = 0
MIN_BLOCK_SIZE = 8  # sectors; a data block is a multiple of it

_SUPERBLOCK_XOR = 146538381
_SUPERBLOCK = struct.Struct("<2IQ16sQI128s5I4Q")
_WRITESET = np.dtype([("nr_bits", "<u4"), ("root", "<u8")])  # struct writeset_disk, packed
_BITS_PER_WORD = 64
_ERAS_PER_BLOCK, _WORDS_PER_BLOCK = (BLOCK_SIZE - 24) // 4, (BLOCK_SIZE - 24) // 8
_MAX_METADATA_BLOCKS = 255 * ((1 << 14) - 64)  # DM_SM_METADATA_MAX_BLOCKS, dm-space-map-metadata.h

_STATUS = re.compile(r"(\d{1,9}) (\d{1,19})/(\d{1,19}) (\d{1,10}) (-|\d{1,19})")
_TABLE = re.compile(r"(\d{1,9}):(\d{1,9}) (\d{1,9}):(\d{1,9}) (\d{1,10})")

FULL = 0.6
"""How much of the metadata may be in use before one should worry: a digestion or a metadata snapshot needs the rest."""


class Superblock(NamedTuple):
    """``struct superblock_disk``: block 0, or the copy of it that is a metadata snapshot."""

    csum: int
    flags: int
    blocknr: int
    uuid: bytes
    magic: int
    version: int
    metadata_space_map_root: bytes
    data_block_size: int  # sectors
    metadata_block_size: int  # sectors
    nr_blocks: int
    current_era: int
    current_writeset_nr_bits: int
    current_writeset_root: int
    writeset_tree_root: int
    era_array_root: int
    metadata_snap: int

    @classmethod
    def parse(cls, block: bytes | memoryview, number: int = SUPERBLOCK_LOCATION) -> Self:
        """Decode and check a superblock.

        Args:
            block: 4096 bytes.
            number: of the block that it was read from.

        Raises:
            FormatError: it is none, damaged, or of an unknown version.
        """
        check_superblock(block, number, magic=SUPERBLOCK_MAGIC, xor=_SUPERBLOCK_XOR, what="era")
        found = cls._make(_SUPERBLOCK.unpack_from(block))
        if found.version != ERA_VERSION:
            raise damaged(number, f"version {found.version}, not {ERA_VERSION}: not known to this lvmsync")
        if found.metadata_block_size * SECTOR != BLOCK_SIZE:
            raise damaged(number, f"metadata blocks of {found.metadata_block_size} sectors, not 8: it is damaged")
        size = found.data_block_size
        if size < MIN_BLOCK_SIZE or size % MIN_BLOCK_SIZE or found.nr_blocks * size * SECTOR >= MAX_SIZE:
            raise damaged(
                number,
                f"{found.nr_blocks} blocks of {size} sectors; the kernel allows multiples of {MIN_BLOCK_SIZE}, and no"
                " device is larger than 8 EiB: it is damaged",
            )
        return found

    @property
    def granularity(self) -> int:
        """Bytes of a data block."""
        return self.data_block_size * SECTOR


class Writeset(NamedTuple):
    """``struct writeset_disk``: a bit for each block, set if it was written in that era."""

    nr_bits: int
    root: int


class Metadata:
    """The metadata of one era device, as one superblock shows it.

    Attributes:
        superblock: checked.
    """

    def __init__(self, read: ReadBlocks, nr_blocks: int, superblock: Superblock, *, is_snapshot: bool) -> None:
        """Check what can be checked without reading; nothing is read yet.

        Args:
            read: gives the metadata's blocks.
            nr_blocks: how many there are.
            superblock: where its trees begin.
            is_snapshot: whether that is a metadata snapshot. The current writeset of one is that of the era
                which began with it: empty, not kept, and overwritten soon, so it is not read.

        Raises:
            FormatError: the metadata is too short for so many blocks.
        """
        if -(-superblock.nr_blocks // _ERAS_PER_BLOCK) > nr_blocks:
            raise FormatError(
                f"era metadata: {nr_blocks} blocks cannot hold the eras of {superblock.nr_blocks} data blocks: it is"
                " cut short, or damaged"
            )
        self.superblock = superblock
        self._read = read
        self._nr_blocks = nr_blocks
        self._is_snapshot = is_snapshot

    @property
    def is_open(self) -> bool:
        """Whether the current era has a writeset: the device is in use, or was not shut down."""
        return bool(self.superblock.current_writeset_root) and not self._is_snapshot

    def writesets(self) -> dict[int, Writeset]:
        """Return the writesets that are not digested yet, by era, the current one included.

        Raises:
            FormatError: one is of an era that has not been, or they cannot all fit into the metadata.
        """
        found: dict[int, Writeset] = {}
        root, era = self.superblock.writeset_tree_root, self.superblock.current_era
        # An era's writeset is archived before the next era begins; only while the device is closed there is none.
        last = era if not self.superblock.current_writeset_root else era - 1
        blocks = 0
        for keys, values in BTree(self._read, self._nr_blocks, root, _WRITESET).items():
            for key, nr_bits, at in zip(
                keys.tolist(), values["nr_bits"].tolist(), values["root"].tolist(), strict=True
            ):
                if key > last:
                    raise damaged(root, f"a writeset of era {key}, and the current era is {era}: it is damaged")
                found[key] = Writeset(nr_bits, at)
                blocks += 1 + _bitset_blocks(nr_bits)
                self._require_room(root, blocks)
        if self.is_open:
            bits = self.superblock.current_writeset_nr_bits
            found[era] = Writeset(bits, self.superblock.current_writeset_root)
            self._require_room(root, blocks + _bitset_blocks(bits))
        return found

    def changes(self, since: int, size: int) -> ChangeMap:
        """Return which bytes were written in era ``since`` or later; era 0 gives everything.

        Args:
            since: the first era that counts.
            size: bytes of the device; its last block may be short.

        Raises:
            FormatError: the metadata is damaged, or of a device of another size.
        """
        block, count = self.superblock.granularity, self.superblock.nr_blocks
        if -(-size // block) != count:
            raise FormatError(
                f"era metadata of {count} blocks of {block} bytes, and the device has {size} bytes: they do not belong"
                " together, or the device was resized and not used since"
            )
        bits = self.read_bits(writeset for era, writeset in self.writesets().items() if era >= since)
        changed = MapBuilder()
        for first, eras in self.eras():
            end = first + len(eras)
            flags = np.zeros(len(eras) + 2, bool)
            begin = first // 8
            piece = np.unpackbits(bits[begin : -(-end // 8)], bitorder="little")[first - begin * 8 : end - begin * 8]
            np.logical_or(eras >= since, piece.view(bool), out=flags[1:-1])
            edges = (np.flatnonzero(flags[1:] != flags[:-1]) + first).astype(np.uint64) * np.uint64(block)
            changed.add(edges[::2], edges[1::2])
        return changed.build().clip(size)

    def eras(self) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
        """Yield the era array piece by piece: the number of a piece's first block, and the eras of its blocks.

        An era is that of the last write that has been digested; 0 where there was none.

        Raises:
            FormatError: the array is damaged, or shorter than the device.
        """
        first, current = 0, self.superblock.current_era
        root = self.superblock.era_array_root
        for values in read_array(self._read, self._nr_blocks, root, self.superblock.nr_blocks, "<u4"):
            eras = values.astype(np.uint32, copy=False)
            if int(eras.max()) > current:
                raise damaged(root, f"a block written in era {int(eras.max())}, and the current era is {current}")
            yield first, eras
            first += len(eras)

    def read_bits(self, writesets: Iterable[Writeset]) -> npt.NDArray[np.uint8]:
        """Return a bit for each block, and some more: whether one of the writesets has it.

        Raises:
            FormatError: a writeset is damaged.
        """
        count = self.superblock.nr_blocks
        bits = np.zeros(-(-count // _BITS_PER_WORD) * 8, np.uint8)
        for writeset in writesets:
            self._add_bitset(writeset, bits)
            if writeset.nr_bits < count:
                # The device grew since, and nothing tells of its new part: it counts as written.
                _set_bits(bits, writeset.nr_bits, count)
        return bits

    def _add_bitset(self, writeset: Writeset, bits: npt.NDArray[np.uint8]) -> None:
        words = bits.view("<u8")
        at, count = 0, -(-writeset.nr_bits // _BITS_PER_WORD)
        for values in read_array(self._read, self._nr_blocks, writeset.root, count, "<u8"):
            found = values.astype("<u8", copy=False)
            used = max(0, min(len(found), len(words) - at))  # a device that shrank has fewer blocks than the set bits
            words[at : at + used] |= found[:used]
            at += len(found)
            left = writeset.nr_bits - (at - 1) * _BITS_PER_WORD
            if left < _BITS_PER_WORD and int(found[-1]) >> left:
                raise damaged(writeset.root, f"a writeset of {writeset.nr_bits} bits with one behind its end")

    def _require_room(self, root: int, blocks: int) -> None:
        # No two writesets share a block; so what would take for ever to read is damaged.
        if blocks > self._nr_blocks:
            raise damaged(root, f"writesets of more than the {self._nr_blocks} blocks of the metadata: it is damaged")


def _bitset_blocks(nr_bits: int) -> int:
    """Return how many blocks the words of a bitset take."""
    return -(-nr_bits // (_BITS_PER_WORD * _WORDS_PER_BLOCK))


def _set_bits(bits: npt.NDArray[np.uint8], first: int, end: int) -> None:
    """Set a range of bits, which is not empty."""
    flags = np.unpackbits(bits[first // 8 : -(-end // 8)], bitorder="little")
    flags[first % 8 : first % 8 + end - first] = 1
    bits[first // 8 : -(-end // 8)] = np.packbits(flags, bitorder="little")


@dataclass(frozen=True)
class EraStatus:
    """The status of an ``era`` target that works.

    Attributes:
        used: metadata blocks in use.
        total: metadata blocks.
        era: the current one.
        held_root: block of the metadata snapshot; None where none is taken.
    """

    used: int
    total: int
    era: int
    held_root: int | None

    @property
    def share(self) -> float:
        """How full the metadata is: 0 to 1."""
        return self.used / self.total if self.total else 1.0


def parse_status(text: str, name: str) -> EraStatus:
    """Read the status of an ``era`` target, as in ``8 11/6144 7 -``.

    Raises:
        ChangesLost: the kernel says that the target failed.
        FormatError: none of what the kernel writes.
    """
    text = text.strip()
    if text in ("Error", "Fail"):
        raise ChangesLost(
            f"{name} has failed (status '{text}'): its metadata is full or damaged, and writes are not tracked any"
            " more; compare the whole device instead (compare:)",
            device=name,
        )
    match = _STATUS.fullmatch(text)
    if not match or int(match[1]) * SECTOR != BLOCK_SIZE:
        raise FormatError(f"{name}: status '{text}'; expected 8 USED/TOTAL ERA SNAPSHOT", device=name)
    held = None if match[5] == "-" else int(match[5])
    return EraStatus(int(match[2]), int(match[3]), int(match[4]), held)


class EraTable(NamedTuple):
    """The table of an ``era`` target.

    Attributes:
        metadata: number of the metadata device.
        origin: number of the device below.
        granularity: bytes of a block.
    """

    metadata: tuple[int, int]
    origin: tuple[int, int]
    granularity: int


def parse_table(text: str, name: str) -> EraTable:
    """Read the table of an ``era`` target, as in ``98:16 254:0 128``.

    Raises:
        FormatError: none of what the kernel writes.
    """
    match = _TABLE.fullmatch(text.strip())
    if not match:
        raise FormatError(f"{name}: table '{text.strip()}'; expected METADATA ORIGIN GRANULARITY", device=name)
    a, b, c, d, sectors = map(int, match.groups())
    return EraTable((a, b), (c, d), sectors * SECTOR)


@dataclass(frozen=True)
class Plan:
    """How large the metadata of an era device must be, in blocks of 4 KiB.

    Attributes:
        nr_blocks: data blocks.
        array_blocks: of one era array (A).
        writeset_blocks: of one writeset (W).
        idle: what an idle device takes.
        least: what it may need: one digestion rewrites the whole array while the old one may not be used
            again, and a metadata snapshot keeps a third; some writesets wait to be digested.
        advised: so that ``least`` is no more than the share that status warns of (`FULL`).
        in_print: what the rule of thumb that is in print gives: 2.5E-6 of the device and 128 KiB, for blocks of
            2 MiB. It pays for little more than one array, and does not know of smaller blocks.
    """

    nr_blocks: int
    array_blocks: int
    writeset_blocks: int
    idle: int
    least: int
    advised: int
    in_print: int

    @property
    def is_possible(self) -> bool:
        """Whether the kernel can use metadata of that size."""
        return self.least <= _MAX_METADATA_BLOCKS


def plan_metadata(size: int, granularity: int) -> Plan:
    """Return how large the metadata must be for a device of ``size`` bytes in blocks of ``granularity`` bytes."""
    count = -(-size // granularity)
    array, writeset = -(-count // _ERAS_PER_BLOCK), _bitset_blocks(count)
    least = 3 * array + 6 * writeset + 32
    return Plan(
        nr_blocks=count,
        array_blocks=array,
        writeset_blocks=writeset,
        idle=array + writeset + 9,
        least=least,
        advised=-(-least * 5 // 3),
        in_print=-(-(size * 25 // 10**7 + (128 << 10)) // BLOCK_SIZE),
    )


def sample_eras(metadata: Metadata, since: int, most: int, seed: int) -> tuple[Offsets, Offsets]:
    """Return some blocks that were last written before era ``since``, and in which era each was.

    While nothing but the era device changes its metadata, a block that is not among the changes since then
    keeps its era: so a later look at these blocks tells whether the history is still the same.

    Args:
        metadata: where they are.
        since: the era that the next changes will be asked for.
        most: how many blocks, at the most; half of them such that were written, where there are so many.
        seed: of the choice, which is the same for the same seed.
    """
    chance = np.random.default_rng(seed)
    count = metadata.superblock.nr_blocks
    picked = [np.empty(0, np.uint64)]
    for first, eras in metadata.eras():
        share = most // 2 * len(eras) // count
        for is_wanted in (eras > 0, eras == 0):
            found = np.flatnonzero(is_wanted)
            chosen = found if len(found) <= share else found[chance.integers(0, len(found), share)]
            picked.append((chosen + first).astype(np.uint64))
    return look_up_eras(metadata, np.unique(np.concatenate(picked)), since)


def look_up_eras(metadata: Metadata, blocks: Offsets, since: int) -> tuple[Offsets, Offsets]:
    """Return those of ``blocks`` (ascending) that were last written before era ``since``, and the era of each.

    Raises:
        FormatError: the metadata is damaged.
    """
    blocks = blocks[: int(np.searchsorted(blocks, np.uint64(metadata.superblock.nr_blocks)))]
    newest = np.zeros(len(blocks), np.uint64)
    for first, eras in metadata.eras():
        begin, end = np.searchsorted(blocks, np.array([first, first + len(eras)], np.uint64)).tolist()
        newest[begin:end] = eras[(blocks[begin:end] - np.uint64(first)).astype(np.intp)]
    for era, writeset in metadata.writesets().items():
        bits = metadata.read_bits([writeset])
        is_set = (bits[(blocks >> np.uint64(3)).astype(np.intp)] >> (blocks & np.uint64(7)).astype(np.uint8)) & 1
        newest = np.where(is_set, np.maximum(newest, np.uint64(era)), newest)
    keep = newest < since
    return blocks[keep], newest[keep]
