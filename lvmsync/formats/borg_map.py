"""The input map of borg (2.0.0b23 and later): what ``borg create --map`` need not read.

Source: borg 2.0.0b23, ``borg create --help``, "Input maps". A line a range, ``START LENGTH STATE`` in bytes; the ranges
are in order, touch, and cover the input. ``data`` is read, ``zero`` is a hole, and ``same`` is as in the archive that
``--reuse-from`` names.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lvmsync.extents import ChangeMap

_DATA, _ZERO, _SAME = 0, 1, 2
_WORDS = ("data", "zero", "same")
_LINES = 1 << 14  # at a time


def write_borg_map(changes: ChangeMap, holes: ChangeMap, size: int) -> Iterator[str]:
    """Yield the lines of a map, some at a time.

    Args:
        changes: bytes that are not the same as in the archive before.
        holes: those of them that read as zeros.
        size: bytes of the device.
    """
    changes = changes.clip(size)
    zeros = changes & holes
    parts = ((_DATA, changes - zeros), (_ZERO, zeros), (_SAME, changes.complement(size)))
    starts = np.concatenate([part.offsets for _, part in parts])
    ends = np.concatenate([part.ends for _, part in parts])
    states = np.concatenate([np.full(len(part), state, np.uint8) for state, part in parts])
    order = np.argsort(starts, kind="stable")
    for at in range(0, len(order), _LINES):
        chosen = order[at : at + _LINES]
        rows = zip(starts[chosen].tolist(), (ends - starts)[chosen].tolist(), states[chosen].tolist(), strict=True)
        yield "".join(f"{start} {length} {_WORDS[state]}\n" for start, length, state in rows)
