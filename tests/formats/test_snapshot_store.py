"""Stores that are written: what they hold, read back by what reads the kernel's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.extents import ChangeMap
from lvmsync.formats.snapshot import ENTRY_SIZE, DiskHeader, Layout, build_map, decode_exceptions, kept_at
from lvmsync.formats.snapshot_store import LEAST_CHUNK, MOST_EXCEPTIONS, NewStore
from tests.strategies import change_maps

SMALL = 64  # bytes of a chunk: four entries in an area, so that there are many areas
DEVICE = 2000


def write(store: NewStore, state: bytes, room: int = 0) -> bytes:
    """Write a store to memory that held something else before."""
    out = bytearray(b"\xee" * store.stored_with(room))
    header = store.header()
    out[: len(header)] = header
    for position, area in store.areas():
        out[position : position + len(area)] = area
    for position, offsets, lengths in store.pieces(3 * SMALL):
        data = b"".join(state[at : at + length] for at, length in zip(offsets, lengths, strict=True))
        out[position : position + len(data)] = data
    return bytes(out)


def read(data: bytes, chunk_size: int, size: int) -> dict[int, int]:
    """Read a store as the kernel does: where each chunk of the origin is kept."""
    layout = Layout(chunk_size, len(data) // chunk_size)
    found: dict[int, int] = {}
    for first in range(0, layout.table_size // ENTRY_SIZE, layout.exceptions_per_area):
        (offset,), (length,) = layout.locate(first * ENTRY_SIZE, chunk_size)
        area = data[offset : offset + length]
        old = decode_exceptions(area, first, layout, size)
        found |= zip(old.tolist(), kept_at(area, len(old)).tolist(), strict=True)
        if len(old) < layout.exceptions_per_area:
            return found
    raise AssertionError("the table has no end")


def sizes() -> st.SearchStrategy[int]:
    return st.integers(1, DEVICE)


@given(change_maps(DEVICE), sizes(), st.integers(0, DEVICE))
def test_what_is_written_is_read_back(changes: ChangeMap, size: int, room: int) -> None:
    changes = changes.clip(size)
    state = np.random.default_rng(size).bytes(size)
    store = NewStore.of(changes, size, SMALL)
    data = write(store, state, room)

    found = read(data, SMALL, size)
    old = np.array(list(found), np.uint64)
    assert sorted(found) == list(found)
    assert build_map(old, SMALL, size) == ChangeMap.from_extents(
        (at // SMALL * SMALL, min(-(-(at + length) // SMALL) * SMALL, size) - at // SMALL * SMALL)
        for at, length in changes
    )
    for chunk, kept in found.items():
        wanted = state[chunk * SMALL : (chunk + 1) * SMALL]
        assert data[kept * SMALL : kept * SMALL + len(wanted)] == wanted
    assert store.exceptions == len(found)
    assert store.stored <= len(data) <= store.stored_with(size)


@given(change_maps(DEVICE), st.integers(1, 10 * SMALL))
def test_pieces_are_no_longer_than_asked_for(changes: ChangeMap, most: int) -> None:
    store = NewStore.of(changes, DEVICE, SMALL)
    pieces = list(store.pieces(most))
    assert all(sum(one.lengths) <= max(most, SMALL) for one in pieces)
    assert sum(sum(one.lengths) for one in pieces) <= store.exceptions * SMALL
    assert len({one.position for one in pieces}) == len(pieces)


@pytest.mark.parametrize(("count", "areas"), [(0, 1), (3, 1), (4, 2), (7, 2), (8, 3)])
def test_behind_a_full_area_there_is_another_one(count: int, areas: int) -> None:
    store = NewStore.of(ChangeMap.whole(count * SMALL), 100 * SMALL, SMALL)
    found = list(store.areas())
    assert len(found) == areas
    assert store.stored == (1 + areas + count) * SMALL
    assert not any(found[-1][1][-ENTRY_SIZE:])


def test_the_header_is_one_that_the_kernel_takes() -> None:
    store = NewStore.of(ChangeMap.empty(), 1 << 30)
    assert DiskHeader.parse(store.header()).chunk_size * 512 == LEAST_CHUNK == len(store.header())


def test_room_is_for_chunks_that_are_not_kept_yet() -> None:
    store = NewStore.of(ChangeMap.whole(2 * SMALL), 5 * SMALL, SMALL)
    assert store.stored == 4 * SMALL
    assert store.stored_with(1) == 5 * SMALL
    assert store.stored_with(2 * SMALL) == 7 * SMALL  # the first area is full then
    assert store.stored_with(1 << 40) == 8 * SMALL  # all there is


@pytest.mark.parametrize(
    ("size", "chunk"),
    [(MOST_EXCEPTIONS * 4096, 4096), (MOST_EXCEPTIONS * 4096 + 1, 8192), (1 << 40, 128 << 10), (1 << 63, 1 << 30)],
)
def test_chunks_are_as_small_as_the_number_of_exceptions_allows(size: int, chunk: int) -> None:
    store = NewStore.of(ChangeMap.whole(size), size)
    assert store.chunk_size == chunk
    assert store.exceptions == -(-size // chunk)


def test_a_few_changes_of_a_large_device_cost_little() -> None:
    changes = ChangeMap.from_extents((number << 30, 512) for number in range(1000))
    store = NewStore.of(changes, 1 << 40)
    assert store.exceptions == 1000
    assert store.stored < 5 << 20
    assert sum(len(one.offsets) for one in store.pieces(1 << 20)) == 1000
