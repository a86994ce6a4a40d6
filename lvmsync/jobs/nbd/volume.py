"""What is served over NBD: something that can be read, what is known of its zeros, and writes that are thrown away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from lvmsync.jobs.nbd.overlay import BLOCK, Overlay
from lvmsync.nbd import wire
from lvmsync.nbd.allocation import MOST, Allocation, descriptors
from lvmsync.nbd.blocks import BELOW, WRITTEN, runs
from lvmsync.nbd.replies import Buffer, Part

_LEAST_HOLE = 64 << 10  # bytes of zeros that are worth a part of their own in the reply to a read
_MOST_BLOCKS = 1 << 20  # that are looked at for one reply

Gather = Callable[[int, int], Sequence[Buffer]]
"""Returns the bytes from an offset on, so many, as buffers one behind the other; any thread may call it."""


class Volume:
    """What the requests of all clients of an export are carried out on.

    Attributes:
        size: bytes.
        is_changed: something was written.
    """

    def __init__(
        self, size: int, gather: Gather, allocation: Allocation, overlay: Callable[[], Overlay] | None
    ) -> None:
        """Take what is served.

        Args:
            size: bytes.
            gather: reads.
            allocation: what is known of it.
            overlay: makes what takes the writes, when there is the first; None: nothing is written.
        """
        self.size = size
        self._gather = gather
        self._allocation = allocation
        self._make_overlay = overlay
        self._overlay: Overlay | None = None
        self._lock = threading.Lock()

    @property
    def is_changed(self) -> bool:
        """Tell whether something was written."""
        return self._overlay is not None

    def close(self) -> None:
        """Throw away what was written."""
        if self._overlay:
            self._overlay.close()

    def read(self, offset: int, length: int, *, may_have_holes: bool) -> list[Part]:
        """Return a range, in parts; zeros are left out where that may be."""
        if not may_have_holes:
            return [(offset, length, self._read(offset, length))]
        parts: list[Part] = []
        ends, flags = self._look(offset, offset + length)
        done = at = offset
        for end, flag in zip(ends, flags, strict=True):
            if flag & wire.STATE_ZERO and end - at >= _LEAST_HOLE:
                if at > done:
                    parts.append((done, at - done, self._read(done, at - done)))
                parts.append((at, end - at, None))
                done = end
            at = end
        end = offset + length
        if end > done:
            parts.append((done, end - done, self._read(done, end - done)))
        return parts

    def write(self, offset: int, payload: memoryview) -> None:
        """Write, in memory of this server only."""
        self._take_overlay().write(offset, payload)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros."""
        self._take_overlay().zero(offset, length)

    def status(self, offset: int, length: int, most: int) -> bytes:
        """Return where there are holes, from ``offset`` on, as a reply has it."""
        ends, flags = self._look(offset, offset + length, most)
        return descriptors(offset, np.array(ends, np.uint64), np.array(flags, np.uint32))

    def _take_overlay(self) -> Overlay:
        with self._lock:
            if self._overlay is None:
                assert self._make_overlay is not None
                self._overlay = self._make_overlay()
            return self._overlay

    def _read(self, offset: int, length: int) -> Sequence[Buffer]:
        overlay = self._overlay
        return overlay.read(offset, length) if overlay else self._gather(offset, length)

    def _look(self, offset: int, end: int, most: int = MOST) -> tuple[list[int], list[int]]:
        """Return the ends and flags of the ranges from ``offset`` on, up to ``end`` or fewer."""
        overlay = self._overlay
        if overlay is None:
            ends, flags = self._allocation.look(offset, end, most)
            return ends.tolist(), flags.tolist()
        found: tuple[list[int], list[int]] = ([], [])
        first = offset // BLOCK
        last = min(-(-end // BLOCK), first + _MOST_BLOCKS)
        for start, behind, state in runs(overlay.states(first, last)):
            at, stop = max(offset, (first + start) * BLOCK), min(end, (first + behind) * BLOCK)
            if state == BELOW:
                ends, flags = self._allocation.look(at, stop, most)
                _append(found, ends.tolist(), flags.tolist())
            else:
                _append(found, [stop], [0 if state == WRITTEN else wire.STATE_HOLE | wire.STATE_ZERO])
            if len(found[0]) >= most or found[0][-1] < stop:
                break
        return found[0][:most], found[1][:most]


def _append(found: tuple[list[int], list[int]], ends: list[int], flags: list[int]) -> None:
    """Add ranges to those before, as one with the last where they are alike."""
    if found[0] and found[1][-1] == flags[0]:
        found[0].pop()
        found[1].pop()
    found[0].extend(ends)
    found[1].extend(flags)
