"""The index of a dattobd or elastio-snap COW file, read from the file: only where that is no hole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lvmsync.errors import ChangesLost
from lvmsync.extents import ChangeMap
from lvmsync.formats.dattobd import (
    COW_HEADER_SIZE,
    ENTRY_SIZE,
    HEADER_BYTES,
    Geometry,
    Header,
    Index,
    Kept,
    locate_index,
)
from lvmsync.system.device import Device, aligned_buffer, naming
from lvmsync.system.holes import find_holes

_BATCH = 1 << 20  # bytes of the index that are read at once: it stays in the processor's cache
_GRAIN = np.uint64(64 << 10)  # bytes: to read a hole of this size costs what a call does


class CowMap(NamedTuple):
    """What a COW file says.

    Attributes:
        geometry: where its index lies.
        changes: the blocks that changed.
        kept: where it keeps old content.
    """

    geometry: Geometry
    changes: ChangeMap
    kept: Kept


def read_header(file: Device) -> Header:
    """Return the checked header of a COW file, which may not be clean.

    Raises:
        FormatError: it is no COW file, or not of a known kind.
    """
    with naming(file):
        return Header.parse(file.read_bytes(0, min(HEADER_BYTES, file.size)))


def read_map(file: Device, header: Header, size: int | None) -> CowMap:
    """Return what changed.

    Args:
        file: the COW file.
        header: as `read_header` read it.
        size: bytes of the device; None: not known.

    Raises:
        FormatError: it is damaged, or of a device of another size.
        ChangesLost: it was not closed in order, or is in use again.
    """
    with naming(file):
        header.require_clean()
        geometry = locate_index(header, file.size, size)
        index = Index(header, geometry, file.size)
        end = COW_HEADER_SIZE + geometry.index_bytes
        data = find_holes(file, end).complement(end)
        starts = np.maximum(data.offsets // _GRAIN * _GRAIN, np.uint64(COW_HEADER_SIZE))
        ends = np.minimum((data.ends + _GRAIN - np.uint64(1)) // _GRAIN * _GRAIN, np.uint64(end))
        is_index = ends > starts  # the header is no part of it
        wanted = ChangeMap.from_arrays(starts[is_index], (ends - starts)[is_index])
        buffer = aligned_buffer(_BATCH)
        for offsets, lengths in wanted.batches(_BATCH, 1):
            piece = buffer[: lengths[0]]
            file.read(offsets, lengths, piece)
            index.add((offsets[0] - COW_HEADER_SIZE) // ENTRY_SIZE, piece)
        changes = index.build()
        if read_header(file) != header:
            raise ChangesLost("COW file: it was written to while it was read: the driver uses it again")
        return CowMap(geometry, changes, index.kept)
