"""Frames: how much they change, and how they are held to a smaller device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.extents import MAX_SIZE
from lvmsync.stream.frames import Changes, Data, Hole, Zero, clip
from tests.strategies import BIG, DEVICE, build_changes, changes, describe


def contents(frame: Changes) -> dict[int, int | str]:
    """Return what a frame says of each byte of the device."""
    positions = [byte for offset, length in frame.table.tolist() for byte in range(offset, offset + length)]
    if isinstance(frame, Data):
        return dict(zip(positions, bytes(frame.payload), strict=True))
    return dict.fromkeys(positions, type(frame).__name__)


@given(changes(), st.integers(0, DEVICE + 10))
def test_what_is_left_and_what_is_dropped_are_the_frame(frame: Changes | None, size: int) -> None:
    if frame is None:
        return
    left, dropped = clip(frame, size)
    whole = contents(frame)
    assert (contents(left) if left else {}) == {at: value for at, value in whole.items() if at < size}
    assert [byte for offset, length in dropped for byte in range(offset, offset + length)] == [
        at for at in whole if at >= size
    ]
    assert all(length for _, length in dropped)
    if left:
        assert type(left) is type(frame)
        assert left.table[:, 1].all()


EXTENTS = ((10, 4), (20, 4), (30, 4))
PAYLOAD = b"aaaabbbbcccc"


@pytest.mark.parametrize("kind", [Data, Zero, Hole])
@pytest.mark.parametrize(
    ("size", "table", "dropped"),
    [
        (34, EXTENTS, []),
        (33, [(10, 4), (20, 4), (30, 3)], [(33, 1)]),
        (30, [(10, 4), (20, 4)], [(30, 4)]),
        (21, [(10, 4), (20, 1)], [(21, 3), (30, 4)]),
        (10, None, list(EXTENTS)),
        (0, None, list(EXTENTS)),
    ],
)
def test_an_extent_is_cut_where_the_device_ends(
    kind: type[Changes], size: int, table: Sequence[tuple[int, int]] | None, dropped: list[tuple[int, int]]
) -> None:
    left, past = clip(build_changes(kind, EXTENTS, PAYLOAD), size)
    assert past == dropped
    if table is None:
        assert left is None
    else:
        kept = b"".join(PAYLOAD[at * 4 : at * 4 + length] for at, (_, length) in enumerate(table))
        assert left is not None
        assert describe(left) == describe(build_changes(kind, table, kept))


def test_a_frame_that_fits_is_passed_on_and_not_copied() -> None:
    frame = build_changes(Data, EXTENTS, PAYLOAD)
    assert clip(frame, 34)[0] is frame


def test_records_in_any_order_are_cut_too_as_an_old_stream_may_have_them() -> None:
    left, past = clip(build_changes(Data, ((30, 4), (10, 4), (12, 4)), PAYLOAD), 15)
    assert left is not None
    assert describe(left) == ("Data", [[10, 4], [12, 3]], b"bbbbccc")
    assert past == [(30, 4), (15, 1)]


def test_clip_does_not_wrap_at_the_end_of_the_largest_device() -> None:
    left, past = clip(Zero(build_changes(Zero, ((BIG, BIG),), b"").table), BIG + 1)
    assert left is not None
    assert (left.table.tolist(), past) == ([[BIG, 1]], [(BIG + 1, BIG - 1)])
    assert clip(build_changes(Hole, ((MAX_SIZE - 1, 1),), b""), MAX_SIZE)[1] == []


@pytest.mark.parametrize("kind", [Data, Zero, Hole])
def test_a_frame_changes_as_many_bytes_as_its_extents_have(kind: type[Changes]) -> None:
    assert build_changes(kind, EXTENTS, PAYLOAD).changed_bytes == 12
