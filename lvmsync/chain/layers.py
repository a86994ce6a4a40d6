"""Which member has which byte of a past state: the extents of several streams, one over the other.

A stream's extents ascend and are disjoint, so the tables of a member are two arrays. Of several members that would be
applied one after the other, the last that has a byte wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lvmsync.extents import ChangeMap, Covered, Offsets

DATA, ZERO, HOLE = 0, 1, 2
"""What a range holds."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """All extents of one stream, in order.

    Attributes:
        offsets: where each starts, in bytes of the device.
        ends: where each ends.
        kinds: ``DATA``, ``ZERO`` or ``HOLE`` of each (uint8).
        frames: number of the frame that each is in, among those that `Index` knows.
        places: byte of that frame's data at which each begins; 0 of zeros and holes.
    """

    offsets: Offsets
    ends: Offsets
    kinds: npt.NDArray[np.uint8]
    frames: Numbers
    places: Numbers

    def __len__(self) -> int:
        return len(self.offsets)

    def map(self, *kinds: int) -> ChangeMap:
        """Return the bytes that are in it, all or of some kinds."""
        chosen = np.isin(self.kinds, kinds) if kinds else np.ones(len(self), bool)
        offsets = self.offsets[chosen]
        return ChangeMap.from_arrays(offsets, self.ends[chosen] - offsets)


@dataclass(frozen=True, eq=False)
class Segments(Table):
    """Disjoint ranges in the order of their offsets, each of one of several tables.

    Attributes:
        layers: number of the table, among those that were stacked; frames and places are as of that.
    """

    layers: npt.NDArray[np.int32]


def stack(tables: Sequence[Table], size: int) -> Segments:
    """Return what is seen of several tables, the last of which lies on top; what lies past ``size`` is left out.

    Costs memory for the extents of all tables, and time for sorting them.
    """
    seen = Covered()
    parts: list[Segments] = []
    for layer in range(len(tables) - 1, -1, -1):
        table = tables[layer]
        covered = table.map()
        parts.append(_cut(table, seen.unseen(covered).clip(size), layer))
        seen.add(covered)
    if not parts:
        return _cut(_EMPTY, ChangeMap.empty(), 0)
    order = np.argsort(np.concatenate([part.offsets for part in parts]), kind="stable")
    return Segments(
        *(
            np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("offsets", "ends", "kinds", "frames", "places", "layers")
        )
    )


def _cut(table: Table, ranges: ChangeMap, layer: int) -> Segments:
    """Return the parts of a table's extents that lie in ``ranges``."""
    first = np.searchsorted(ranges.ends, table.offsets, "right")
    behind = np.searchsorted(ranges.offsets, table.ends, "left")
    counts = np.maximum(behind - first, 0)
    extents = np.repeat(np.arange(len(table)), counts)
    inside = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    which = np.repeat(first, counts) + inside
    offsets = np.maximum(table.offsets[extents], ranges.offsets[which])
    ends = np.minimum(table.ends[extents], ranges.ends[which])
    skipped = (offsets - table.offsets[extents]).astype(np.int64)
    kinds = table.kinds[extents]
    return Segments(
        offsets,
        ends,
        kinds,
        table.frames[extents],
        np.where(kinds == DATA, table.places[extents] + skipped, 0),
        np.full(len(extents), layer, np.int32),
    )


_EMPTY = Table(
    np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64)
)
