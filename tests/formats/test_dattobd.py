"""COW files of dattobd and elastio-snap: what the drivers wrote, any index against a set, and all that is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import ChangesLost, FormatError, LvmsyncError
from lvmsync.extents import ChangeMap
from lvmsync.formats.dattobd import Geometry, Header, Index, locate_index
from tests.dattobd_store import BLOCK, Case, build_cow, build_header, build_snapshot, first_position, list_cases, merge

PASSES = [(case, one) for case in list_cases() for one in case.facts.get("passes", [])]
OTHERS = [(case, one) for case in list_cases() for one in case.facts.get("other_cow_files", [])]
MODES = [(case, case.facts["snapshot_mode"]) for case in list_cases() if "snapshot_mode" in case.facts]


def names(values: Any) -> str:
    return values["cow"] if isinstance(values, dict) else str(values)


def read(image: bytes, size: int | None, *, piece: int = 1 << 15) -> tuple[ChangeMap, Index]:
    """Read a file of bytes, as its reader is meant to be used."""
    header = Header.parse(image[:4096])
    header.require_clean()
    geometry = locate_index(header, len(image), size)
    index = Index(header, geometry, len(image))
    for at in range(0, geometry.index_bytes, piece):
        part = image[4096 + at : 4096 + min(at + piece, geometry.index_bytes)]
        if any(part) or at == 0:  # pieces of zeros may be left out, or not
            index.add(at // 8, part)
    return index.build(), index


def check_header(image: bytes, facts: dict[str, Any]) -> Header:
    header = Header.parse(image)
    assert (header.magic, header.flags, header.fpos, header.fsize) == tuple(
        facts[key] for key in ("magic", "flags", "fpos", "fsize")
    )
    assert (header.seqid, header.uuid) == (facts["seqid"], facts["uuid"])
    assert (header.version, header.nr_changed_blocks) == (facts["version"], facts["nr_changed_blocks"])
    assert len(image) == facts["file_size"]
    return header


# ---- what the drivers wrote


@pytest.mark.parametrize(("case", "facts"), PASSES, ids=names)
def test_an_incremental_file_gives_exactly_what_is_listed(case: Case, facts: dict[str, Any]) -> None:
    image = case.bytes(facts["cow"])
    header = check_header(image, facts["header"])
    assert (header.is_clean, header.is_incremental) == (True, True)
    expected = ChangeMap.from_extents(merge(facts["changed_ranges"], case.size))
    changes, index = read(image, case.size)
    assert changes == expected
    assert (index.count, len(index.kept.blocks)) == (facts["changed_count"], 0)
    assert index.geometry.index_bytes == facts["data_offset"] - 4096
    without, index = read(image, None)
    assert without == ChangeMap.from_extents([(first * BLOCK, n * BLOCK) for first, n in facts["changed_ranges"]])
    assert index.geometry.size == facts["index_entries"] * BLOCK


@pytest.mark.parametrize(("case", "facts"), PASSES, ids=names)
def test_a_file_of_version_0_has_no_count_and_gives_the_same(case: Case, facts: dict[str, Any]) -> None:
    image = bytearray(case.bytes(facts["cow"]))
    struct.pack_into("<QQ", image, 48, 0, 0)
    assert read(bytes(image), case.size)[0] == ChangeMap.from_extents(merge(facts["changed_ranges"], case.size))


@pytest.mark.parametrize(("case", "facts"), OTHERS, ids=names)
def test_a_file_that_must_be_refused_is(case: Case, facts: dict[str, Any]) -> None:
    image = case.bytes(facts["cow"])
    check_header(image, facts["header"])
    if not facts["must_reject"]:
        assert read(image, case.size)[1].count == facts["nonzero_entries"]
        return
    with pytest.raises(ChangesLost, match=r"without CLEAN.*compare the whole device \('compare:'\)"):
        read(image, case.size)


@pytest.mark.parametrize(("case", "facts"), MODES, ids=names)
def test_a_file_in_snapshot_mode_gives_what_is_listed_and_where_old_content_is(
    case: Case, facts: dict[str, Any]
) -> None:
    image = case.bytes(facts["cow"])
    assert not check_header(image, facts["header"]).is_incremental
    expected = ChangeMap.from_extents(merge(facts["changed_ranges"], case.size))
    for size in (case.size, None):
        changes, index = read(image, size)
        assert changes == expected
        blocks = [at for first, count in facts["changed_ranges"] for at in range(first, first + count)]
        assert index.kept.blocks.tolist() == blocks
        first, last = facts["first_datastore_block"], facts["last_datastore_block"]
        assert sorted(index.kept.positions.tolist()) == list(range(first, last + 1))
        assert index.geometry.first_block * BLOCK == facts["data_offset"]


# ---- any file


sizes = st.integers(1, 3 * (16 << 20) // 512).map(lambda sectors: 512 * sectors)


@st.composite
def changed(draw: st.DrawFn) -> tuple[int, set[int]]:
    size = draw(sizes)
    room = -(-(size // BLOCK) // 4096) * 4096
    last = min(room, -(-size // BLOCK))
    return size, draw(st.sets(st.integers(0, last - 1), max_size=40)) if last else set()


@given(changed(), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1]), st.sampled_from([3, 7]), st.data())
def test_any_index_gives_the_blocks_that_are_not_zero(
    made: tuple[int, set[int]], pieces: int, version: int, flags: int, data: st.DataObject
) -> None:
    size, blocks = made
    entries = {at: data.draw(st.sampled_from([1, 1, 900, (1 << 64) - 1])) for at in blocks}
    image = build_cow(size, entries, version=version, flags=flags, fpos=first_position(size) + len(blocks))
    expected = blocks | ({size // BLOCK} if size % BLOCK else set())
    assert read(image, size, piece=pieces * 4096)[0] == ChangeMap.from_extents(
        [(at * BLOCK, min(BLOCK, size - at * BLOCK)) for at in expected]
    )
    # What the driver could not cut off does no harm, nor does the padding that is not there.
    assert read(image + b"\xff" * 10_000, size)[1].count == len(blocks)
    assert read(image[: 4096 + 8 * max([size // BLOCK, *(at + 1 for at in blocks)])], size)[1].count == len(blocks)


@given(changed(), st.sampled_from([0, 1]), st.data())
def test_any_snapshot_gives_blocks_and_where_they_are_kept(
    made: tuple[int, set[int]], version: int, data: st.DataObject
) -> None:
    size, blocks = made
    kept = data.draw(st.permutations(sorted(blocks)))
    image = build_snapshot(size, {at: b"%d" % at for at in kept}, version=version)
    changes, index = read(image, size)
    tail = size // BLOCK if size // BLOCK % 4096 == 0 and size % BLOCK else None
    expected = blocks | ({tail} if tail is not None else set())
    assert changes == ChangeMap.from_extents([(at * BLOCK, min(BLOCK, size - at * BLOCK)) for at in expected])
    assert index.kept.blocks.tolist() == sorted(blocks)
    for block, position in zip(index.kept.blocks.tolist(), index.kept.positions.tolist(), strict=True):
        assert image[position * BLOCK :].startswith(b"%d\0" % block)


def test_a_short_last_block_is_changed_whatever_the_index_says() -> None:
    size = (16 << 20) + 512
    assert list(read(build_cow(size, {}), size)[0]) == [(16 << 20, 512)]  # it has no entry
    assert list(read(build_cow(size - 4096, {}), size - 4096)[0]) == [((16 << 20) - 4096, 512)]
    # In snapshot mode the driver fails when it is written to: one without an entry only is not known.
    assert list(read(build_snapshot(size, {}), size)[0]) == [(16 << 20, 512)]
    assert list(read(build_snapshot(size - 4096, {}), size - 4096)[0]) == []


def test_a_device_smaller_than_a_block_has_no_index() -> None:
    assert list(read(build_cow(512, {}), 512)[0]) == [(0, 512)]


# ---- what is refused

SIZE = 20 << 20  # two sections
FIRST = 17  # block where the datastore begins
GOOD: dict[int, int] = {0: 1, 7: 18, 5119: 1}
KEPT = {3: b"a", 5000: b"b", 4: b"c"}

DAMAGED = {
    "nothing": (b"", "0 bytes, not 64: is this a COW file"),
    "a header cut short": (build_cow(SIZE, GOOD)[:63], "63 bytes, not 64"),
    "zeros": (bytes(1 << 20), "byte 0: magic 0, not 4776: this is no COW file"),
    "magic": (build_cow(SIZE, GOOD, magic=4777), "byte 0: magic 4777"),
    "flags": (build_cow(SIZE, GOOD, flags=11), "byte 4: flags 0xb, of which only 0x7 are known"),
    "version": (build_cow(SIZE, GOOD, version=2), "byte 48: version 2, not 0 or 1"),
    "seqid": (build_cow(SIZE, GOOD, seqid=0), "byte 24: sequence number 0, and the drivers count from 1"),
    "last seqid": (build_cow(SIZE, GOOD, seqid=(1 << 64) - 1), "byte 24: sequence number 18446744073709551615"),
    "cut short": (build_cow(SIZE, GOOD)[: 4096 + 8 * 5120 - 1], "45055 bytes, and the index .* alone takes 45056"),
    "fpos": (build_cow(SIZE, GOOD, fpos=16), "byte 8: the datastore goes on at block 16, within the index"),
    "less than was stored": (build_cow(SIZE, GOOD, fpos=21), "byte 8: 4 blocks were stored, .* has only 3 entries"),
    "lost entries, version 0": (build_cow(SIZE, {}, fpos=18, version=0), "1 blocks were stored, .* only 0 entries"),
    "fpos past everything": (build_cow(SIZE, GOOD, fpos=1 << 63), "blocks were stored"),
    "count below": (build_cow(SIZE, GOOD, changed=4), "byte 56: 4 changed blocks, and the index has 3"),
    "count above": (build_cow(SIZE, GOOD, changed=2), "byte 56: 2 changed blocks, and the index has more"),
    "past the end": (
        build_cow(SIZE, GOOD | {5120: 1}),
        r"byte 45056, entry of block 5120: the device of 20971520 bytes has 5120 blocks: damaged, or of another",
    ),
    "past the end, version 0": (build_cow(SIZE, {8191: 1}, version=0), "entry of block 8191"),
    "position in the index": (
        build_cow(SIZE, {3: 16}, flags=1, fpos=18) + bytes(BLOCK),
        "entry of block 3: its old content is said to be at block 16, and the datastore has blocks 17 to 17",
    ),
    "position behind the datastore": (build_cow(SIZE, {3: 18}, flags=1, fpos=18) + bytes(2 * BLOCK), "at block 18"),
    "position behind the file": (build_snapshot(SIZE, KEPT)[:-1], "block 4: .* at block 19, and .* blocks 17 to 18"),
    "two at one place": (
        build_cow(SIZE, {3: 17, 5: 18, 9: 17}, flags=1, fpos=20) + bytes(3 * BLOCK),
        "byte 4168, entry of block 9: its old content is said to be at block 17, as that of another block",
    ),
    "more than there is room for": (
        build_cow(SIZE, {3: 17, 5: 17}, flags=1, fpos=18) + bytes(BLOCK),
        "more changed blocks than the 1 that its datastore keeps",
    ),
    "less than is kept": (
        build_snapshot(SIZE, KEPT, fpos=FIRST + 4) + bytes(BLOCK),
        "3 changed blocks, and the datastore from block 17 to 21 keeps another number",
    ),
    "less than is kept, version 0": (build_cow(SIZE, {}, flags=1, fpos=18, version=0) + bytes(BLOCK), "0 changed"),
}


@pytest.mark.parametrize(("image", "message"), DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_is_refused(image: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(image, SIZE)


def test_a_file_that_ends_within_the_padding_of_its_index_is_read_to_the_last_whole_entry() -> None:
    least = 4096 + 8 * 5120
    for more in range(17):
        changes, index = read(build_cow(SIZE, GOOD)[: least + more], SIZE)
        assert (index.count, index.geometry.index_bytes) == (3, 8 * 5120 + more // 8 * 8)
        assert changes.total_bytes == 3 * BLOCK


def test_what_is_good_is_not_refused() -> None:
    assert read(build_cow(SIZE, GOOD), SIZE)[1].count == 3
    assert read(build_snapshot(SIZE, KEPT), SIZE)[1].kept.positions.tolist() == [17, 19, 18]


@pytest.mark.parametrize(("flags", "message"), [(0, "in use, or"), (4, "in use"), (2, "opened again"), (6, "again")])
def test_a_file_that_was_not_closed_is_refused(flags: int, message: str) -> None:
    with pytest.raises(ChangesLost, match=message):
        read(build_cow(SIZE, GOOD, flags=flags), SIZE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (build_cow(SIZE, GOOD)[:-8], "no whole number of sections.*give size="),
        (build_cow(SIZE, GOOD) + bytes(8), "no whole number of sections.*give size="),
        (build_cow(SIZE, {})[:4096], "no whole number"),
        (build_header(), "no whole number"),
        (build_cow(SIZE, {})[:100], "no whole number"),
        (build_cow(SIZE, GOOD)[: 4096 + 32768], "another size|not whole"),  # its last change is in the second section
        (build_snapshot(SIZE, KEPT, version=0), "of version 0.*give size="),
        (build_snapshot(SIZE, KEPT, fpos=21), "3 changed blocks, and the datastore goes on at block 21: no index can"),
        (build_snapshot(SIZE, KEPT, changed=100), "no index can"),
    ],
)
def test_without_the_size_a_length_that_says_nothing_is_refused(image: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(image, None)


def test_a_size_that_is_not_known_is_the_most_that_it_can_be() -> None:
    changes, index = read(build_cow(SIZE, GOOD), None)
    assert index.geometry == Geometry(32 << 20, False, 2, 65536)
    assert list(changes) == [(0, 4096), (28672, 4096), (5119 * 4096, 4096)]
    assert read(build_snapshot(SIZE, KEPT), None)[1].geometry == Geometry(32 << 20, False, 2, 65536)


@given(st.binary(max_size=200), st.sampled_from([None, 512, 4096, 1 << 20, SIZE, (1 << 63) - 1]))
def test_any_bytes_are_read_or_refused(noise: bytes, size: int | None) -> None:
    image = bytearray(build_snapshot(SIZE, KEPT))
    image[: len(noise)] = noise
    for start in (b"", struct.pack("<II", 4776, 1), struct.pack("<II", 4776, 3)):
        image[: len(start)] = start
        try:
            changes, _ = read(bytes(image), size)
        except LvmsyncError:
            continue
        assert changes.end <= (size or 1 << 63)


def test_the_fixtures_are_all_here() -> None:
    assert len(PASSES) == 9
    assert len(MODES) == 4
    assert sum(one["must_reject"] for _, one in OTHERS) == len(OTHERS) - 1
    assert all((Path(__file__).parents[2] / "fixtures/dattobd" / str(case)).is_dir() for case in list_cases())
