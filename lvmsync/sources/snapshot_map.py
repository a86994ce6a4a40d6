"""The map of a dm-snapshot store: read in full, and watched until all data has been read."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lvmsync.errors import ChangesLost, CommandError, DeviceError, FormatError
from lvmsync.extents import ChangeMap, Offsets
from lvmsync.formats.snapshot import (
    ENTRY_SIZE,
    HEADER_SIZE,
    INSTEAD,
    DiskHeader,
    Layout,
    build_map,
    decode_exceptions,
    kept_at,
)
from lvmsync.system import dm
from lvmsync.system.device import ALIGNMENT, Device, aligned_buffer, naming

MAP_TRIES, MAP_WAIT = 6, 0.2
"""How often, and how many seconds apart, a map is read while exceptions are being written."""

_GROUP = 16 << 20  # bytes of the table that are read together
_FIRST_GROUP = 64 << 10  # where nothing says how long the table is; then as much again as has been read
_TASK = 64  # areas that one thread reads one after the other


class Watch:
    """A snapshot's map, from the moment it is read until all data has been read."""

    def __init__(
        self,
        store: Device,
        size: int,
        *,
        kept: dm.Snapshot | None,
        later: dm.Snapshot | None,
        data: Device,
        is_live: bool,
    ) -> None:
        """Check the store's header.

        Args:
            store: the COW store, open for reading.
            size: bytes of the origin.
            kept: the kernel's snapshot that the store is of; None where there is none.
            later: the kernel's snapshot that data is read from; None where that is not one.
            data: where data is read.
            is_live: whether that is the origin itself.
        """
        with naming(store):
            self.header = DiskHeader.parse(store.read_bytes(0, min(HEADER_SIZE, store.size)))
            self.layout = Layout.of(self.header, store.size)
        self._store = store
        self._size = size
        self._kept = kept
        self._later = later
        self._data = data
        self._is_live = is_live
        self._writes = self._count_writes()
        self._count = 0  # exceptions in the map

    def read_map(self) -> ChangeMap:
        """Return what changed.

        Raises:
            FormatError: the table is damaged, or is not as long as the kernel says.
            ChangesLost: the kernel calls the snapshot invalid.
        """
        before = after = self._count_allocated()
        for tries_left in reversed(range(MAP_TRIES)):
            try:
                chunks = read_exceptions(self._store, self.layout, self._size, before)
                self._count = len(chunks)
                after = self._count_allocated()
                # Changes in flight at the start are counted, but may come into the table a moment later.
                if before is None or after is None or min(before, after) <= self._count <= after:
                    with naming(self._store):
                        return build_map(chunks, self.layout.chunk_size, self._size)
            except FormatError:
                # Two areas are read at a time: the second perhaps before the kernel cleared it of what
                # was there before, and the first after it became full.
                if before is None or not tries_left:
                    raise
            if tries_left:
                time.sleep(MAP_WAIT)
        raise FormatError(
            f"{self._store.name}: the store has {self._count} exceptions, the kernel says {after}; "
            f"it is damaged, or not what the kernel uses: {INSTEAD}",
            device=self._store.name,
        )

    def read_kept(self) -> tuple[Offsets, Offsets]:
        """Return the chunks of the map, sorted, and the chunk of the store that keeps each."""
        old, new = np.empty(self._count, np.uint64), np.empty(self._count, np.uint64)
        buffer = aligned_buffer(min(_GROUP, self.layout.table_size))
        entries = len(buffer) // ENTRY_SIZE
        with ThreadPoolExecutor(self._store.depth) as pool:
            for first in range(0, self._count, entries):
                count = min(entries, self._count - first)
                piece = buffer[: count * ENTRY_SIZE]
                _read_table(self._store, self.layout, first * ENTRY_SIZE, piece, pool)
                with naming(self._store):
                    found = decode_exceptions(piece, first, self.layout, self._size)
                    if len(found) != count:
                        raise FormatError(f"{len(found)} exceptions where there were {count}: it changed meanwhile")
                old[first : first + count], new[first : first + count] = found, kept_at(piece, count)
        order = np.argsort(old)
        return old[order], new[order]

    def confirm(self) -> None:
        """Raise if the data that was read may not be what the map leads to; see `Source`.

        Raises:
            ChangesLost: a snapshot became invalid, or is gone.
            DeviceError: the place where data was read was written to.
        """
        for snapshot in (self._kept, self._later):
            if snapshot:
                try:
                    snapshot.read_usage()
                except CommandError as error:
                    raise ChangesLost(f"the snapshot was changed or removed meanwhile: {error}; {INSTEAD}") from error
        with naming(self._store):
            if DiskHeader.parse(self._store.read_bytes(0, HEADER_SIZE)) != self.header:
                raise ChangesLost(f"the header of the store changed meanwhile; {INSTEAD}")
        if (self._is_live and self._has_grown()) or self._count_writes() != self._writes:
            raise DeviceError(
                f"{'the origin ' if self._is_live else ''}{self._data.name} was written to while it was read, so what"
                " was read is no one state of it; stop what writes to it, or give -r with a later snapshot",
                device=self._data.name,
            )

    def _count_allocated(self) -> int | None:
        if not self._kept:
            return None
        with naming(self._store):
            return self.layout.count_allocated(self._kept.read_usage().allocated)

    def _count_writes(self) -> tuple[int, int] | None:
        # A chunk that has an exception can be written again without a trace in the table.
        return dm.count_writes(self._data.number) if self._data.number else None

    def _has_grown(self) -> bool:
        """Tell whether the table ends elsewhere than it did; exceptions are only ever added at the end."""
        if self._count_allocated() not in (None, self._count):
            return True
        first = max(self._count - 1, 0)
        length = min(2 * ENTRY_SIZE, self.layout.table_size - first * ENTRY_SIZE)
        tail = aligned_buffer(length)
        self._store.read(*self.layout.locate(first * ENTRY_SIZE, length), tail)
        with naming(self._store):
            return first + len(decode_exceptions(tail, first, self.layout, self._size)) != self._count


def read_exceptions(store: Device, layout: Layout, size: int, expected: int | None = None) -> Offsets:
    """Return the ``old`` chunk numbers of all exceptions in a store, in the order they are there.

    Args:
        store: open for reading.
        layout: of the store.
        size: bytes of the origin.
        expected: how many there should be, where that is known.

    Raises:
        FormatError: an entry cannot be; see `decode_exceptions`.
        DeviceError: the store cannot be read.
    """
    most = -(-size // layout.chunk_size)  # a chunk of the origin has one exception at most
    old = np.empty(min(most, expected or 0), np.uint64)
    buffer = aligned_buffer(min(_GROUP, layout.table_size))
    count = position = 0
    with ThreadPoolExecutor(store.depth) as pool:
        while position < layout.table_size:
            # Not far past the terminator: what is there is stale, and may be long.
            wanted = max(position, _FIRST_GROUP)
            if expected is not None and expected >= count:
                wanted = -(-(expected + 1) * ENTRY_SIZE // ALIGNMENT) * ALIGNMENT - position
            piece = buffer[: min(wanted, layout.table_size - position)]
            _read_table(store, layout, position, piece, pool)
            with naming(store):
                found = decode_exceptions(piece, position // ENTRY_SIZE, layout, size)
            end = count + len(found)
            if end > most:
                raise FormatError(f"{store.name}: {end} exceptions, but the origin has only {most} chunks: damaged")
            if end > len(old):
                old.resize(min(most, max(len(old) * 3 // 2, end)), refcheck=False)
            old[count:end] = found
            count, position = end, position + len(piece)
            if count * ENTRY_SIZE < position:
                break
    return old[:count]


def _read_table(store: Device, layout: Layout, position: int, out: memoryview, pool: ThreadPoolExecutor) -> None:
    """Fill ``out`` with the table's bytes from ``position`` on, by several threads if the store is a device."""
    offsets, lengths = layout.locate(position, len(out))
    store.prefetch(offsets, lengths)
    jobs, at = [], 0
    for begin in range(0, len(offsets), _TASK):
        part = slice(begin, begin + _TASK)
        end = at + sum(lengths[part])
        jobs.append(pool.submit(store.read, offsets[part], lengths[part], out[at:end]))
        at = end
    for job in jobs:
        job.result()
