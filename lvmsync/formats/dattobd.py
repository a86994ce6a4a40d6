"""The COW file of dattobd and elastio-snap: its header, and the index that tells what changed.

Source: dattobd 0.12.1 and elastio-snap 0.10.15, run on Linux 6.1 and 5.10 (x86-64); see docs/formats/dattobd.md.
Little-endian. A header of 4096 bytes; the index, a u64 for each 4096 bytes of the device, in sections of 4096
entries; then, in snapshot mode, the datastore: blocks of old content, which the index points at.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

import numpy as np

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import ChangeMap, MapBuilder, Offsets

COW_MAGIC = 4776
COW_CLEAN = 1
COW_INDEX_ONLY = 2
COW_VMALLOC_UPPER = 4  # how the driver got its memory; nothing for a reader
COW_BLOCK_SIZE = 4096
COW_HEADER_SIZE = 4096
COW_SECTION_SIZE = 4096  # entries
ENTRY_SIZE = 8
VERSIONS = (0, 1)
HEADER_BYTES = 64
"""Bytes of the header that hold something."""

INSTEAD = "compare the whole device ('compare:')"
"""What to do when a COW file does not know the changes."""

_COW_HEADER = struct.Struct("<2I3Q16s2Q")
_LAST_SEQID = (1 << 64) - 1  # none follows it
_KNOWN_FLAGS = COW_CLEAN | COW_INDEX_ONLY | COW_VMALLOC_UPPER
_SECTION_BYTES = COW_SECTION_SIZE * ENTRY_SIZE


class Header(NamedTuple):
    """``struct cow_header``, at byte 0 of the file."""

    magic: int
    flags: int
    fpos: int  # blocks of 4096 bytes from the start of the file: where the datastore goes on
    fsize: int  # bytes that the file may have; elastio-snap leaves it as it was when it cuts the file short
    seqid: int
    raw_uuid: bytes
    version: int
    nr_changed_blocks: int  # only of version 1

    @classmethod
    def parse(cls, buf: bytes | memoryview) -> Self:
        """Decode and check the header at the start of ``buf``; whether it is clean is asked by `require_clean`.

        Raises:
            FormatError: not a COW file, or of a kind that is not known.
        """
        if len(buf) < HEADER_BYTES:
            raise FormatError(f"COW file header: {len(buf)} bytes, not {HEADER_BYTES}: is this a COW file?")
        header = cls._make(_COW_HEADER.unpack(buf[:HEADER_BYTES]))
        if header.magic != COW_MAGIC:
            raise FormatError(f"COW file byte 0: magic {header.magic}, not {COW_MAGIC}: this is no COW file", offset=0)
        if header.flags & ~_KNOWN_FLAGS:
            raise FormatError(
                f"COW file byte 4: flags {header.flags:#x}, of which only {_KNOWN_FLAGS:#x} are known to this lvmsync",
                offset=4,
            )
        if header.version not in VERSIONS:
            raise FormatError(
                f"COW file byte 48: version {header.version}, not 0 or 1: not known to this lvmsync", offset=48
            )
        if not 0 < header.seqid < _LAST_SEQID:
            raise FormatError(
                f"COW file byte 24: sequence number {header.seqid}, and the drivers count from 1: it is damaged",
                offset=24,
            )
        return header

    @property
    def uuid(self) -> str:
        """The series of snapshots that it belongs to: 32 hex digits, as the drivers print it."""
        return self.raw_uuid.hex()

    @property
    def is_clean(self) -> bool:
        """Whether it was closed in order, so that header and index are whole."""
        return bool(self.flags & COW_CLEAN)

    @property
    def is_incremental(self) -> bool:
        """Whether it only tells what changed, and keeps no old content any more."""
        return bool(self.flags & COW_INDEX_ONLY)

    @property
    def has_count(self) -> bool:
        """Whether it says how many blocks changed."""
        return self.version >= 1

    def require_clean(self) -> None:
        """Raise ChangesLost unless the file was closed in order."""
        if not self.is_clean:
            was = "opened again after it was clean, and" if self.is_incremental else "in use, or"
            raise ChangesLost(
                f"COW file byte 4: flags {self.flags:#x} without CLEAN: it was {was} not closed since, so its index is"
                f" not whole; {INSTEAD}, or run 'lvmsync dattobd to-snapshot', which completes it, if it is tracked",
                offset=4,
            )


def count_sections(size: int) -> int:
    """Return how many sections the index has, of a device of ``size`` bytes."""
    return -(-(size // COW_BLOCK_SIZE) // COW_SECTION_SIZE)


def data_offset(sections: int) -> int:
    """Return the byte of the file where an index of so many sections ends."""
    return COW_HEADER_SIZE + sections * _SECTION_BYTES


class Geometry(NamedTuple):
    """Where the index lies in one file.

    Attributes:
        size: bytes of the device, or the most that it can have.
        is_exact: whether that is its size.
        sections: of the index.
        index_bytes: that the file has of them, from byte 4096 on.
    """

    size: int
    is_exact: bool
    sections: int
    index_bytes: int

    @property
    def blocks(self) -> int:
        """How many blocks the device has, a shorter one at its end included."""
        return -(-self.size // COW_BLOCK_SIZE)

    @property
    def first_block(self) -> int:
        """The block of the file where the datastore begins."""
        return data_offset(self.sections) // COW_BLOCK_SIZE

    @property
    def tail(self) -> ChangeMap:
        """The device's last block, if it is a short one."""
        rest = self.size % COW_BLOCK_SIZE
        return ChangeMap.from_extents([(self.size - rest, rest)])

    @property
    def has_tail_entry(self) -> bool:
        """Whether the index has an entry for a short last block: the drivers count whole blocks only."""
        return self.blocks <= self.sections * COW_SECTION_SIZE


def locate_index(header: Header, file_size: int, size: int | None) -> Geometry:
    """Return where the index is.

    Args:
        header: of the file, a clean one.
        file_size: bytes of the file.
        size: bytes of the device; None: not known.

    Raises:
        FormatError: the file is too short, or its header is not of such a device.
    """
    is_exact = size is not None
    if size is None:
        size = _guess_sections(header, file_size) * COW_SECTION_SIZE * COW_BLOCK_SIZE
    sections = count_sections(size)
    least = COW_HEADER_SIZE + size // COW_BLOCK_SIZE * ENTRY_SIZE
    if file_size < least:
        raise FormatError(
            f"COW file: {file_size} bytes, and the index of a device of {size} bytes alone takes {least}: it was cut"
            " short, or is of another device",
            offset=file_size,
        )
    if header.fpos < data_offset(sections) // COW_BLOCK_SIZE:
        raise FormatError(
            f"COW file byte 8: the datastore goes on at block {header.fpos}, within the index of a device of"
            f" {size} bytes: the header is damaged, or of another device",
            offset=8,
        )
    there = min(file_size, data_offset(sections)) - COW_HEADER_SIZE
    return Geometry(size, is_exact, sections, there // ENTRY_SIZE * ENTRY_SIZE)


def _guess_sections(header: Header, file_size: int) -> int:
    """Return how many sections the index has, where nobody knows the size of the device."""
    if header.is_incremental:  # the file is cut short where the index ends
        sections, rest = divmod(file_size - COW_HEADER_SIZE, _SECTION_BYTES)
        if sections > 0 and not rest:
            return sections
        raise FormatError(
            f"COW file: {file_size} bytes, which is no whole number of sections: it was cut short, or is longer than"
            " its index; give size= with the device's size",
            offset=file_size,
        )
    if not header.has_count:
        raise FormatError("COW file: of version 0, whose header does not tell how long the index is; give size=")
    # Blocks of the datastore are handed out without gaps, one for each changed block.
    sections, rest = divmod(header.fpos * COW_BLOCK_SIZE - header.nr_changed_blocks * COW_BLOCK_SIZE, _SECTION_BYTES)
    if sections < 0 or rest != COW_HEADER_SIZE:
        raise FormatError(
            f"COW file byte 8: {header.nr_changed_blocks} changed blocks, and the datastore goes on at block"
            f" {header.fpos}: no index can lie before that; the header is damaged",
            offset=8,
        )
    return sections


class Kept(NamedTuple):
    """Where a COW file in snapshot mode keeps old content.

    Attributes:
        blocks: of the device, ascending.
        positions: blocks of the file, one for each.
    """

    blocks: Offsets
    positions: Offsets


class Index:
    """The index, taken in piece by piece.

    Attributes:
        geometry: where it lies.
        count: entries so far that are not zero.
        kept: where old content is kept, once the map is built; nothing in a file that only tells what changed.
    """

    def __init__(self, header: Header, geometry: Geometry, file_size: int) -> None:
        """Begin with the first entry.

        Args:
            header: of the file.
            geometry: as `locate_index` found it.
            file_size: bytes of the file.
        """
        self.geometry = geometry
        self.count = 0
        self._header = header
        self._file_blocks = file_size // COW_BLOCK_SIZE
        self._builder = MapBuilder()
        self._pieces: list[Kept] = []
        self.kept = _join([])

    def add(self, first: int, buf: bytes | memoryview) -> None:
        """Take in entries; those that no piece has are zero.

        Args:
            first: number of the first entry in ``buf``, behind all before it.
            buf: whole entries; not kept.

        Raises:
            FormatError: an entry cannot be: past the end of the device, or pointing where no old content is.
        """
        entries = np.frombuffer(buf, "<u8")
        # Over bools: to look for what is not zero in the numbers themselves takes three times as long.
        found = np.flatnonzero(entries != 0)
        if not len(found):
            return
        blocks = found.astype(np.uint64) + np.uint64(first)
        if int(blocks[-1]) >= self.geometry.blocks:
            block = int(blocks[np.searchsorted(blocks, np.uint64(self.geometry.blocks))])
            raise self._bad(block, f"the device of {self.geometry.size} bytes has {self.geometry.blocks} blocks")
        self.count += len(blocks)
        self._require_room()
        self._builder.add_blocks(blocks, COW_BLOCK_SIZE)
        if not self._header.is_incremental:
            positions = entries[found].astype(np.uint64)
            self._require_positions(blocks, positions)
            self._pieces.append(Kept(blocks, positions))

    def build(self) -> ChangeMap:
        """Return what changed, clipped to the device; the index has been taken in whole.

        A short last block counts as changed where the index cannot say so, and in a file that only tells what
        changed always: what the drivers do with one is not to be relied on. In snapshot mode they fail on it.

        Raises:
            FormatError: another number of blocks than the header says, or two that are kept at one place.
        """
        header = self._header
        if header.has_count and self.count != header.nr_changed_blocks:
            raise self._miscounted(str(self.count))
        stored = header.fpos - self.geometry.first_block
        if header.is_incremental and self.count < stored:
            raise FormatError(
                f"COW file byte 8: {stored} blocks were stored, each for an entry of its own, and the index has only"
                f" {self.count} entries: it is not whole, or the device has another size",
                offset=8,
            )
        if not header.is_incremental and self.count != stored:
            raise FormatError(
                f"COW file: {self.count} changed blocks, and the datastore from block {self.geometry.first_block} to"
                f" {header.fpos} keeps another number: the index is not whole, or the device has another size"
            )
        self.kept = _join(self._pieces)
        self._require_once()
        changes = self._builder.build().clip(self.geometry.size)
        if header.is_incremental or not self.geometry.has_tail_entry:
            return changes | self.geometry.tail
        return changes

    def _require_once(self) -> None:
        positions = np.sort(self.kept.positions)
        is_same = positions[1:] == positions[:-1]
        if is_same.any():
            position = positions[int(is_same.argmax())]
            block = int(self.kept.blocks[self.kept.positions == position][1])
            raise self._bad(block, f"its old content is said to be at block {position}, as that of another block")

    def _require_room(self) -> None:
        """Refuse more entries than there can be, before they take memory."""
        header = self._header
        if header.has_count and self.count > header.nr_changed_blocks:
            raise self._miscounted("more")

    def _require_positions(self, blocks: Offsets, positions: Offsets) -> None:
        first, end = self.geometry.first_block, min(self._header.fpos, self._file_blocks)
        is_bad = (positions < first) | (positions >= end)
        if is_bad.any():
            index = int(is_bad.argmax())
            raise self._bad(
                int(blocks[index]),
                f"its old content is said to be at block {positions[index]}, and the datastore has blocks {first} to"
                f" {end - 1}",
            )
        if self.count > end - first:
            raise FormatError(f"COW file: more changed blocks than the {end - first} that its datastore keeps")

    def _miscounted(self, found: str) -> FormatError:
        return FormatError(
            f"COW file byte 56: {self._header.nr_changed_blocks} changed blocks, and the index has {found}: it is not"
            " whole, or the device has another size",
            offset=56,
        )

    def _bad(self, block: int, reason: str) -> FormatError:
        position = COW_HEADER_SIZE + block * ENTRY_SIZE
        return FormatError(
            f"COW file byte {position}, entry of block {block}: {reason}: damaged, or of another device",
            offset=position,
        )


def _join(pieces: list[Kept]) -> Kept:
    empty = np.empty(0, np.uint64)
    return Kept(
        np.concatenate([empty, *(piece.blocks for piece in pieces)]),
        np.concatenate([empty, *(piece.positions for piece in pieces)]),
    )
