"""Layers: what is seen of several tables is what painting them one over the other gives."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.chain.index import Index, IndexBuilder
from lvmsync.chain.layers import DATA, HOLE, ZERO, Table, stack
from lvmsync.errors import FormatError, StreamError
from lvmsync.extents import ChangeMap
from lvmsync.stream import v4
from lvmsync.stream.frames import Abort, Data, End, Frame, Header, Hole, Mark, Zero
from tests.strategies import DEVICE, build_changes, ranges, streams


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Extents that ascend, some of which touch, each of a kind, in frames of its own place."""
    extents = sorted({(one.offset, one.length) for one in ChangeMap.from_extents(draw(ranges()))})
    cut: list[tuple[int, int]] = []
    for offset, length in extents:
        at = draw(st.integers(0, length))
        cut += [(offset, at), (offset + at, length - at)] if 0 < at < length else [(offset, length)]
    kinds = [draw(st.sampled_from((DATA, ZERO, HOLE))) for _ in cut]
    frames = np.arange(len(cut)) // 3
    offsets = np.array([one for one, _ in cut], np.uint64)
    lengths = np.array([one for _, one in cut], np.uint64)
    places = np.array([draw(st.integers(0, 99)) if kind == DATA else 0 for kind in kinds], np.int64)
    return Table(offsets, offsets + lengths, np.array(kinds, np.uint8), frames.astype(np.int64), places)


@given(st.lists(tables(), max_size=5), st.integers(0, DEVICE))
def test_what_is_seen_is_what_was_painted_last(found: list[Table], size: int) -> None:
    painted: dict[int, tuple[int, int, int, int]] = {}
    for layer, table in enumerate(found):
        for row in range(len(table)):
            start = int(table.offsets[row])
            for at in range(start, int(table.ends[row])):
                place = int(table.places[row]) + at - start if table.kinds[row] == DATA else 0
                painted[at] = layer, int(table.kinds[row]), int(table.frames[row]), place
    seen = stack(found, size)
    shown: dict[int, tuple[int, int, int, int]] = {}
    for row in range(len(seen)):
        start = int(seen.offsets[row])
        for at in range(start, int(seen.ends[row])):
            assert at not in shown
            place = int(seen.places[row]) + at - start if seen.kinds[row] == DATA else 0
            shown[at] = int(seen.layers[row]), int(seen.kinds[row]), int(seen.frames[row]), place
    assert shown == {at: what for at, what in painted.items() if at < size}
    assert (np.diff(seen.offsets.astype(np.int64)) > 0).all()
    assert seen.map().total_bytes == len(shown)
    assert seen.map(HOLE).total_bytes == sum(what[1] == HOLE for what in shown.values())
    for table in found:
        assert table.map(ZERO, HOLE) | table.map(DATA) == table.map()


def encode(frames: list[Frame]) -> bytes:
    encoder = v4.Encoder()
    return b"".join(bytes(part) for frame in frames for part in encoder.encode(frame))


@given(streams(), st.integers(1, 400))
def test_an_index_says_where_every_byte_of_a_stream_is(frames: list[Frame], step: int) -> None:
    stream = encode(frames)
    builder = IndexBuilder()
    for at in range(0, len(stream), step):
        builder.feed(stream[at : at + step])
    index = builder.finish()
    assert builder.header == frames[0]
    assert builder.end is not None
    assert Index.parse(index.dump(), "index").dump() == index.dump()
    table = index.table()
    ends = [int(one.table[-1].sum()) if isinstance(one, (Data, Zero, Hole)) else 0 for one in frames]
    assert index.frame_ends().tolist() == [
        end for end, one in zip(ends, frames, strict=True) if not isinstance(one, Mark)
    ]
    changes = [one for one in frames if isinstance(one, (Data, Zero, Hole))]
    assert len(table) == sum(len(one.table) for one in changes)
    row = 0
    for frame in changes:
        payload = bytes(frame.payload) if isinstance(frame, Data) else b""
        done = 0
        for offset, length in frame.table.tolist():
            assert (int(table.offsets[row]), int(table.ends[row])) == (offset, offset + length)
            assert table.kinds[row] == {Data: DATA, Zero: ZERO, Hole: HOLE}[type(frame)]
            if isinstance(frame, Data):
                head = index.head(int(table.frames[row]))
                raw = memoryview(stream)[head.position : head.position + v4.HEAD_SIZE + head.stored]
                data = v4.open_data(raw, index.seed, head)
                place = int(table.places[row])
                assert data[place : place + length] == payload[done : done + length]
                done += length
            else:
                assert table.places[row] == 0
            row += 1


HEADER = Header(size=1 << 20)
GOOD: list[Frame] = [
    HEADER,
    build_changes(Data, ((0, 4), (8, 4)), b"abcdefgh"),
    Mark(2, 8),
    build_changes(Hole, ((16, 16),), b""),
]


def index_of(frames: list[Frame]) -> Index:
    builder = IndexBuilder()
    builder.feed(encode(frames))
    return builder.finish()


def test_what_is_no_whole_stream_has_no_index() -> None:
    with pytest.raises(StreamError, match="has no END"):
        index_of(GOOD)
    with pytest.raises(StreamError, match="its sender gave up: no power"):
        index_of([*GOOD, Abort("no power")])
    builder = IndexBuilder()
    with pytest.raises(StreamError, match=r"a PROTO\[3\] stream has no end mark"):
        builder.feed(b"lvmsync PROTO[3]\n" + bytes(12))
    with pytest.raises(StreamError, match="nothing came"):
        IndexBuilder().finish()
    empty = index_of([HEADER, End(0, 0)])
    assert len(empty.table()) == 0
    assert Index.parse(empty.dump(), "x").table().map() == ChangeMap.empty()


def test_a_damaged_index_is_refused() -> None:
    good = index_of([*GOOD, End(3, 24)]).dump()
    body = zstandard.ZstdDecompressor().decompress(good)

    def sealed(changed: bytes) -> bytes:
        return zstandard.ZstdCompressor().compress(changed + xxhash.xxh3_128_digest(changed))

    plain = body[:-16]
    huge = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40)  # the head of a zstd frame
    for bad, message in (
        (b"", "damaged"),
        (b"x" * 99, "damaged"),
        (good[:-3], "damaged"),
        (zstandard.ZstdCompressor().compress(body[:-1] + b"x"), "the index is damaged"),
        (zstandard.ZstdCompressor().compress(b"short"), "the index is damaged"),
        (sealed(b"other..." + plain[8:]), "not an index that this lvmsync knows"),
        (sealed(plain[:8] + struct.pack("<Q", 9) + plain[16:]), "not an index that this lvmsync knows"),
        (sealed(plain[:24] + plain[24 + 25 :]), "not an index that this lvmsync knows"),
        (sealed(plain[: 24 + 12] + struct.pack("<I", 5) + plain[24 + 16 :]), "contradicts itself"),
        (sealed(plain[: 24 + 4 * 24] + b"\x09" + plain[24 + 4 * 24 + 1 :]), "contradicts itself"),
    ):
        with pytest.raises(FormatError, match=message):
            Index.parse(bad, "index")
    with pytest.raises(FormatError, match="is none"):
        Index.parse(huge, "index")


def test_a_frame_that_is_not_what_the_index_says_is_refused() -> None:
    compressor = v4.Compressor(1)
    frame = build_changes(Data, ((0, 4096),), bytes(4096))
    packed = compressor.pack(frame)
    assert packed is not None
    encoder = v4.Encoder()
    parts = [encoder.encode(HEADER), encoder.encode(frame, packed), encoder.encode(End(1, 4096))]
    stream = b"".join(bytes(part) for one in parts for part in one)
    builder = IndexBuilder()
    builder.feed(stream)
    index = builder.finish()
    head = index.head(1)
    raw = bytearray(stream[head.position : head.position + v4.HEAD_SIZE + head.stored])
    assert bytes(v4.open_data(memoryview(raw), index.seed, head)) == bytes(4096)
    good = bytes(raw)
    for bad, seed, known in (
        (good[:-1], index.seed, head),
        (good[:40] + bytes([good[40] ^ 1]) + good[41:], index.seed, head),
        (good, index.seed ^ 1, head),
        (good, index.seed, head._replace(extents=2)),
        (good, index.seed, head._replace(checksum=0)),
    ):
        with pytest.raises(StreamError, match="not the one that was written, or is damaged"):
            v4.open_data(memoryview(bad), seed, known)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"no zstd at all", "cannot be decompressed"),
        (zstandard.ZstdCompressor().compress(bytes(100)), "not the one that was written"),
    ],
)
def test_a_frame_whose_checksum_is_right_may_be_nonsense_all_the_same(packed: bytes, message: str) -> None:
    encoder = v4.Encoder()
    encoder.encode(HEADER)
    frame = b"".join(map(bytes, encoder.encode(build_changes(Data, ((0, 4096),), bytes(4096)), packed)))
    known = v4.FrameHead(0, len(packed), 1, struct.unpack("<Q", frame[24:32])[0])
    first = b"".join(map(bytes, v4.Encoder().encode(HEADER)))
    seed = struct.unpack("<Q", first[len(v4.MAGIC) + 24 :][:8])[0]
    with pytest.raises(StreamError, match=message):
        v4.open_data(memoryview(frame), seed, known)
