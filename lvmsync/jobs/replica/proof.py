"""Results that look too good: a volume that was written to and has no changes, or changes that are nothing but zeros.

A tracker or a store that has failed without a word would give just that, so neither is believed without a look at the
data; and where the data has moved on meanwhile, so that nothing can prove it, the run fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from lvmsync.errors import VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.interfaces import Readable
from lvmsync.jobs.progress import Report
from lvmsync.jobs.refine import audit
from lvmsync.sources.difference import Zeros, find_differences
from lvmsync.sources.source import Source
from lvmsync.system.device import aligned_buffer
from lvmsync.system.seen import was_written

_LOOK = 4096
_LOOKS = 64  # places that are looked at before all data is read once more


def prove_unchanged(
    source: Source, before: Mapping[str, str] | None, after: Mapping[str, str] | None, report: Report
) -> Source:
    """Return the source, compared with its base if it has no changes and yet may have been written to.

    Args:
        source: with the base's data.
        before: look at the origin right before the base was taken.
        after: look at it right after the head was taken.
        report: takes the progress.

    Raises:
        VerifyError: they differ, so its tracker missed changes.
    """
    if len(source.changes) or source.is_full or source.base_data is None:
        return source
    written = was_written(before, after)
    if written == "no":
        return source
    why = "was written to" if written == "yes" else "may have been written to"
    proved = audit(source, 100, report)
    note = f"{source.name} {why}, and its map is empty: all of it was compared with the base, and nothing differs."
    return replace(proved, notes=(*source.notes, note))


def guard_zeros(source: Source, origin: Callable[[], Readable], changed_since: Callable[[], ChangeMap]) -> Source:
    """Return the source with a ``confirm`` that does not believe data of nothing but zeros where the base has more.

    Args:
        source: with the base's data.
        origin: opens the volume itself; it is used as a context manager.
        changed_since: asks where the volume was written to after the head was taken.
    """
    if source.base_data is None or source.is_full:
        return source

    def confirm() -> None:
        source.confirm()
        data = source.changes - source.holes
        if _has_data(source.data, data):
            return
        assert source.base_data is not None
        erased = find_differences(Zeros(source.size), source.base_data, data)
        if not len(erased):
            return
        volume = origin()
        try:
            unproved = find_differences(Zeros(source.size), volume, erased)
            contradicted = unproved - changed_since() if len(unproved) else unproved
        finally:
            close = getattr(volume, "close", None)
            if close:
                close()
        if len(contradicted):
            offset, length = next(iter(contradicted))
            raise VerifyError(
                f"{source.name}: all of its {data.total_bytes} changed bytes were read as zeros, and the volume itself"
                f" holds other data in {length} bytes at {offset}: what {source.data.name} gives is wrong; the target"
                " was not changed. Look at the kernel's messages, and compare with 'lvmsync verify'",
                device=source.data.name,
                offset=offset,
            )
        if not len(erased - unproved):
            offset, length = next(iter(unproved))
            raise VerifyError(
                f"{source.name}: all of its {data.total_bytes} changed bytes were read as zeros, and the volume was"
                f" written to again wherever that could be held against it (first {length} bytes at {offset}), so"
                " nothing proves it; the target was not changed. Run it again",
                device=source.data.name,
                offset=offset,
            )

    return replace(source, confirm=confirm)


def _has_data(device: Readable, ranges: ChangeMap) -> bool:
    """Tell whether a device has more than zeros somewhere in ``ranges``, or nothing was to be read."""
    if not len(ranges):
        return True
    few = np.unique(np.linspace(0, len(ranges) - 1, _LOOKS).astype(np.int64))
    buffer = aligned_buffer(_LOOK)
    for offset, end in zip(ranges.offsets[few].tolist(), ranges.ends[few].tolist(), strict=True):
        length = min(_LOOK, end - offset)
        device.read([offset], [length], buffer[:length])
        if any(buffer[:length]):
            return True
    return len(find_differences(Zeros(ranges.end), device, ranges)) > 0
