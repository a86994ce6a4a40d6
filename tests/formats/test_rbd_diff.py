"""RBD diffs: what is written is read again, in any pieces; no bytes raise anything but our errors."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import StreamError, UsageError
from lvmsync.extents import MAX_SIZE, as_table
from lvmsync.formats.rbd_diff import (
    END,
    MAX_NAME,
    OBJECT,
    ZERO_RUN,
    DiffHeader,
    DiffReader,
    encode_changes,
    encode_header,
)
from lvmsync.stream.frames import Changes, Data, Hole, Zero
from tests.strategies import DEVICE, bodies

NAMES = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
HEADERS = st.builds(DiffHeader, NAMES, NAMES, st.just(DEVICE))

# As Ceph 16.2.15 wrote it, of an image of 64 MiB: "ab" at 5, and the second object discarded. `rbd export-diff`:
REAL = (
    b"rbd diff v1\nf\x02\x00\x00\x00s1t\x02\x00\x00\x00s2s\x00\x00\x00\x04\x00\x00\x00\x00"
    b"w\x05\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00ab"
    b"z\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00e"
)


def v2(tag: bytes, body: bytes, length: int | None = None) -> bytes:
    return tag + struct.pack("<Q", len(body) if length is None else length) + body


def name(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


# The same, cut out of what `rbd export --export-format 2` wrote
REAL_V2 = b"".join(
    [
        b"rbd diff v2\n",
        v2(b"f", name(b"s1")),
        v2(b"t", name(b"s2")),
        v2(b"p", b"\0", 8),
        v2(b"s", struct.pack("<Q", 64 << 20)),
        v2(b"w", struct.pack("<QQ", 5, 2) + b"ab"),
        v2(b"z", struct.pack("<QQ", 4 << 20, 4 << 20)),
        b"e",
    ]
)


def read(data: bytes, *cuts: int) -> tuple[DiffReader, list[tuple[int, int, bytes | None]]]:
    """Read a diff in pieces, each copied out of a buffer that is used again; data that goes on is joined."""
    reader = DiffReader()
    found: list[tuple[int, int, bytes | None]] = []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        for offset, length, payload in reader.feed(data[start:end]):
            raw = None if payload is None else bytes(payload)
            assert raw is None or len(raw) == length
            last = found[-1] if found else None
            if raw is not None and last and last[2] is not None and last[0] + last[1] == offset:
                found[-1] = last[0], last[1] + length, last[2] + raw
            else:
                found.append((offset, length, raw))
    reader.finish()
    return reader, found


def paint(size: int, pieces: list[tuple[int, int, bytes | None]]) -> bytes:
    image = bytearray(b"?" * size)
    for offset, length, payload in pieces:
        image[offset : offset + length] = bytes(length) if payload is None else payload
    return bytes(image)


def expected(size: int, frames: list[Changes]) -> bytes:
    image = bytearray(b"?" * size)
    for frame in frames:
        at = 0
        for offset, length in frame.table.tolist():
            image[offset : offset + length] = (
                frame.payload[at : at + length] if isinstance(frame, Data) else bytes(length)
            )
            at += length
    return bytes(image)


@pytest.mark.parametrize(("data", "version"), [(REAL, 1), (REAL_V2, 2)])
def test_what_ceph_writes_is_read(data: bytes, version: int) -> None:
    for cuts in [(), tuple(range(1, len(data)))]:
        reader, found = read(data, *cuts)
        assert (reader.version, reader.header) == (version, DiffHeader("s1", "s2", 64 << 20))
        assert found == [(5, 2, b"ab"), (4 << 20, 4 << 20, None)]


def test_what_ceph_writes_is_what_we_write() -> None:
    written = b"".join(
        [
            encode_header(DiffHeader("s1", "s2", 64 << 20)),
            *encode_changes(Data(as_table([5], [2]), memoryview(b"ab"))),
            *encode_changes(Hole(as_table([4 << 20], [4 << 20]))),
            END,
        ]
    )
    assert written == REAL


@given(HEADERS, bodies(), st.lists(st.integers(0, 400)))
def test_what_is_written_is_read_in_any_pieces(header: DiffHeader, frames: list[Changes], cuts: list[int]) -> None:
    data = b"".join([encode_header(header), *(raw for one in frames for raw in encode_changes(one)), END])
    reader, found = read(data, *(min(cut, len(data)) for cut in cuts))
    assert reader.header == header
    assert paint(DEVICE, found) == expected(DEVICE, frames)


@given(st.integers(0, 3 * OBJECT), st.integers(1, 3 * OBJECT))
def test_data_is_cut_where_objects_begin(offset: int, length: int) -> None:
    payload = memoryview((bytes(range(256)) * (length // 256 + 1))[:length])
    table = as_table([1, offset + 2], [1, length - 1]) if length > 1 else as_table([offset], [1])
    buffers = encode_changes(Data(table, payload))
    data = encode_header(DiffHeader()) + b"".join(buffers) + END
    for head in buffers[::2]:
        tag, at, size = struct.unpack("<cQQ", head)
        assert tag == b"w"
        assert at // OBJECT == (at + size - 1) // OBJECT
    assert b"".join(bytes(raw or b"") for _, _, raw in read(data)[1]) == bytes(payload)


def test_a_long_hole_is_several_records() -> None:
    (raw,) = encode_changes(Zero(as_table([5, 3 * ZERO_RUN], [2 * ZERO_RUN, 7])))
    records = [struct.unpack("<cQQ", raw[at : at + 17]) for at in range(0, len(raw), 17)]
    assert records == [
        (b"z", 5, ZERO_RUN - 5),
        (b"z", ZERO_RUN, ZERO_RUN),
        (b"z", 2 * ZERO_RUN, 5),
        (b"z", 3 * ZERO_RUN, 7),
    ]


@pytest.mark.parametrize("wrong", ["", "x" * (MAX_NAME + 1)])
def test_a_name_that_cannot_be_is_not_written(wrong: str) -> None:
    with pytest.raises(UsageError, match="1 to 4096 bytes"):
        encode_header(DiffHeader(end=wrong))


BEGIN = b"rbd diff v1\n"
BEGIN_2 = b"rbd diff v2\n"
RANGE = struct.pack("<QQ", 0, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"rbd diff v3\ne", "it begins with b'rbd diff v3"),
        (b"x", "it begins with b'x'"),
        (BEGIN + b"q", "an unknown record 'q', at byte 12"),
        (BEGIN + b"f" + struct.pack("<I", MAX_NAME + 1), "a snapshot's name of 4097 bytes"),
        (BEGIN + b"t" + struct.pack("<I", 0), "a snapshot's name of 0 bytes"),
        (BEGIN + b"t\2\0\0\0\xff\xff", "not UTF-8"),
        (BEGIN + b"s" + struct.pack("<Q", MAX_SIZE), "is not possible"),
        (BEGIN + (b"s" + bytes(8)) * 2, "a record 's' where none can be, at byte 21"),
        (BEGIN + b"z" + RANGE + b"s" + bytes(8), "a record 's' where none can be"),
        (BEGIN + b"s" + bytes(8) + b"w" + RANGE, "1 bytes at 0 lie behind the end of the image"),
        (BEGIN + b"z" + struct.pack("<QQ", MAX_SIZE, 1), "lie behind the end"),
        (BEGIN + b"w" + struct.pack("<QQ", 1 << 63, 1 << 63), "lie behind the end"),
        (BEGIN + b"e" + b"e", "bytes behind its end, at byte 13"),
        (BEGIN_2 + v2(b"s", bytes(8), 9), "is not possible"),
        (BEGIN_2 + v2(b"t", name(b"ab"), 5), "a snapshot's name of 2 bytes"),
        (BEGIN_2 + v2(b"w", RANGE + b"x", 16), "a record of 16 bytes is about 1 bytes of data"),
        (BEGIN_2 + v2(b"z", RANGE, 17), "a record of 17 bytes"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        read(data)


def test_a_claim_of_much_data_costs_no_memory() -> None:
    reader = DiffReader()
    list(reader.feed(BEGIN + b"w" + struct.pack("<QQ", 0, 1 << 62)))
    assert [(at, len(raw or b"")) for at, _, raw in reader.feed(bytes(100))] == [(0, 100)]
    assert [(at, len(raw or b"")) for at, _, raw in reader.feed(bytes(7))] == [(100, 7)]
    with pytest.raises(StreamError, match="cut short at byte 136"):
        reader.finish()


def test_records_of_later_versions_are_skipped_in_version_2() -> None:
    data = BEGIN_2 + v2(b"#", bytes(1000)) + v2(b"#", b"") + v2(b"z", RANGE) + v2(b"z", bytes(16)) + b"e"
    for cuts in [(), (500,), tuple(range(len(data)))]:
        assert read(data, *cuts)[1] == [(0, 1, None)]


@pytest.mark.parametrize("data", [REAL, REAL_V2])
def test_what_is_cut_short_is_never_whole(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(StreamError, match="cut short at byte"):
            read(data[:end])


@given(st.sampled_from([BEGIN, BEGIN_2, b""]), st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_no_bytes_raise_anything_else(begin: bytes, data: bytes, cuts: list[int]) -> None:
    whole = begin + data
    with contextlib.suppress(StreamError):
        read(whole, *(min(cut, len(whole)) for cut in cuts))
