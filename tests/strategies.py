"""Hypothesis strategies: change maps, frames, and whole streams that keep every rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from lvmsync.extents import ChangeMap, Offsets, as_table
from lvmsync.history import Point
from lvmsync.stream.frames import DELTA, FULL, SNAPBACK, Changes, Data, End, Frame, Header, Hole, Mark, Zero

DEVICE = 300
"""Bytes of the device that most strategies are about: small, so that ranges meet often."""

BIG = 1 << 62
"""An offset that needs more than the 53 bits of a float."""


def array(values: Sequence[int]) -> Offsets:
    return np.array(values, np.uint64)


def ranges(device: int = DEVICE) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Pairs of offset and length within a device, in any order, overlapping and empty ones included."""
    pair = st.tuples(st.integers(0, device), st.integers(0, 40)).map(lambda r: (r[0], min(r[1], device - r[0])))
    return st.lists(pair, max_size=24)


def change_maps(device: int = DEVICE) -> st.SearchStrategy[ChangeMap]:
    return ranges(device).map(ChangeMap.from_extents)


def _words() -> st.SearchStrategy[str]:
    """Text without what drives a terminal."""
    return st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8)


def points() -> st.SearchStrategy[Point]:
    return st.builds(Point, _words(), st.none() | _words(), st.none() | _words())


def headers(size: int = DEVICE) -> st.SearchStrategy[Header]:
    text = st.none() | _words()
    return st.builds(
        Header,
        size=st.just(size),
        extents=st.none() | st.integers(0, (1 << 63) - 1),
        map_digest=text,
        source=text,
        name=text,
        base=st.none() | points(),
        head=st.none() | points(),
        host=text,
        time=text,
        version=text,
        intent=st.sampled_from((DELTA, FULL, SNAPBACK)),
        minimal=st.booleans(),
        stream=text,
    )


@st.composite
def tables(draw: st.DrawFn, start: int = 0, device: int = DEVICE) -> list[tuple[int, int]]:
    """Extents of one frame: ascending, not empty, disjoint; some touch. Empty when the device has no room left."""
    found: list[tuple[int, int]] = []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=5)):
        if start + gap + length <= device:
            found.append((start + gap, length))
            start += gap + length
    return found


def build_changes(kind: type[Changes], extents: Sequence[tuple[int, int]], payload: bytes) -> Changes:
    table = as_table([offset for offset, _ in extents], [length for _, length in extents])
    return Data(table, memoryview(payload)) if kind is Data else kind(table)  # type: ignore[call-arg]


@st.composite
def changes(draw: st.DrawFn, start: int = 0, device: int = DEVICE) -> Changes | None:
    """One frame of changes behind ``start``; None when there is no room left."""
    extents = draw(tables(start, device))
    kind = draw(st.sampled_from((Data, Zero, Hole)))
    length = sum(length for _, length in extents)
    # Random bytes of some length, repeated: what shrinks under zstd, and what does not.
    seed = draw(st.binary(min_size=1, max_size=64))
    return build_changes(kind, extents, (seed * length)[:length]) if extents else None


@st.composite
def bodies(draw: st.DrawFn, device: int = DEVICE) -> list[Changes]:
    """The changes of a stream: ascending and disjoint over all frames."""
    found: list[Changes] = []
    start = 0
    for _ in range(draw(st.integers(0, 6))):
        frame = draw(changes(start, device))
        if frame is None:
            break
        found.append(frame)
        start = int(frame.table[-1].sum())
    return found


@st.composite
def streams(draw: st.DrawFn) -> list[Frame]:
    """A whole stream: header, changes with marks between them, and the END that goes with them."""
    header = draw(headers())
    frames: list[Frame] = [header]
    extents = changed = 0
    for frame in draw(bodies()):
        frames.append(frame)
        extents += len(frame.table)
        changed += frame.changed_bytes
        if draw(st.booleans()):
            frames.append(Mark(extents, changed))
    return [*frames, End(extents, changed)]


def describe(frame: Frame) -> tuple[object, ...]:
    """Return what makes a frame this one, to compare frames by; of an END not the digest."""
    match frame:
        case Data(table, payload):
            return ("Data", table.tolist(), bytes(payload))
        case Zero(table) | Hole(table):
            return (type(frame).__name__, table.tolist())
        case End(extents, changed_bytes):
            return ("End", extents, changed_bytes)
    return (frame,)
