"""blksnap's map, and what leads from a base to now."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import ChangeMap
from lvmsync.formats import blksnap
from lvmsync.formats.blksnap import NO_GENERATION, Tracking, changes, check_map, decide

BASE = Tracking("5f3f0d3c-7c6e-4b39-9d6a-6d2c7f1e9a10", 3, 65536, 641, 41964032)
OTHER = "a1aa942e-f25a-42eb-8ab1-dc3da971a413"


def as_map(*numbers: int) -> blksnap.BlockNumbers:
    return np.array(numbers, np.uint8)


def test_blocks_with_a_later_number_changed_and_the_last_is_clipped() -> None:
    found = changes(as_map(4, 0, 3, 5, 4, 2, 9), 3, 4096, 6 * 4096 + 100)
    assert list(found) == [(0, 4096), (3 * 4096, 2 * 4096), (6 * 4096, 100)]


def test_since_0_is_all_that_was_written_in_the_generation() -> None:
    assert list(changes(as_map(0, 1, 0), 0, 512, 1536)) == [(512, 512)]


def test_a_map_of_nothing_has_no_changes() -> None:
    assert not len(changes(as_map(), 1, 65536, 0))


@pytest.mark.parametrize("since", [255, 256])
def test_no_map_is_asked_for_what_no_byte_can_be_above(since: int) -> None:
    with pytest.raises(ChangesLost, match="compare"):
        changes(as_map(1), since, 65536, 65536)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_map_that_is_not_as_long_as_the_device_is_refused(count: int) -> None:
    with pytest.raises(FormatError, match=f"map: {count} bytes; a device of 65537 bytes has 2 blocks"):
        changes(as_map(*[1] * count), 0, 65536, 65537)


@given(
    numbers=st.lists(st.integers(0, 255), max_size=300),
    since=st.integers(0, 254),
    shift=st.integers(9, 26),
    missing=st.integers(0, 511),
    piece=st.integers(1, 40),
)
def test_changes_are_what_a_plain_loop_finds(
    numbers: list[int], since: int, shift: int, missing: int, piece: int
) -> None:
    block_size = 1 << shift
    size = max(len(numbers) * block_size - missing, 0)
    wanted = [(at * block_size, block_size) for at, number in enumerate(numbers) if number > since]
    before, blksnap._PIECE = blksnap._PIECE, piece
    try:
        found = changes(as_map(*numbers), since, block_size, size)
    finally:
        blksnap._PIECE = before
    assert found == ChangeMap.from_extents(wanted).clip(size)


@pytest.mark.parametrize("pattern", ["empty", "all", "every second", "runs"])
def test_a_map_of_2_tib_in_blocks_of_64_kib_takes_a_moment(pattern: str) -> None:
    numbers = np.zeros(1 << 25, np.uint8)
    match pattern:
        case "all":
            numbers[:] = 9
        case "every second":
            numbers[::2] = 9
        case "runs":
            for begin in range(5):
                numbers[begin::64] = 9
    began = time.process_time()
    found = changes(numbers, 8, 65536, 1 << 41)
    assert time.process_time() - began < (6 if pattern == "every second" else 1)
    assert found.total_bytes == int(np.count_nonzero(numbers)) << 16


def test_the_same_generation_and_a_later_number_lead_from_the_base() -> None:
    for number in (4, 200, 255):
        found = decide(BASE, replace(BASE, number=number))
        assert found.since == 3
        assert f"{number} is held" in found.why
    assert decide(replace(BASE, number=254), replace(BASE, number=255)).since == 254
    assert decide(replace(BASE, number=0), replace(BASE, number=1)).since == 0


@pytest.mark.parametrize(
    ("base", "now", "words"),
    [
        (None, BASE, "No base"),
        (BASE, replace(BASE, generation=OTHER, number=4), "began anew"),
        (replace(BASE, generation=NO_GENERATION), replace(BASE, generation=NO_GENERATION, number=4), "began anew"),
        (BASE, replace(BASE, number=4, block_size=131072), "block size is 131072 now, and was 65536"),
        (BASE, replace(BASE, number=4, block_count=642), "block count is 642 now, and was 641"),
        (BASE, replace(BASE, number=4, capacity=41964544), "capacity is 41964544 now, and was 41964032"),
        (BASE, BASE, "not after snapshot 3"),
        (BASE, replace(BASE, number=1), "not after snapshot 3"),
        (replace(BASE, number=255), replace(BASE, number=1), "base is of snapshot 255"),
        (replace(BASE, number=255), replace(BASE, number=255), "base is of snapshot 255"),
    ],
)
def test_all_else_is_everything_and_the_reason_is_said(base: Tracking | None, now: Tracking, words: str) -> None:
    found = decide(base, now)
    assert found.since is None
    assert words in found.why


trackings = st.builds(
    Tracking,
    st.sampled_from([BASE.generation, OTHER, NO_GENERATION]),
    st.integers(0, 255),
    st.sampled_from([65536, 131072]),
    st.sampled_from([641, 642]),
    st.sampled_from([41964032, 41964544]),
)


@given(base=trackings, now=trackings)
def test_nothing_but_the_same_generation_and_geometry_and_a_later_number_is_an_increment(
    base: Tracking, now: Tracking
) -> None:
    same = base.generation == now.generation != NO_GENERATION and all(
        getattr(base, key) == getattr(now, key) for key in ("block_size", "block_count", "capacity")
    )
    found = decide(base, now)
    assert found.since == (base.number if same and base.number < now.number else None)
    assert found.since != 255


def test_a_map_that_cannot_be_of_its_snapshot_is_not_believed() -> None:
    tracking = replace(BASE, block_count=3)
    check_map(as_map(0, 3, 1), tracking)
    check_map(as_map(), replace(BASE, block_count=0))
    with pytest.raises(ChangesLost, match="map byte 1: snapshot 4, but the latest is 3"):
        check_map(as_map(0, 4, 1), tracking)
    with pytest.raises(FormatError, match="map: 2 bytes, not 3"):
        check_map(as_map(0, 4), tracking)
