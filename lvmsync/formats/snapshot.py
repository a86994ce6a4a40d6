"""The COW store of dm-snapshot (persistent exception store), and its target's table and status lines.

Source: Linux v6.1, drivers/md/dm-snap-persistent.c (disk version 1), dm-exception-store.c and dm-snap.c.
Little-endian throughout. Chunk 0 is the header. Then, repeating: one chunk of exceptions (an area), and
the data chunks that they point at. All areas, one behind the other, are called the table here; it ends
at the first entry whose ``new`` is 0, and what is behind that is whatever the disk held before.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import ChangeMap, Offsets

SNAP_MAGIC = 0x70416E53  # "SnAp"
SNAPSHOT_DISK_VERSION = 1
NUM_SNAPSHOT_HDR_CHUNKS = 1
SECTOR = 512
MAX_CHUNK_SECTORS = (1 << 31) - 1 >> 9  # INT_MAX >> SECTOR_SHIFT, dm_exception_store_set_chunk_size()
ENTRY_SIZE = 16
HEADER_SIZE = 16

INSTEAD = "compare the whole device, or make a full copy and a new snapshot"
"""What to do when a snapshot no longer knows the changes."""

_DISK_HEADER = struct.Struct("<4I")
_DISK_EXCEPTION = np.dtype([("old", "<u8"), ("new", "<u8")])  # struct disk_exception: old_chunk, new_chunk
_BLOCK = 1 << 16  # entries looked at together where a temporary as long as the table would cost memory

_USAGE = re.compile(r"(\d{1,19})/(\d{1,19}) (\d{1,19})")
_TABLE = re.compile(r"(\d{1,9}):(\d{1,9}) (\d{1,9}):(\d{1,9}) (P|PO|N) (\d{1,10})(?: .*)?")
_LOST = {
    "Invalid": "is invalid: its store ran full, or could not be written",
    "Merge failed": "failed while it was merged into its origin",
    "Overflow": "overflowed: writes to it failed for lack of room",
    "Unknown": "has a state that the kernel does not know",
}


class DiskHeader(NamedTuple):
    """``struct disk_header``, at byte 0 of the store."""

    magic: int
    valid: int
    version: int
    chunk_size: int  # sectors

    @classmethod
    def parse(cls, buf: bytes | memoryview) -> Self:
        """Decode and check the header at the start of ``buf``.

        Raises:
            FormatError: not a COW store, or one that the kernel would not take either.
            ChangesLost: the kernel marked the store invalid.
        """
        if len(buf) < HEADER_SIZE:
            raise FormatError(f"COW store header: {len(buf)} bytes, not {HEADER_SIZE}: is this a COW store?")
        header = cls._make(_DISK_HEADER.unpack(buf[:HEADER_SIZE]))
        if header.magic != SNAP_MAGIC:
            raise FormatError(
                f"COW store byte 0: magic {header.magic:#x}, not {SNAP_MAGIC:#x}: this is not a COW store", offset=0
            )
        if not header.valid:  # the kernel dropped the snapshot: store full, or an I/O error
            raise ChangesLost(f"COW store byte 4: marked invalid, so later changes are not in it; {INSTEAD}", offset=4)
        if header.version != SNAPSHOT_DISK_VERSION:
            raise FormatError(
                f"COW store byte 8: version {header.version}, not {SNAPSHOT_DISK_VERSION}: not known to this lvmsync",
                offset=8,
            )
        size = header.chunk_size
        if not 0 < size <= MAX_CHUNK_SECTORS or size & (size - 1):
            raise FormatError(
                f"COW store byte 12: a chunk of {size} sectors; the kernel allows powers of two "
                f"up to {MAX_CHUNK_SECTORS + 1 >> 1}: the header is damaged",
                offset=12,
            )
        return header


@dataclass(frozen=True)
class Layout:
    """Where everything is in one store.

    Attributes:
        chunk_size: bytes of a chunk.
        store_chunks: whole chunks in the store; a shorter tail is never used.
    """

    chunk_size: int
    store_chunks: int

    @classmethod
    def of(cls, header: DiskHeader, store_size: int) -> Self:
        """Return the layout of a store of ``store_size`` bytes.

        Raises:
            FormatError: there is not even room for the header and one area.
        """
        chunk_size = header.chunk_size * SECTOR
        if store_size // chunk_size < NUM_SNAPSHOT_HDR_CHUNKS + 1:
            raise FormatError(
                f"COW store: {store_size} bytes; its header and first area alone take {2 * chunk_size}: cut short?"
            )
        return cls(chunk_size, store_size // chunk_size)

    @property
    def exceptions_per_area(self) -> int:
        """Entries in an area."""
        return self.chunk_size // ENTRY_SIZE

    @property
    def stride(self) -> int:
        """Chunks from an area to the next."""
        return self.exceptions_per_area + 1

    @property
    def areas(self) -> int:
        """How many areas lie within the store."""
        return -(-(self.store_chunks - NUM_SNAPSHOT_HDR_CHUNKS) // self.stride)

    @property
    def table_size(self) -> int:
        """Bytes of all areas that lie within the store."""
        return self.areas * self.chunk_size

    def locate(self, position: int, length: int) -> tuple[list[int], list[int]]:
        """Return where the table's bytes ``[position, position + length)`` are in the store: offsets, lengths."""
        offsets, lengths = [], []
        while length > 0:
            area, inside = divmod(position, self.chunk_size)
            piece = min(length, self.chunk_size - inside)
            offsets.append((NUM_SNAPSHOT_HDR_CHUNKS + area * self.stride) * self.chunk_size + inside)
            lengths.append(piece)
            position, length = position + piece, length - piece
        return offsets, lengths

    def count_allocated(self, allocated: int) -> int:
        """Return how many exceptions the kernel has handed out, from its status.

        Args:
            allocated: the status's first number: sectors in use, header and areas among them.

        Raises:
            FormatError: that number cannot be, with this chunk size.
        """
        chunks, rest = divmod(allocated * SECTOR, self.chunk_size)
        if rest or chunks < NUM_SNAPSHOT_HDR_CHUNKS + 1:
            raise FormatError(
                f"snapshot status: {allocated} sectors in use is not a number of chunks of "
                f"{self.chunk_size // SECTOR} sectors, as in the store's header: does the store belong to it?"
            )
        used = chunks - NUM_SNAPSHOT_HDR_CHUNKS
        # Chunks are handed out in rising order, areas stepped over: the areas below are those in use.
        return used - -(-used // self.stride)


def decode_exceptions(buf: bytes | memoryview, first: int, layout: Layout, size: int) -> Offsets:
    """Return the ``old`` chunk numbers in a piece of the table, up to the terminator.

    Fewer numbers than ``buf`` has entries mean that the terminator was met. The result is a view of ``buf``.

    Args:
        buf: whole entries.
        first: how many entries of the table lie before ``buf``.
        layout: of the store.
        size: bytes of the origin.

    Raises:
        FormatError: an entry points out of the store, at an area, or past the end of the origin.
    """
    if len(buf) % ENTRY_SIZE:
        raise FormatError(f"COW store, exception {first}: {len(buf)} bytes of exceptions; the last entry is cut short")
    entries = np.frombuffer(buf, _DISK_EXCEPTION)
    is_end = entries["new"] == 0  # an ``old`` of 0 is chunk 0, an entry like others
    if is_end.any():
        entries = entries[: int(is_end.argmax())]
    new, old = entries["new"], entries["old"]
    is_bad = (new >= layout.store_chunks) | (new % layout.stride == NUM_SNAPSHOT_HDR_CHUNKS)
    if is_bad.any():
        raise _bad_entry(entries, int(is_bad.argmax()), first, layout, "no data chunk of the store can be there")
    chunks = -(-size // layout.chunk_size)
    is_bad = old >= chunks
    if is_bad.any():
        raise _bad_entry(
            entries, int(is_bad.argmax()), first, layout, f"the origin has only {chunks} chunks: is this its store?"
        )
    result: Offsets = old
    return result


def kept_at(buf: bytes | memoryview, count: int) -> Offsets:
    """Return where the first ``count`` exceptions in a piece of the table keep their chunks: a view of ``buf``.

    Only of entries that `decode_exceptions` has found right.
    """
    new: Offsets = np.frombuffer(buf, _DISK_EXCEPTION)[:count]["new"]
    return new


def _bad_entry(entries: npt.NDArray[np.void], index: int, first: int, layout: Layout, reason: str) -> FormatError:
    position = layout.locate((first + index) * ENTRY_SIZE, ENTRY_SIZE)[0][0]
    old, new = (int(number) for number in entries[index])
    return FormatError(
        f"COW store byte {position}, exception {first + index}: chunk {old} kept at chunk {new}: {reason}",
        offset=position,
    )


def build_map(chunks: Offsets, chunk_size: int, size: int) -> ChangeMap:
    """Return the changed bytes of an origin of ``size`` bytes.

    Args:
        chunks: every ``old`` of the table, in any order; **sorted in place**.
        chunk_size: bytes of a chunk.
        size: bytes of the origin; the last chunk is clipped to it.

    Raises:
        FormatError: a chunk occurs twice, which the kernel never writes.
    """
    changes = ChangeMap.from_chunks(chunks, chunk_size, size)
    for begin in range(0, len(chunks) - 1, _BLOCK):
        piece = chunks[begin : begin + _BLOCK + 1]
        is_same = piece[1:] == piece[:-1]
        if is_same.any():
            chunk = int(piece[int(is_same.argmax())])
            raise FormatError(f"COW store: chunk {chunk} of the origin has two exceptions; the table is damaged")
    return changes


@dataclass(frozen=True)
class Usage:
    """The status of a snapshot that works, in sectors.

    Attributes:
        allocated: in use: header, areas and data chunks, those being written included.
        total: size of the store.
        metadata: the part of ``allocated`` that is header and areas.
    """

    allocated: int
    total: int
    metadata: int


def parse_status(text: str, name: str = "snapshot") -> Usage:
    """Read the status of a ``snapshot`` target, as in ``96/2048 16``.

    Args:
        text: the status line behind the target's name.
        name: what messages call the snapshot.

    Raises:
        ChangesLost: the kernel says that the snapshot is invalid, overflowed, or failed to merge.
        FormatError: none of what the kernel writes.
    """
    text = text.strip()
    if text in _LOST:
        raise ChangesLost(f"{name} {_LOST[text]} (status '{text}'); {INSTEAD}", device=name)
    match = _USAGE.fullmatch(text)
    if not match:
        raise FormatError(f"{name}: status '{text}'; expected USED/TOTAL METADATA in sectors", device=name)
    return Usage(*map(int, match.groups()))


@dataclass(frozen=True)
class SnapshotTable:
    """The table of a ``snapshot`` or ``snapshot-merge`` target.

    Attributes:
        origin: major and minor number of the device below: of LVM, the one called ``-real``.
        store: major and minor number of the COW store.
        mode: P is persistent, PO persistent with overflow, N transient (nothing on disk).
    """

    origin: tuple[int, int]
    store: tuple[int, int]
    mode: str


def parse_table(text: str, name: str = "snapshot") -> SnapshotTable:
    """Read the table of a ``snapshot`` or ``snapshot-merge`` target, as in ``254:1 254:2 P 8``.

    Raises:
        FormatError: none of what the kernel writes.
    """
    match = _TABLE.fullmatch(text.strip())
    if not match:
        raise FormatError(f"{name}: table '{text.strip()}'; expected ORIGIN STORE P|PO|N CHUNK", device=name)
    a, b, c, d = map(int, match.group(1, 2, 3, 4))
    return SnapshotTable((a, b), (c, d), match.group(5))
