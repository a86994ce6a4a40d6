from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import ChangeMap
from lvmsync.formats import snapshot
from lvmsync.formats.snapshot import (
    DiskHeader,
    Layout,
    SnapshotTable,
    Usage,
    build_map,
    decode_exceptions,
    parse_status,
    parse_table,
)
from tests.fixture_files import Case, list_cases

CASES = list_cases("snapshot")
SMALL = Layout(chunk_size=64, store_chunks=100)  # four exceptions in an area


def header(magic: int = 0x70416E53, valid: int = 1, version: int = 1, chunk: int = 8) -> bytes:
    return struct.pack("<4I", magic, valid, version, chunk)


def entries(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def status_of(case: Case) -> str:
    """Return the recorded status of the case's snapshot, the part behind the target's kind."""
    for line in case.text("dmsetup-status.txt").splitlines():
        words = line.split(" ", 4)
        if words[3] in ("snapshot", "snapshot-merge"):
            return words[4]
    raise AssertionError(f"no snapshot in {case}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_header_of_a_real_store_is_read(case: Case, tmp_path: Path) -> None:
    data = case.image("cow", tmp_path).read_bytes()
    told = case.facts["header"]
    if not told["valid"]:
        with pytest.raises(ChangesLost, match="marked invalid"):
            DiskHeader.parse(data)
        return
    assert DiskHeader.parse(data) == (told["magic"], told["valid"], told["version"], told["chunk_sectors"])


@pytest.mark.parametrize("case", [case for case in CASES if case.facts["header"]["valid"]], ids=str)
def test_a_real_table_has_as_many_exceptions_as_recorded(case: Case, tmp_path: Path) -> None:
    data = case.image("cow", tmp_path).read_bytes()
    layout = Layout.of(DiskHeader.parse(data), len(data))
    table = b"".join(
        data[offset : offset + length] for offset, length in zip(*layout.locate(0, layout.table_size), strict=True)
    )
    found = decode_exceptions(table, 0, layout, case.facts["origin_size"])
    assert len(found) == case.facts["exception_count"]
    listed = case.facts.get("exceptions_on_disk")
    if isinstance(listed, list):
        assert found.tolist() == [old for old, _ in listed]


@pytest.mark.parametrize("case", [case for case in CASES if case.has_text("dmsetup-status.txt")], ids=str)
def test_the_kernels_status_tells_the_exact_count_or_that_it_is_lost(case: Case) -> None:
    text = status_of(case)
    if text in ("Invalid", "Overflow"):
        with pytest.raises(ChangesLost, match=text):
            parse_status(text)
        return
    usage = parse_status(text)
    layout = Layout(case.facts["header"]["chunk_sectors"] * 512, case.facts["cow_size"] // 4096)
    if "snapshot-merge" in case.text("dmsetup-status.txt"):
        return  # it counts down in steps of its own
    assert layout.count_allocated(usage.allocated) == case.facts["exception_count"]
    assert usage.total == case.facts["cow_size"] // 512


@pytest.mark.parametrize("word", ["Invalid", "Merge failed", "Overflow", "Unknown"])
def test_a_lost_snapshot_is_refused_with_the_way_out(word: str) -> None:
    with pytest.raises(ChangesLost, match="compare the whole device") as caught:
        parse_status(f" {word}\n", "/dev/mapper/x")
    assert caught.value.device == "/dev/mapper/x"
    assert "/dev/mapper/x" in str(caught.value)


def test_a_working_status_is_three_numbers_of_sectors() -> None:
    assert parse_status("96/2048 16") == Usage(allocated=96, total=2048, metadata=16)


@pytest.mark.parametrize("text", ["", "96/2048", "x/y z", "96/2048 16 1", "-1/2 3", "invalid", "9" * 30 + "/1 1"])
def test_another_status_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="expected USED/TOTAL METADATA"):
        parse_status(text)


def test_a_table_names_origin_and_store() -> None:
    assert parse_table("254:1 254:2 P 8") == SnapshotTable((254, 1), (254, 2), "P")
    assert parse_table("7:0 8:17 PO 32 1 discard_zeroes_cow").mode == "PO"
    assert parse_table("7:0 8:17 N 32").mode == "N"


@pytest.mark.parametrize("text", ["", "254:1", "254:1 254:2 Q 8", "a:1 2:3 P 8", "254:1 254:2 P"])
def test_another_table_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="expected ORIGIN STORE"):
        parse_table(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, not 16"),
        (header()[:15], "15 bytes, not 16"),
        (header(magic=0), "magic 0x0"),
        (header(magic=0x534E4170), "magic 0x534e4170"),
        (header(version=2), "version 2, not 1"),
        (header(chunk=0), "a chunk of 0 sectors"),
        (header(chunk=12), "a chunk of 12 sectors"),
        (header(chunk=1 << 22), "a chunk of 4194304 sectors; .* up to 2097152"),
        (header(chunk=(1 << 32) - 1), "a chunk of 4294967295 sectors"),
    ],
)
def test_a_header_that_the_kernel_would_not_take_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        DiskHeader.parse(data)


def test_the_largest_chunk_of_the_kernel_is_taken() -> None:
    assert DiskHeader.parse(header(chunk=1 << 21)).chunk_size == 1 << 21


def test_an_invalid_store_says_so_and_what_to_do() -> None:
    with pytest.raises(ChangesLost, match="compare the whole device") as caught:
        DiskHeader.parse(header(valid=0))
    assert caught.value.offset == 4


@pytest.mark.parametrize(
    ("size", "areas"),
    [(2, 1), (3, 1), (257, 1), (258, 1), (259, 2), (515, 2), (516, 3)],
)
def test_only_areas_within_the_store_are_read(size: int, areas: int) -> None:
    layout = Layout.of(DiskHeader.parse(header()), size * 4096)
    assert (layout.areas, layout.table_size) == (areas, areas * 4096)
    assert Layout.of(DiskHeader.parse(header()), size * 4096 + 4095) == layout  # a ragged tail is not used


@pytest.mark.parametrize("size", [0, 16, 4096, 8191])
def test_a_store_without_room_for_an_area_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match="take 8192"):
        Layout.of(DiskHeader.parse(header()), size)


def test_pieces_of_the_table_are_found_in_the_store() -> None:
    assert SMALL.locate(0, 64) == ([64], [64])
    assert SMALL.locate(48, 96) == ([64 + 48, 6 * 64, 11 * 64], [16, 64, 16])
    assert SMALL.locate(0, 0) == ([], [])


def test_chunk_0_of_the_origin_is_an_entry_and_new_0_is_the_end() -> None:
    buf = entries((0, 2), (7, 3), (5, 0), (6, 4))
    assert decode_exceptions(buf, 0, SMALL, 8 * 64).tolist() == [0, 7]
    assert decode_exceptions(b"", 0, SMALL, 0).tolist() == []


def test_where_exceptions_keep_their_chunks_is_read_of_as_many_as_are_right() -> None:
    assert snapshot.kept_at(entries((0, 2), (7, 3), (5, 0)), 2).tolist() == [2, 3]


@pytest.mark.parametrize("new", [1, 6, 96, 100, 1 << 40, (1 << 64) - 1])
def test_an_exception_kept_where_no_data_can_be_is_refused(new: int) -> None:
    buf = entries((0, 2), (1, 3), (2, 4), (3, 5), (4, 7), (5, new))
    with pytest.raises(FormatError, match=r"exception 9: chunk 5 kept at chunk .* no data chunk") as caught:
        decode_exceptions(buf, 4, SMALL, 640)
    assert caught.value.offset == (1 + 5 + 5) * 64 + 16


def test_an_exception_past_the_end_of_the_origin_is_refused() -> None:
    buf = entries((10, 2))
    assert decode_exceptions(buf, 0, SMALL, 641).tolist() == [10]
    with pytest.raises(FormatError, match=r"exception 0: chunk 10 .* has only 10 chunks"):
        decode_exceptions(buf, 0, SMALL, 640)


def test_half_an_entry_is_refused() -> None:
    with pytest.raises(FormatError, match="cut short"):
        decode_exceptions(bytes(24), 0, SMALL, 640)


@pytest.mark.parametrize("count", [2, 3, 200_000])
def test_a_chunk_with_two_exceptions_is_refused_wherever_it_is(count: int) -> None:
    for place in {0, count - 2, (1 << 16) - 1, 1 << 16} & set(range(count - 1)):
        chunks = np.arange(count, dtype=np.uint64)
        chunks[place + 1] = place
        with pytest.raises(FormatError, match=f"chunk {place} of the origin has two"):
            build_map(chunks[::-1].copy(), 64, count * 64)


@pytest.mark.parametrize("allocated", [0, 8, 15, 17, 20])
def test_a_status_that_cannot_belong_to_the_store_is_refused(allocated: int) -> None:
    with pytest.raises(FormatError, match="does the store belong to it"):
        Layout(4096, 100).count_allocated(allocated)


@given(count=st.integers(0, 2000), sectors=st.sampled_from([1, 2, 8, 16]))
def test_the_count_of_exceptions_follows_from_the_chunks_in_use(count: int, sectors: int) -> None:
    layout = Layout(sectors * 512, 1 << 20)
    next_free = 2  # as the kernel hands them out: one after the other, areas stepped over
    for _ in range(count):
        next_free += 1
        if next_free % layout.stride == 1:
            next_free += 1
    assert layout.count_allocated(next_free * sectors) == count


def naive(store: bytes, size: int) -> list[tuple[int, int]]:
    """Read a store one entry at a time, and merge one chunk at a time."""
    chunk_size = struct.unpack_from("<I", store, 12)[0] * 512
    changed: set[int] = set()
    area = 1
    while (area + 1) * chunk_size <= len(store):
        for entry in range(chunk_size // 16):
            old, new = struct.unpack_from("<QQ", store, area * chunk_size + entry * 16)
            if new == 0:
                return merged(changed, chunk_size, size)
            changed.add(old)
        area += chunk_size // 16 + 1
    return merged(changed, chunk_size, size)


def merged(changed: set[int], chunk_size: int, size: int) -> list[tuple[int, int]]:
    ranges: list[list[int]] = []
    for chunk in sorted(changed):
        if ranges and ranges[-1][1] == chunk * chunk_size:
            ranges[-1][1] += chunk_size
        else:
            ranges.append([chunk * chunk_size, (chunk + 1) * chunk_size])
    return [(start, min(end, size)) for start, end in ranges]


def read(store: bytes, size: int) -> ChangeMap:
    layout = Layout.of(DiskHeader.parse(store), len(store))
    offsets, lengths = layout.locate(0, layout.table_size)
    table = b"".join(store[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True))
    return build_map(decode_exceptions(table, 0, layout, size).copy(), layout.chunk_size, size)


@st.composite
def stores(draw: st.DrawFn) -> tuple[bytes, int]:
    """A store as the kernel writes one, with garbage behind the terminator, and the size of its origin."""
    chunks = draw(st.integers(1, 120))
    old = draw(st.lists(st.integers(0, chunks - 1), unique=True, max_size=chunks))
    size = chunks * 512 - draw(st.integers(0, 511))
    table, new = b"", 2
    for chunk in old:
        table += entries((chunk, new))
        new += 2 if (new + 1) % 33 == 1 else 1
    areas = len(table) // 512 + 1
    table += entries((9, 0)) * draw(st.integers(1, 2))
    table += draw(st.binary(max_size=64)) * 16
    store = bytearray((1 + areas * 33) * 512 + draw(st.integers(0, 600)))
    store[:16] = header(chunk=1)
    for area in range(areas):
        at = (1 + area * 33) * 512
        store[at : at + 512] = table[area * 512 : (area + 1) * 512].ljust(512, b"\0")
    return bytes(store), size


@given(stores())
def test_a_store_reads_as_an_entry_by_entry_reader_reads_it(made: tuple[bytes, int]) -> None:
    store, size = made
    assert [(extent.offset, extent.end) for extent in read(store, size)] == naive(store, size)


@given(stores(), st.data())
def test_damage_gives_a_map_or_one_of_our_errors(made: tuple[bytes, int], data: st.DataObject) -> None:
    store, size = bytearray(made[0]), made[1]
    for _ in range(data.draw(st.integers(1, 4))):
        store[data.draw(st.sampled_from([*range(16), *range(512, 700)]))] = data.draw(st.integers(0, 255))
    cut = bytes(store[: data.draw(st.integers(0, len(store)))])
    with contextlib.suppress(FormatError, ChangesLost):
        assert read(cut, size).end <= size


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_one_of_our_errors(data: bytes) -> None:
    text = data.decode("latin1")
    with contextlib.suppress(FormatError, ChangesLost):
        Layout.of(DiskHeader.parse(data), len(data))
    with contextlib.suppress(FormatError, ChangesLost):
        parse_status(text)
    with contextlib.suppress(FormatError):
        parse_table(text)


def test_the_module_names_the_kernels_numbers() -> None:
    assert snapshot.SNAP_MAGIC.to_bytes(4, "little") == b"SnAp"
