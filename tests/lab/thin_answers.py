"""Runs in the guest: compares what ``lvmsync changes --json`` said with what ``thin_delta`` said.

python3 thin_answers.py CHANGES.json DELTA.xml     the same pair, of a thin pool
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

Ranges = list[list[int]]

_LINE = re.compile(r'<(different|left_only|right_only) begin="(\d+)" length="(\d+)"/>')


def merge(ranges: Ranges, size: int) -> Ranges:
    """Return byte ranges (start, end) in order, joined where they touch, and clipped to ``size``."""
    merged: Ranges = []
    for start, end in sorted(ranges):
        if start >= size:
            continue
        if merged and merged[-1][1] >= start:
            merged[-1][1] = min(max(end, merged[-1][1]), size)
        else:
            merged.append([start, min(end, size)])
    return merged


def read_delta(text: str, chunk: int, size: int) -> tuple[Ranges, Ranges]:
    """Return the changes and the holes that thin_delta's answer means."""
    found = [(kind, int(begin) * chunk, int(length) * chunk) for kind, begin, length in _LINE.findall(text)]
    changes = [[at, at + length] for _, at, length in found]
    holes = [[at, at + length] for kind, at, length in found if kind == "left_only"]
    return merge(changes, size), merge(holes, size)


def as_ranges(extents: Ranges) -> Ranges:
    """Return offsets and lengths as starts and ends."""
    return [[offset, offset + length] for offset, length in extents]


def main() -> None:
    said = json.loads(Path(sys.argv[1]).read_text())
    changes, holes = read_delta(Path(sys.argv[2]).read_text(), said["granularity"], said["size"])
    if as_ranges(said["extents"]) != changes or as_ranges(said["holes"]) != holes:
        sys.exit(f"thin_delta says {changes} with holes {holes}, lvmsync {said}")
    if not changes:
        sys.exit("nothing changed, so that nothing was compared")


if __name__ == "__main__":
    main()
