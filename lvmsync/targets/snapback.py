"""Snapbacks: what a receive is about to overwrite, saved and durable before it is overwritten.

A snapback file is an ordinary stream in the format of the input, so receiving it undoes the change.
Each byte of the target is saved at most once, before its first write: what a transaction wrote itself
is never saved as old.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lvmsync.extents import ChangeMap, Covered, Offsets, as_table
from lvmsync.interfaces import Target
from lvmsync.stream.frames import Changes, Data, Zero
from lvmsync.system.device import aligned_buffer
from lvmsync.targets.durable import DurableFile

PIECE = 1 << 20
"""Bytes that are saved in one frame."""


class Snapback:
    """A Target around a Target: what a batch will overwrite is saved and durable before the batch is passed on."""

    def __init__(
        self,
        target: Target,
        file: DurableFile,
        version: int,
        on_saved: Callable[[Changes, Changes | None], None] = lambda frame, old: None,
    ) -> None:
        """Begin.

        Args:
            target: takes the changes.
            file: takes what they overwrite.
            version: of the format of both.
            on_saved: called with each frame, and with what it overwrites if that was saved as one.
        """
        self._target = target
        self._file = file
        self._plain = version == 3  # all is data, in the order of the records; places may be named twice
        self._covered = Covered()
        self._buffer = aligned_buffer(2 * PIECE)  # a frame may be a little over
        self._on_saved = on_saved

    def write(self, batch: Sequence[Changes]) -> None:
        """Save what the frames will overwrite, then apply them."""
        for frame in batch:
            old, pieces = None, 0
            for old in self._old(frame):
                self._file.save(old)
                pieces += 1
            self._on_saved(frame, old if pieces == 1 else None)
        self._file.sync()
        self._target.write(batch)

    def sync(self) -> None:
        """Make everything applied durable."""
        self._target.sync()

    def _old(self, frame: Changes) -> Iterator[Changes]:
        table = self._unsaved(frame.table) if self._plain else frame.table
        if isinstance(frame, Data) and frame.changed_bytes <= len(self._buffer):
            if len(table):
                yield self._read(table[:, 0].tolist(), table[:, 1].tolist())
            return
        for offset, length in table.tolist():
            for start, end, has_data in self._target.data_ranges(offset, offset + length):
                if not has_data and not self._plain:
                    yield Zero(as_table([start], [end - start]))
                    continue
                for at in range(start, end, PIECE):
                    yield self._read([at], [min(PIECE, end - at)])

    def _read(self, offsets: list[int], lengths: list[int]) -> Changes:
        view = self._buffer[: sum(lengths)]
        self._target.read(offsets, lengths, view)
        table = as_table(offsets, lengths)
        if not self._plain and not np.frombuffer(view, np.uint8).any():
            return Zero(table)
        return Data(table, view)

    def _unsaved(self, table: Offsets) -> Offsets:
        """Return the ranges of ``table`` that have not been saved yet, and count them as saved.

        They keep the order and the lengths of the records, unless a place is named twice.
        """
        ranges = ChangeMap.from_arrays(table[:, 0], table[:, 1])
        fresh = self._covered.unseen(ranges)
        if fresh.total_bytes != int(table[:, 1].sum()):
            table = np.stack([fresh.offsets, fresh.ends - fresh.offsets], axis=1)
        self._covered.add(ranges)
        return table
