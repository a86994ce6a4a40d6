"""Traces of a transaction: digests of some places that it changed, which show later whether they still hold that.

A target that somebody brings back to an older state (a snapshot merged into it, the backup of an image, the storage's
own rollback) differs from what we left just where it was changed last. No counter of writes sees all those ways.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

from lvmsync.jobs.samples import find_different
from lvmsync.jobs.way_back import find_place
from lvmsync.stream.frames import Changes, Data, Sample
from lvmsync.system import seen
from lvmsync.system.ledger import Ledger
from lvmsync.system.traces import Trace, TraceNote, read_traces
from lvmsync.targets.block import BlockTarget

KEPT = 256
"""Most traces that are kept of a transaction, and looked at."""
_PICKED = 4 * KEPT  # places that are chosen from all changes, so that enough are found where the old bytes were others
_BLOCK = 4096


class Traces:
    """Chooses places from all that is written, each 4 KiB of it being as likely as any other."""

    def __init__(self, note: TraceNote | None = None, earlier: Iterable[Trace] = ()) -> None:
        """Begin.

        Args:
            note: takes each place that is chosen, for a transaction that goes on after a crash.
            earlier: what had been chosen before that.
        """
        self._chance = random.Random()
        self._note = note
        self._earlier = list(earlier)
        self._picks: list[Trace] = []
        self._done = 0  # bytes that were written
        self._next = 0  # block of them that is chosen next
        self._weight = 1.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was changed."""
        return not self._done and not self._earlier

    def take(self, frame: Changes, old: Changes | None = None) -> None:
        """Look at changes that are about to be written.

        Args:
            frame: the changes.
            old: what they overwrite, if that is known.
        """
        end = self._done + frame.changed_bytes
        if self._next * _BLOCK < end:
            table = frame.table.astype(np.int64)
            ends = np.cumsum(table[:, 1])
            while (at := self._next * _BLOCK) < end:
                self._keep(_trace(frame, old, table, ends, at - self._done))
        self._done = end

    def choose(self) -> tuple[Sample, ...]:
        """Return some of the places; see `choose`."""
        return choose([*self._earlier, *self._picks])

    def sync(self) -> None:
        """Make the note durable."""
        if self._note:
            self._note.sync()

    def close(self) -> None:
        """Close the note."""
        if self._note:
            self._note.close()

    def _keep(self, trace: Trace) -> None:
        """Put a place among the chosen ones, and find out which one is next: Li's "Algorithm L"."""
        if self._note:
            self._note.append(trace)
        if len(self._picks) < _PICKED:
            self._picks.append(trace)
        else:
            self._picks[self._chance.randrange(_PICKED)] = trace
        self._next += 1
        if len(self._picks) == _PICKED:
            self._weight *= math.exp(math.log(1 - self._chance.random()) / _PICKED)
            self._next += math.floor(math.log(1 - self._chance.random()) / math.log1p(-self._weight))


def choose(traces: Iterable[Trace]) -> tuple[Sample, ...]:
    """Return some traces, at most `KEPT`, in order; those whose old bytes were others come first."""
    found = {trace.sample: trace.differs for trace in traces}
    order = sorted(found, key=lambda sample: (not found[sample], random.random()))
    return tuple(sorted(order[:KEPT]))


def find_lost(target: BlockTarget, ledger: Ledger) -> tuple[Sample, str] | None:
    """Return a trace of the open transaction that is not on the target any more, and the digest of what is there."""
    note = ledger.record.transaction
    assert note is not None
    end = min(target.size, find_place(ledger.record, ledger.folder, seen.life(target.fd)).offset)
    return find_different(target, choose(read_traces(ledger.path(note.id, "traces"), end)))


def _trace(
    frame: Changes, old: Changes | None, table: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], at: int
) -> Trace:
    """Return the block of a frame that holds byte ``at`` of its changes, as far as one extent has it."""
    row = int(np.searchsorted(ends, at, side="right"))
    offset, length = table[row].tolist()
    before = int(ends[row]) - length  # bytes of the frame's other extents
    place = max((offset + at - before) // _BLOCK * _BLOCK, offset)
    end = min(place // _BLOCK * _BLOCK + _BLOCK, offset + length)
    first, last = before + place - offset, before + end - offset
    new = _bytes(frame, first, last)
    differs = old is None or len(old.table) != len(table) or _bytes(old, first, last) != new
    return Trace(Sample(place, end - place, xxhash.xxh3_128_hexdigest(new)), differs)


def _bytes(frame: Changes, first: int, last: int) -> bytes:
    return bytes(frame.payload[first:last]) if isinstance(frame, Data) else bytes(last - first)
