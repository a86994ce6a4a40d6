"""The check file of an undo: entries that were cut short do not count, damaged ones are never believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import VerifyError
from lvmsync.stream.checks import ENTRY_SIZE, Window, parse_windows

DIGESTS = st.integers(0, (1 << 64) - 1)


@st.composite
def windows(draw: st.DrawFn) -> list[Window]:
    ends = sorted(draw(st.lists(st.integers(0, (1 << 63) - 1), max_size=5)))
    return [Window(end, draw(DIGESTS)) for end in ends]


def pack(entries: list[Window]) -> bytes:
    return b"".join(entry.pack() for entry in entries)


@given(windows())
def test_entries_are_read_as_they_were_written(entries: list[Window]) -> None:
    data = pack(entries)
    assert len(data) == len(entries) * ENTRY_SIZE
    assert parse_windows(data) == entries


def test_an_entry_never_crosses_a_sector() -> None:
    assert 512 % ENTRY_SIZE == 0
    assert len(Window((1 << 64) - 1, (1 << 64) - 1).pack()) == ENTRY_SIZE


@given(windows(), st.data())
def test_a_cut_loses_only_the_entries_behind_it(entries: list[Window], data: st.DataObject) -> None:
    packed = pack(entries)
    cut = data.draw(st.integers(0, len(packed)))
    assert parse_windows(packed[:cut]) == entries[: cut // ENTRY_SIZE]


@given(windows(), st.integers(0, 100))
def test_zeros_at_the_end_are_entries_that_a_crash_kept_from_the_disk(entries: list[Window], zeros: int) -> None:
    assert parse_windows(pack(entries) + bytes(zeros)) == entries


def test_zeros_before_an_entry_are_damage() -> None:
    with pytest.raises(VerifyError, match="damaged at byte 0"):
        parse_windows(bytes(ENTRY_SIZE) + Window(1, 2).pack())


def test_every_flipped_bit_is_damage() -> None:
    packed = pack([Window(4096, 0xABCDEF), Window(9000, 0x123456)])
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerifyError, match=f"damaged at byte {bit // 8 // ENTRY_SIZE * ENTRY_SIZE}"):
            parse_windows(bytes(damaged))


def test_an_end_before_that_of_the_entry_before_is_out_of_order() -> None:
    with pytest.raises(VerifyError, match=f"out of order at byte {ENTRY_SIZE}"):
        parse_windows(pack([Window(10, 1), Window(9, 1)]))
