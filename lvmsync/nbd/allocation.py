"""Where an export has holes and zeros: what base:allocation tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from lvmsync.extents import ChangeMap, Offsets
from lvmsync.nbd import wire

MOST = 8192
"""Ranges that one reply tells of; the client asks on from there."""

_SECTOR = 512
_MAX_LENGTH = (1 << 32) - 4096  # bytes of one range: 32 bits, and still whole blocks


@dataclass(frozen=True, eq=False)
class Allocation:
    """Successive ranges that cover an export, no two neighbours alike.

    Attributes:
        ends: where each ends; the first starts at byte 0.
        flags: ``wire.STATE_...`` of each; 0: it may hold anything.
    """

    ends: Offsets
    flags: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, size: int, holes: ChangeMap, zeros: ChangeMap) -> Self:
        """Make it of what is known.

        Args:
            size: bytes of the export.
            holes: ranges that take no space, and read as zeros.
            zeros: other ranges that read as zeros; what is in both is a hole.
        """
        # In whole sectors: qemu takes a border within one for the next one's, and writes zeros over what comes before.
        holes = _whole_sectors(holes.clip(size), size)
        zeros = _whole_sectors(zeros.clip(size) - holes, size)
        known = len(holes) + len(zeros)
        starts = np.concatenate([holes.offsets, zeros.offsets])
        ends = np.concatenate([holes.ends, zeros.ends])
        flags = np.repeat(
            np.array([wire.STATE_HOLE | wire.STATE_ZERO, wire.STATE_ZERO], np.uint32), [len(holes), len(zeros)]
        )
        order = np.argsort(starts)
        starts, ends = starts[order], ends[order]
        # One range before each that is known, and one behind the last: of them those stay that are not empty.
        all_ends = np.empty(2 * known + 1, np.uint64)
        all_flags = np.zeros(2 * known + 1, np.uint32)
        all_ends[0:-1:2], all_ends[1::2], all_ends[-1] = starts, ends, size
        all_flags[1::2] = flags[order]
        before = np.concatenate([np.zeros(1, np.uint64), all_ends[:-1]])
        keep = all_ends > before
        return cls(all_ends[keep], all_flags[keep])

    def look(self, offset: int, end: int, most: int = MOST) -> tuple[Offsets, npt.NDArray[np.uint32]]:
        """Return the ends and flags of the ranges from ``offset`` on, up to ``end`` or fewer.

        Args:
            offset: first byte.
            end: behind it, and in the export.
            most: ranges that are returned.
        """
        first = int(np.searchsorted(self.ends, np.uint64(offset), "right"))
        last = min(int(np.searchsorted(self.ends, np.uint64(end), "left")) + 1, first + most)
        return np.minimum(self.ends[first:last], np.uint64(end)), self.flags[first:last]


def descriptors(offset: int, ends: Offsets, flags: npt.NDArray[np.uint32]) -> bytes:
    """Return ranges as a reply has them; fewer where one is longer than it can say."""
    lengths = np.diff(ends, prepend=np.uint64(offset))
    too_long = np.flatnonzero(lengths > _MAX_LENGTH)
    if len(too_long):
        lengths = lengths[: too_long[0] + 1]
        lengths[-1] = _MAX_LENGTH
    table = np.empty((len(lengths), 2), ">u4")
    table[:, 0], table[:, 1] = lengths, flags[: len(lengths)]
    return table.tobytes()


def _whole_sectors(ranges: ChangeMap, size: int) -> ChangeMap:
    """Return the sectors that ranges have whole; the last one of the export may be short."""
    sector = np.uint64(_SECTOR)
    starts = (ranges.offsets + sector - np.uint64(1)) // sector * sector
    ends = np.where(ranges.ends == size, ranges.ends, ranges.ends // sector * sector)
    keep = starts < ends
    return ChangeMap.from_arrays(starts[keep], ends[keep] - starts[keep])
