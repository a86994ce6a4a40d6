"""A ChangeMap is a set of bytes, and nothing else: every operation is held against Python's own sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lvmsync import extents
from lvmsync.extents import MAX_SIZE, ChangeMap, Covered, Extent, MapBuilder, as_table
from tests.strategies import BIG, DEVICE, array, change_maps, ranges

SIZES = st.integers(0, DEVICE + 20)


def as_set(pairs: ChangeMap | Sequence[tuple[int, int]]) -> set[int]:
    return {byte for offset, length in pairs for byte in range(offset, offset + length)}


def is_canonical(found: ChangeMap) -> bool:
    """Tell whether the extents are sorted, not empty, and merged wherever they touch."""
    starts, ends = found.offsets.tolist(), found.ends.tolist()
    edges = [edge for pair in zip(starts, ends, strict=True) for edge in pair]
    return found.offsets.dtype == found.ends.dtype == np.uint64 and edges == sorted(set(edges))


def check(found: ChangeMap, wanted: set[int]) -> None:
    assert as_set(found) == wanted
    assert is_canonical(found)
    assert found.total_bytes == len(wanted)
    assert found.end == max(wanted, default=-1) + 1


@given(ranges())
def test_a_map_of_ranges_holds_their_bytes_in_whatever_order_they_come(pairs: list[tuple[int, int]]) -> None:
    check(ChangeMap.from_extents(pairs), as_set(pairs))
    check(ChangeMap.from_arrays(array([r[0] for r in pairs]), array([r[1] for r in pairs])), as_set(pairs))


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 16), st.integers(0, 16))
def test_a_map_of_chunks_holds_their_bytes_and_clips_the_last(chunks: list[int], chunk_size: int, cut: int) -> None:
    size = 31 * chunk_size - min(cut, chunk_size - 1)
    wanted = as_set([(chunk * chunk_size, chunk_size) for chunk in chunks]) & set(range(size))
    numbers = array(chunks)
    check(ChangeMap.from_chunks(numbers, chunk_size, size), wanted)
    assert numbers.tolist() == sorted(chunks)  # sorted in place, as its docstring warns


@given(change_maps(), change_maps())
def test_set_algebra_is_that_of_sets(a: ChangeMap, b: ChangeMap) -> None:
    check(a | b, as_set(a) | as_set(b))
    check(a & b, as_set(a) & as_set(b))
    check(a - b, as_set(a) - as_set(b))


@given(change_maps(), SIZES)
def test_clip_and_complement_split_a_device(a: ChangeMap, size: int) -> None:
    check(a.clip(size), as_set(a) & set(range(size)))
    check(a.complement(size), set(range(size)) - as_set(a))


@given(change_maps(), change_maps())
def test_equal_maps_and_only_those_have_equal_digests(a: ChangeMap, b: ChangeMap) -> None:
    assert (a == b) == (as_set(a) == as_set(b)) == (a.digest() == b.digest())


def test_the_digest_is_the_same_on_every_machine_and_in_every_release() -> None:
    # Recorded; a resumed stream compares it with the one in the header.
    assert ChangeMap.from_extents([(0, 4096), (1 << 40, 512)]).digest() == "28fb82d91b4ee782aeff46b9a8094290"
    assert ChangeMap.empty().digest() == "99aa06d3014798d86001c324468d497f"  # XXH3-128 of nothing


@given(change_maps(), change_maps())
def test_overlaps_tells_whether_a_byte_is_shared(a: ChangeMap, b: ChangeMap) -> None:
    assert a.overlaps(b.offsets, b.ends) == bool(as_set(a) & as_set(b))


@given(change_maps(), ranges())
def test_overlaps_takes_ranges_in_any_order(a: ChangeMap, pairs: list[tuple[int, int]]) -> None:
    pairs = [pair for pair in pairs if pair[1]]
    offsets, ends = array([offset for offset, _ in pairs]), array([offset + length for offset, length in pairs])
    assert a.overlaps(offsets, ends) == bool(as_set(a) & as_set(pairs))


def test_ranges_that_only_touch_share_no_byte() -> None:
    found = ChangeMap.from_extents([(10, 5), (20, 5)])
    assert not found.overlaps(array([5, 15, 25]), array([10, 20, 30]))
    assert found.overlaps(array([5, 14]), array([10, 15]))
    assert found.overlaps(array([5, 5]), array([10, 11]))


@pytest.mark.parametrize(
    ("size", "left"), [(25, [(10, 5), (20, 5)]), (24, [(10, 5), (20, 4)]), (20, [(10, 5)]), (10, [])]
)
def test_a_map_is_cut_inside_its_last_extent_and_between_extents(size: int, left: list[tuple[int, int]]) -> None:
    assert list(ChangeMap.from_extents([(10, 5), (20, 5)]).clip(size)) == left


@given(change_maps(), st.integers(1, 50), st.integers(1, 6))
def test_batches_give_every_byte_once_in_order_and_within_their_limits(a: ChangeMap, most: int, count: int) -> None:
    given_out: list[int] = []
    for offsets, lengths in a.batches(most, count):
        assert 1 <= len(offsets) == len(lengths) <= count
        assert all(length > 0 for length in lengths)
        assert sum(lengths) <= most
        given_out += [byte for pair in zip(offsets, lengths, strict=True) for byte in range(pair[0], sum(pair))]
    assert given_out == sorted(as_set(a))


@given(change_maps(), st.integers(1, 50), st.integers(1, 6))
def test_pieces_of_a_long_extent_start_at_multiples_of_the_limit(a: ChangeMap, most: int, count: int) -> None:
    starts = a.offsets.tolist()
    for offsets, _ in a.batches(most, count):
        for offset in offsets:
            own = max(start for start in starts if start <= offset)
            assert (offset - own) % most == 0


def test_batches_are_filled_and_not_one_an_extent() -> None:
    found = ChangeMap.from_extents([(at * 8, 4) for at in range(100)])
    assert [len(offsets) for offsets, _ in found.batches(160, 50)] == [40, 40, 20]
    assert [len(offsets) for offsets, _ in found.batches(400, 50)] == [50, 50]
    assert list(found.batches(1 << 20, 1)) == [([at * 8], [4]) for at in range(100)]


@given(st.lists(change_maps(), max_size=12), change_maps())
def test_what_was_covered_is_not_unseen_again(added: list[ChangeMap], asked: ChangeMap) -> None:
    covered = Covered()
    seen: set[int] = set()
    for one in added:
        check(covered.unseen(one), as_set(one) - seen)
        covered.add(one)
        seen |= as_set(one)
    check(covered.unseen(asked), as_set(asked) - seen)


def test_covered_keeps_only_a_few_maps_however_many_are_added() -> None:
    covered = Covered()
    for at in range(1000):
        covered.add(ChangeMap.from_extents([(at * 2, 1)]))
    assert len(covered._levels) <= 10  # falling sizes, each more than twice the next
    check(covered.unseen(ChangeMap.whole(2000)), set(range(1, 2000, 2)))


def test_the_largest_device_there_can_be_does_not_wrap() -> None:
    top = ChangeMap.from_extents([(MAX_SIZE - 512, 512), (BIG, 4096), (0, 1)])
    assert top.end == MAX_SIZE
    assert top.total_bytes == 512 + 4096 + 1
    assert list(top.complement(MAX_SIZE))[-1] == Extent(BIG + 4096, MAX_SIZE - 512 - BIG - 4096)
    assert (top | ChangeMap.whole(MAX_SIZE)).total_bytes == MAX_SIZE
    assert ChangeMap.whole(MAX_SIZE) - top == top.complement(MAX_SIZE)


def test_the_bytes_of_a_map_are_right_when_the_sum_of_its_offsets_is_more_than_64_bits() -> None:
    # As with 2 million extents on a device of 16 TiB: here the sum of the ends passes 2**64, that of the starts not.
    found = ChangeMap.from_extents([(BIG - 128, 64), (BIG, 64), (2 * BIG - 64, 64)])
    assert int(found.ends.sum()) < int(found.offsets.sum())
    assert found.total_bytes == 192


def test_a_map_longer_than_the_blocks_that_it_is_handled_in_has_no_seam() -> None:
    changed = np.random.default_rng(1).random(3 << 16) < 0.8
    changed[(1 << 16) - 3 : (1 << 16) + 3] = True
    chunks = np.flatnonzero(changed).astype(np.uint64)
    found = ChangeMap.from_chunks(np.repeat(chunks[::-1], 2), 8, len(changed) * 8)
    edges = np.flatnonzero(np.diff(changed, prepend=False, append=False)).reshape(-1, 2).astype(np.uint64) * 8
    assert np.array_equal(np.stack([found.offsets, found.ends], axis=1), edges)
    assert found.digest() == xxhash.xxh3_128(edges.astype("<u8").tobytes()).hexdigest()
    batches = list(found.batches(1 << 12, 512))
    assert [offset for offsets, _ in batches for offset in offsets] == edges[:, 0].tolist()
    assert [length for _, lengths in batches for length in lengths] == (edges[:, 1] - edges[:, 0]).tolist()


def test_a_million_extents_cost_two_arrays_and_no_objects() -> None:
    offsets = np.arange(1_000_000, dtype=np.uint64) * np.uint64(8192)
    found = ChangeMap.from_arrays(offsets, np.full(1_000_000, 4096, np.uint64))
    assert found.offsets.nbytes + found.ends.nbytes == 16_000_000
    assert found.total_bytes == 4096 * 1_000_000


def test_an_extent_is_half_open() -> None:
    assert Extent(10, 5).end == 15
    assert list(ChangeMap.from_extents([(10, 5), (15, 5)])) == [Extent(10, 10)]


def test_a_map_is_empty_or_whole() -> None:
    check(ChangeMap.empty(), set())
    check(ChangeMap.whole(7), set(range(7)))
    check(ChangeMap.whole(0), set())
    assert len(ChangeMap.whole(7)) == 1


def test_a_map_is_equal_to_no_other_kind_of_thing_and_cannot_be_a_key() -> None:
    assert ChangeMap.empty() != [(0, 1)]
    assert repr(ChangeMap.whole(5)) == "<ChangeMap: 1 extents, 5 bytes>"
    with pytest.raises(TypeError):
        hash(ChangeMap.empty())


def test_a_table_has_a_row_an_extent() -> None:
    table = as_table([0, BIG], [512, 4096])
    assert table.tolist() == [[0, 512], [BIG, 4096]]
    assert table.dtype == np.dtype("<u8")
    assert as_table([], []).shape == (0, 2)


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=5), max_size=6))
def test_a_map_that_is_built_piece_by_piece_is_that_of_all_ranges(pieces: list[list[tuple[int, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents, "_BUILDER_ROWS", 3)  # so that arrays get full
        build_and_compare(pieces)


def build_and_compare(pieces: list[list[tuple[int, int]]]) -> None:
    builder = MapBuilder()
    everything: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        ranges: list[tuple[int, int]] = []
        for gap, length in piece:
            at += max(gap, 1) if ranges else gap  # merged among themselves; a piece may touch the one before
            ranges.append((at, length))
            at += length
        builder.add(array([start for start, _ in ranges]), array([start + length for start, length in ranges]))
        everything += ranges
    found = builder.build()
    assert is_canonical(found)
    assert found == ChangeMap.from_extents(everything)


@given(st.sets(st.integers(0, 60)), st.integers(1, 9), st.integers(1, 5))
def test_a_map_that_is_built_of_blocks_is_that_of_their_bytes(blocks: set[int], block_size: int, count: int) -> None:
    builder = MapBuilder()
    ordered = sorted(blocks)
    for begin in range(0, len(ordered), count):
        builder.add_blocks(array(ordered[begin : begin + count]), block_size)
    builder.add_blocks(array([]), block_size)
    assert builder.build() == ChangeMap.from_extents((block * block_size, block_size) for block in blocks)


def test_a_builder_keeps_no_view_of_what_it_was_given() -> None:
    offsets, ends = array([0, 10]), array([5, 15])
    builder = MapBuilder()
    builder.add(offsets, ends)
    offsets[:] = ends[:] = 99
    assert list(builder.build()) == [(0, 5), (10, 5)]
