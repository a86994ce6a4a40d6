"""Less to send, and proof that nothing is missed: a source's map, held against the bytes of both its states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lvmsync.errors import UsageError, VerifyError
from lvmsync.extents import ChangeMap, Offsets
from lvmsync.interfaces import Readable
from lvmsync.jobs.progress import Progress, Report
from lvmsync.jobs.samples import sample_ranges
from lvmsync.sources.difference import BLOCK, Zeros, find_differences, iter_differences
from lvmsync.sources.source import Source
from lvmsync.system.device import Device
from lvmsync.system.holes import find_holes
from lvmsync.system.identity import is_same_storage

PIECE = 1 << 20
"""Bytes of a piece that an audit picks, at the least."""
MOST_SAMPLES = 384
"""Of what was left out of a map: 22 KiB on the line. With those of other places they fit a header."""
MOST_PIECES = 1 << 22
"""Of a device so large that there would be more, the pieces are larger."""


def refine(source: Source, report: Report, *, minimal: bool, audit_percent: float | None) -> Source:
    """Audit a source's map, then hold it to what really differs; whatever was asked for.

    The base is let go in the end: it may be what a receiver wants to claim.

    Raises:
        UsageError: the base cannot be read, or is the data itself.
        VerifyError: the tracker missed a change.
        DeviceError, ChangesLost: the source does not stand by its map any more.
    """
    data, base = source.data, source.base_data
    if isinstance(data, Device) and isinstance(base, Device) and is_same_storage(data.name, base.name):
        raise UsageError(
            f"{base.name} is where the data is read, and cannot be the base as well: nothing would differ; name the"
            " base with --base-data",
            device=base.name,
        )
    if audit_percent is not None:
        source = audit(source, audit_percent, report)
    if minimal:
        source = minimize(source, report)
    if isinstance(source.base_data, Device):
        source.base_data.close()
    return replace(source, base_data=None)


def minimize(source: Source, report: Report) -> Source:
    """Return the source with only the blocks of 4 KiB that differ from the base, and no hole that is zeros there.

    What is left out is right only as long as the base is what the target holds, and a snapshot can be made writable and
    written to. So the source gets samples of the base there, to which the target is held before it is changed; what
    does not fit into `MOST_SAMPLES` stays in the map.

    Raises:
        UsageError: the base cannot be read.
    """
    if source.kind == "compare":
        return source  # that is all it has
    base = _require_base(source, "--minimal")
    before = source.changes.total_bytes
    tell = _teller(report, "comparing", before)
    holes = source.changes & source.holes
    # What is a hole in the base as well needs no reading.
    worth = holes - find_holes(base, base.size) if isinstance(base, Device) and len(holes) else holes
    changes = find_differences(source.data, base, source.changes - holes, tell)
    if len(worth):
        changes = changes | find_differences(Zeros(source.size), base, worth, tell)
    notes = [f"--minimal: of {before} changed bytes, {changes.total_bytes} differ from {base.name}."]
    same = source.changes - changes
    samples, proved = sample_ranges(base, same.clip(base.size), base.size, MOST_SAMPLES)
    rest = same - proved
    if len(rest):
        changes = changes | rest
        notes.append(
            f"Others, {rest.total_bytes} bytes, go as well: they lie too scattered to be proved the same there."
        )
    return replace(
        source,
        granularity=min(source.granularity, BLOCK),
        changes=changes,
        holes=holes & changes,
        notes=(*source.notes, *notes),
        is_minimal=True,
        samples=samples,
    )


def audit(source: Source, percent: float, report: Report, *, seed: int | None = None) -> Source:
    """Compare a sample of what the tracker calls unchanged; return the source with a note of how much that was.

    Args:
        source: whose map is tried.
        percent: how much of it; 100: all.
        report: takes the progress.
        seed: of the choice; None: another one each time.

    Raises:
        UsageError: the base cannot be read, or not so many per cent.
        VerifyError: the tracker missed a change.
        DeviceError, ChangesLost: no, the source has just changed.
    """
    if not 0 < percent <= 100:
        raise UsageError(f"--audit {percent:g} is out of range: more than 0, and 100 at the most")
    if source.kind in ("compare", "full"):
        raise UsageError(f"--audit: a '{source.kind}:' source has no tracker that could miss a change; leave it away")
    base = _require_base(source, "--audit")
    if base.size < source.size and source.changes.complement(source.size).end > base.size:
        raise UsageError(
            f"--audit: {base.name} has {base.size} bytes, and more than that counts as unchanged in {source.name}: it"
            " is not its base, or not all of it"
        )
    sample = choose_sample(source, percent, seed)
    total = sample.total_bytes
    for found in iter_differences(source.data, base, sample, _teller(report, "auditing", total)):
        source.confirm()  # was it written just now? That is another error
        offset, length = next(iter(found))
        raise VerifyError(
            f"{source.name}: {length} bytes at {offset} differ from {base.name}, and its map does not have them: the"
            " tracker missed a change, or that is not its base. Do not use its deltas: compare the whole device"
            " ('compare:')",
            device=source.name,
            offset=offset,
        )
    note = f"--audit: {total} bytes that the tracker calls unchanged are the same as in {base.name}."
    return replace(source, notes=(*source.notes, note))


def choose_sample(source: Source, percent: float, seed: int | None = None) -> ChangeMap:
    """Return a random part of what is not in the source's map: so many per cent of the pieces that have any of it."""
    outside = source.changes.complement(source.size)
    if percent == 100 or not len(outside):
        return outside
    piece = max(PIECE, source.granularity)
    while source.size > piece * MOST_PIECES:
        piece *= 2
    numbers = np.flatnonzero(_touches(outside, piece, source.size)).astype(np.uint64)
    count = max(1, round(len(numbers) * percent / 100))
    chosen = np.random.default_rng(seed).choice(numbers, count, replace=False, shuffle=False)
    return ChangeMap.from_chunks(chosen, piece, source.size) & outside


def _touches(ranges: ChangeMap, piece: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Tell of each piece of the device whether it has a byte of ``ranges``."""
    starts: Offsets = np.arange(0, size, piece, dtype=np.uint64)
    ends = np.minimum(starts + np.uint64(piece), np.uint64(size))
    nearest = np.searchsorted(ranges.ends, starts, "right")  # the first range that ends behind the piece's start
    inside = nearest < len(ranges)
    touches = np.zeros(len(starts), bool)
    touches[inside] = ranges.offsets[nearest[inside]] < ends[inside]
    return touches


def _require_base(source: Source, option: str) -> Readable:
    if source.is_full:
        raise UsageError(
            f"{option}: {source.name} is a whole device and has no base to compare with; use 'compare:', or leave"
            f" {option} away"
        )
    if source.base_data is None:
        raise UsageError(
            f"{option}: nothing holds the base of {source.name} here; name a device that does with --base-data PATH"
        )
    return source.base_data


def _teller(report: Report, phase: str, total: int) -> Callable[[int], None]:
    return lambda done: report(Progress(phase, done, total))
