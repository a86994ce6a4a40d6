"""Where an export has holes, and which blocks are overlaid: held against arrays of one element a byte or block."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.extents import ChangeMap
from lvmsync.nbd.allocation import Allocation, descriptors
from lvmsync.nbd.blocks import BELOW, WRITTEN, ZEROED, Blocks, runs

SIZE = 60
ranges = st.lists(st.tuples(st.integers(0, SIZE + 5), st.integers(0, 20)), max_size=6)


@given(size=st.integers(1, SIZE), holes=ranges, zeros=ranges, most=st.integers(1, 4), data=st.data())
def test_what_is_told_of_holes_and_zeros_is_so_of_each_byte(
    size: int, holes: list[tuple[int, int]], zeros: list[tuple[int, int]], most: int, data: st.DataObject
) -> None:
    size, holes, zeros = size * 128, [(a * 128, b * 128) for a, b in holes], [(a * 128, b * 128) for a, b in zeros]
    exact = np.zeros(3 * 128 * SIZE, np.uint32)
    for offset, length in zeros:
        exact[offset : offset + length] = 2
    for offset, length in holes:
        exact[offset : offset + length] = 3
    # Of each sector what all of it is: a client may round a border within one up.
    wanted = exact.copy()
    for at in range(0, size, 512):
        if len(set(exact[at : min(at + 512, size)].tolist())) > 1:
            wanted[at : at + 512] = 0
    found = Allocation.of(size, ChangeMap.from_extents(holes), ChangeMap.from_extents(zeros))
    assert int(found.ends[-1]) == size
    assert (np.diff(found.ends, prepend=np.uint64(0)) > 0).all()
    offset = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(offset + 1, size))
    whole = b""
    at = offset
    while at < end:
        ends, flags = found.look(at, end, most)
        assert 1 <= len(ends) <= most
        told = descriptors(at, ends, flags)
        assert len(told) == 8 * len(ends)
        for length, flag in struct.iter_unpack(">II", told):
            assert length
            assert set(wanted[at : at + length].tolist()) == {flag}
            at += length
        whole += told
    assert at == end
    assert descriptors(offset, *found.look(offset, end)) == whole


def test_a_range_that_is_longer_than_a_reply_can_say_is_told_in_pieces() -> None:
    size = 20 << 30
    found = Allocation.of(size, ChangeMap.from_extents([(4096, 9 << 30), (10 << 30, 4096)]), ChangeMap.empty())
    told = descriptors(0, *found.look(0, size))
    assert list(struct.iter_unpack(">II", told)) == [(4096, 0), ((1 << 32) - 4096, 3)]
    told = descriptors(8 << 30, *found.look(8 << 30, size))
    assert list(struct.iter_unpack(">II", told)) == [
        ((1 << 30) + 4096, 3), ((1 << 30) - 4096, 0), (4096, 3), ((1 << 32) - 4096, 0)
    ]  # fmt: skip


COUNT = 70


@given(
    st.lists(
        st.tuples(st.integers(0, COUNT), st.integers(0, COUNT), st.sampled_from([BELOW, WRITTEN, ZEROED])), max_size=12
    ),
    st.integers(0, COUNT - 1),
    st.integers(1, COUNT),
)
def test_blocks_have_the_state_that_they_were_given_last(
    steps: list[tuple[int, int, int]], first: int, count: int
) -> None:
    blocks = Blocks(COUNT)
    wanted = [BELOW] * COUNT
    for start, end, state in steps:
        start, end = min(start, end), max(start, end)
        blocks.set(start, end, state)
        wanted[start:end] = [state] * (end - start)
    end = min(first + count, COUNT)
    states = blocks.get(first, end)
    assert states.tolist() == wanted[first:end]
    found = runs(states)
    assert [state for start, stop, state in found for _ in range(start, stop)] == wanted[first:end]
    assert all(one[2] != two[2] for one, two in pairwise(found))
