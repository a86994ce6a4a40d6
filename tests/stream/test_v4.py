"""PROTO[4]: what was sent is what arrives, and whatever happened on the way is noticed before it counts."""

from __future__ import annotations

import itertools
import json
import random
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from lvmsync.errors import StreamError
from lvmsync.history import Point
from lvmsync.stream import v4
from lvmsync.stream.frames import SNAPBACK, Abort, Data, End, Frame, Header, Hole, Mark, Zero
from lvmsync.stream.session import Receiver
from tests.strategies import BIG, build_changes, describe, streams
from tests.stream.feeding import Forge, admitted, byte_by_byte, encode, feed, give

HEADER = Header(
    size=2 * BIG - 1,
    extents=4,
    changed_bytes=BIG + 23,
    map_digest="d1",
    source="snapshot",
    name="vg/snap",
    base=Point("a", None, "2024-01-01T00:00:00+00:00"),
    head=Point("b", "a"),
    host="höst",
    time="2024-01-02T00:00:00+00:00",
    version="0.1",
    intent=SNAPBACK,
    stream="random",
)
ALL_KINDS: list[Frame] = [
    HEADER,
    build_changes(Data, ((0, 4), (8, 4)), b"abcdefgh"),
    Mark(2, 8),
    build_changes(Zero, ((16, 16),), b""),
    build_changes(Hole, ((BIG, BIG - 1),), b""),
    End(4, BIG + 23),
]
SMALL: list[Frame] = [
    Header(size=4096),
    build_changes(Data, ((0, 4), (8, 4)), b"abcdefgh"),
    build_changes(Zero, ((16, 16),), b""),
    Mark(3, 24),
    build_changes(Hole, ((512, 512),), b""),
    End(4, 536),
]


def wire(frames: list[Frame]) -> bytes:
    return b"".join(encode(frames))


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("last", [ALL_KINDS[-1], Abort("the snapshot overflowed")], ids=["END", "ABORT"])
def test_every_kind_of_frame_arrives_as_it_was_sent(last: Frame, level: int) -> None:
    frames = [*ALL_KINDS[:-1], last]
    data = b"".join(encode(frames, level=level))
    wanted = [describe(frame) for frame in frames]
    assert [describe(frame) for frame in feed(data)] == wanted
    assert [describe(frame) for frame in byte_by_byte(data)] == wanted


@given(streams(), st.sampled_from((0, 1)), st.lists(st.integers(1, 200), max_size=30))
def test_a_stream_arrives_as_it_was_sent_wherever_it_is_cut_on_the_way(
    frames: list[Frame], level: int, sizes: list[int]
) -> None:
    data = b"".join(encode(frames, level=level))
    assert admitted(data, sizes) == ([describe(frame) for frame in frames], None)


def test_the_bytes_are_those_that_the_description_says() -> None:
    forge = Forge()
    table = struct.pack("<4Q", 0, 4, 8, 4)
    pieces = encode([Header(size=4096), SMALL[1], Mark(2, 8), Abort("why")])
    assert pieces[0] == forge.header(b'{"size": 4096, "intent": "delta"}')
    assert pieces[1] == forge.frame(2, table + b"abcdefgh", count=2)
    assert pieces[2] == forge.frame(5, struct.pack("<QQ", 2, 8))
    assert pieces[3] == forge.frame(7, b"why")
    assert len(pieces[1]) == 32 + 32 + 8


def test_a_payload_goes_out_and_comes_in_without_a_copy() -> None:
    sent = build_changes(Data, ((0, 1 << 20),), bytes(1 << 20))
    assert isinstance(sent, Data)
    assert v4.Encoder().encode(sent)[-1] is sent.payload
    header, body = encode([Header(size=1 << 20), sent])
    receiver = Receiver()
    assert list(give(receiver, header + body[:32])) == [Header(size=1 << 20)]
    buffer = receiver.get_buffer()
    buffer[:] = body[32:]
    receiver.received(len(buffer))
    (frame,) = receiver.frames()
    assert isinstance(frame, Data)
    assert np.shares_memory(np.frombuffer(frame.payload, np.uint8), np.frombuffer(buffer, np.uint8))


def test_what_shrinks_goes_compressed_and_what_does_not_goes_as_it_is() -> None:
    packer = v4.Compressor(1)
    noise = build_changes(Data, ((0, 4096),), random.Random(1).randbytes(4096))
    text = build_changes(Data, ((0, 4096),), b"lvmsync " * 512)
    packed = packer.pack(text)
    assert packed is not None
    assert len(packed) < 200
    assert packer.pack(noise) is None
    # After a frame that did not shrink, the next are not tried, whatever they are; then one is again.
    assert [packer.pack(text) is None for _ in range(17)] == [True] * 16 + [False]


def test_sender_and_receiver_have_the_same_digest() -> None:
    encoder, receiver = v4.Encoder(), Receiver()
    data = b"".join(part for frame in ALL_KINDS for part in encoder.encode(frame))
    frames = list(feed(data, receiver=receiver))
    assert isinstance(frames[-1], End)
    assert encoder.digest == receiver.digest == frames[-1].digest.hex()
    assert receiver.position == len(data)
    assert receiver.version == 4


def test_every_flipped_bit_is_an_error_and_no_wrong_frame_comes_out() -> None:
    data = wire(SMALL)
    original = [describe(frame) for frame in SMALL]
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        found, error = admitted(bytes(damaged))
        assert error is not None, f"bit {bit}"
        assert found == original[: len(found)], f"bit {bit}"
        assert len(found) < len(original), f"bit {bit}"


def test_every_cut_is_an_error_that_says_so_and_what_came_before_it_is_right() -> None:
    data = wire(SMALL)
    original = [describe(frame) for frame in SMALL]
    for cut in range(len(data)):
        found, error = admitted(data[:cut])
        assert error is not None
        assert "cut" in str(error) or "no stream" in str(error)
        assert found == original[: len(found)]
        assert len(found) < len(original)


@given(streams(), st.data())
def test_a_damaged_or_cut_stream_is_never_success(frames: list[Frame], data: st.DataObject) -> None:
    whole = wire(frames)
    cut = data.draw(st.integers(0, len(whole) - 1))
    junk = data.draw(st.binary(max_size=40))
    damaged = whole[:cut] + junk
    assume(not damaged.startswith(b"lvmsync PROTO[3]"))  # another stream, which has no end that could be missed
    found, error = admitted(damaged)
    if damaged != whole:
        assert error is not None
        assert found == [describe(frame) for frame in frames][: len(found)]


def spliced(change: Callable[[list[bytes]], list[bytes]]) -> tuple[int, str]:
    """Return how many frames come out of SMALL when its frames are changed so, and the error."""
    found, error = admitted(b"".join(change(encode(SMALL))))
    assert error is not None
    assert found == [describe(frame) for frame in SMALL][: len(found)]
    return len(found), str(error)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(1, len(SMALL)), 2)))
def test_two_frames_in_the_wrong_order_are_refused(first: int, second: int) -> None:
    def swap(pieces: list[bytes]) -> list[bytes]:
        pieces[first], pieces[second] = pieces[second], pieces[first]
        return pieces

    assert spliced(swap) == (
        first,
        f"stream byte {len(wire(SMALL[:first]))}, frame {first}: "
        f"frame {second} where {first} should be: frames are lost, repeated or out of order",
    )


@pytest.mark.parametrize("index", range(1, len(SMALL) - 1))
def test_a_lost_frame_is_noticed(index: int) -> None:
    count, error = spliced(lambda pieces: pieces[:index] + pieces[index + 1 :])
    assert count == index
    assert f"frame {index + 1} where {index} should be" in error


@pytest.mark.parametrize("index", range(len(SMALL) - 1))
def test_a_repeated_frame_is_noticed(index: int) -> None:
    pieces = encode(SMALL)
    again = pieces[index].removeprefix(v4.MAGIC)
    count, error = spliced(lambda pieces: [*pieces[: index + 1], again, *pieces[index + 1 :]])
    assert count == index + 1
    assert f"frame {index} where {index + 1} should be" in error


@pytest.mark.parametrize("index", range(1, len(SMALL)))
def test_a_frame_of_another_stream_does_not_fit(index: int) -> None:
    other = encode([Header(size=4096, stream="another"), *SMALL[1:]])
    count, error = spliced(lambda pieces: [*pieces[:index], other[index], *pieces[index + 1 :]])
    assert count == index
    assert "checksum" in error


def test_a_stream_may_not_go_on_in_another_that_has_the_same_header() -> None:
    # Header and END are alike in both; only the digest over all frames tells.
    other = encode([SMALL[0], build_changes(Data, ((0, 4), (8, 4)), b"ABCDEFGH"), *SMALL[2:]])
    data = b"".join([*encode(SMALL)[:-1], other[-1]])
    found, error = admitted(data)
    assert len(found) == len(SMALL) - 1
    assert "the END's digest is not that of the frames before it" in str(error)


@pytest.mark.parametrize("tail", [b"\0", b"lvmsync PROTO[4]\n", bytes(4096)])
@pytest.mark.parametrize("last", [SMALL[-1], Abort("why")], ids=["END", "ABORT"])
def test_bytes_behind_the_last_frame_are_refused(last: Frame, tail: bytes) -> None:
    _, error = admitted(wire([*SMALL[:-1], last]) + tail)
    assert "more bytes after the end of the stream: two streams in one?" in str(error)


def begun(*frames: Callable[[Forge], bytes]) -> tuple[list[tuple[object, ...]], str]:
    """Return what comes out of a good header and these frames, and the error."""
    forge = Forge()
    data = forge.header() + b"".join(make(forge) for make in frames)
    found, error = admitted(data)
    assert error is not None
    assert found[0] == describe(Header(size=65536))
    return found[1:], str(error)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda forge: forge.frame(0, b""), "unknown frame (type 0, codec 0)"),
        (lambda forge: forge.frame(8, b""), "unknown frame (type 8, codec 0): damaged, or from a newer lvmsync"),
        (lambda forge: forge.frame(255, b""), "unknown frame"),
        (lambda forge: forge.frame(3, bytes(16), codec=2, count=1), "unknown frame (type 3, codec 2)"),
        (lambda forge: forge.frame(5, bytes(16), zero=1), "unknown frame"),
        (lambda forge: forge.frame(5, bytes(15)), "MARK frame of 15 bytes is not possible"),
        (lambda forge: forge.frame(6, bytes(33)), "END frame of 33 bytes is not possible"),
        (lambda forge: forge.frame(4, bytes(15), count=1), "HOLE frame of 15 bytes is not possible"),
        (lambda forge: forge.frame(2, b""), "without extents"),
        (lambda forge: forge.frame(3, b""), "without extents"),
        (lambda forge: forge.frame(1, b'{"size": 1}'), "a Header frame cannot come in state BODY"),
        (lambda forge: forge.frame(3, struct.pack("<2Q", 0, 8) + b"x", count=1), "table of a ZERO frame does not fit"),
        (lambda forge: forge.frame(4, struct.pack("<2Q", 0, 8) + b"x", count=1), "table of a HOLE frame does not fit"),
        (lambda forge: forge.frame(2, struct.pack("<2Q", 0, 8) + b"7 bytes", count=1), "does not fit its 7 bytes"),
        (lambda forge: forge.frame(2, struct.pack("<2Q", 0, 8) + b"9 bytes..", count=1), "does not fit its 9 bytes"),
        # Lengths whose sum wraps around to that of the payload.
        (
            lambda forge: forge.frame(2, struct.pack("<4Q", 0, 1 << 63, 0, (1 << 63) + 4) + b"four", count=2),
            "does not fit its 4 bytes",
        ),
        (lambda forge: forge.frame(5, bytes(16), unpacked=17), "body of 16 bytes where 17 were announced"),
    ],
)
def test_a_frame_that_cannot_be_is_refused_though_its_checksum_is_right(
    make: Callable[[Forge], bytes], message: str
) -> None:
    found, error = begun(make)
    assert found == []
    assert message in error


def test_the_first_frame_must_be_the_header() -> None:
    found, error = admitted(v4.MAGIC + Forge().frame(5, bytes(16)))
    assert found == []
    assert "a Mark frame cannot come in state START" in str(error)


@pytest.mark.parametrize(
    ("stored", "unpacked", "count"),
    [
        ((1 << 32) - 1, 100, 1),
        (100, (1 << 32) - 1, 1),
        (v4.MAX_BODY + 1, 0, 0),
        (0, v4.MAX_BODY + 1, 0),
        (100, 100, v4.MAX_EXTENTS + 1),
        (100, 100, (1 << 32) - 1),
    ],
)
def test_a_huge_announced_length_is_refused_before_memory_is_taken(stored: int, unpacked: int, count: int) -> None:
    forge = Forge()
    data = forge.header() + struct.pack("<BBHIQIIQ", 2, 0, 0, count, 1, stored, unpacked, 0)
    tracemalloc.start()
    try:
        found, error = admitted(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1
    assert "is over the limit" in str(error)
    assert peak < 1 << 20


def test_a_frame_of_the_longest_body_and_the_most_extents_is_taken() -> None:
    size = v4.MAX_BODY - 16
    frames: list[Frame] = [Header(size=2 * size), build_changes(Data, ((0, size),), bytes(size)), End(1, size)]
    assert admitted(wire(frames)) == ([describe(frame) for frame in frames], None)
    extents = [(at * 2, 1) for at in range(v4.MAX_EXTENTS)]
    frames = [Header(size=1 << 20), build_changes(Zero, extents, b""), End(v4.MAX_EXTENTS, v4.MAX_EXTENTS)]
    assert admitted(wire(frames)) == ([describe(frame) for frame in frames], None)


TABLE = struct.pack("<2Q", 0, 1 << 16)


def zstd(data: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(data)


def packed_frame(body: bytes, unpacked: int) -> Callable[[Forge], bytes]:
    return lambda forge: forge.frame(2, body, codec=1, count=1, unpacked=unpacked)


def bomb(announced: int) -> bytes:
    """Return 64 MiB of zeros, compressed, whose zstd header says that they are ``announced`` bytes."""
    body = bytearray(zstd(bytes(64 << 20)))
    assert zstandard.frame_content_size(body) == 64 << 20
    at = body.index(struct.pack("<I", 64 << 20))
    body[at : at + 4] = struct.pack("<I", announced)
    assert zstandard.frame_content_size(body) == announced
    return bytes(body)


SIZE = 16 + (1 << 16)


@pytest.mark.parametrize(
    ("body", "unpacked", "message"),
    [
        (zstd(bytes(64 << 20)), SIZE, "does not have the announced size"),
        (bomb(SIZE), SIZE, "cannot be decompressed"),
        (zstd(TABLE + bytes(1 << 16)), SIZE - 1, "does not have the announced size"),
        (zstd(TABLE + bytes(1 << 16)), SIZE + 1, "does not have the announced size"),
        (zstd(TABLE + bytes(1 << 16), sized=False), SIZE, "does not have the announced size"),
        (zstd(TABLE + bytes(1 << 16)) + b"tail", SIZE, "cannot be decompressed"),
        (zstd(TABLE + bytes(1 << 16))[:-3], SIZE, "cannot be decompressed"),
        (b"not zstd at all", 15, "cannot be decompressed"),
        (b"", SIZE, "cannot be decompressed"),
    ],
    ids=["bomb", "lying bomb", "less", "more", "no size", "tail", "cut", "junk", "nothing"],
)
def test_a_compressed_body_that_lies_is_refused_and_takes_no_more_memory_than_it_announced(
    body: bytes, unpacked: int, message: str
) -> None:
    forge = Forge()
    data = forge.header() + packed_frame(body, unpacked)(forge)
    tracemalloc.start()
    try:
        found, error = admitted(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1
    assert message in str(error)
    assert peak < 1 << 20


def test_a_compressed_body_is_checked_before_it_is_decompressed() -> None:
    packed = zstd(TABLE + bytes(1 << 16))
    for at in range(len(packed)):
        forge = Forge()
        data = bytearray(forge.header() + packed_frame(packed, SIZE)(forge))
        data[len(data) - len(packed) + at] ^= 0x20
        found, error = admitted(bytes(data))
        assert len(found) == 1
        assert "checksum of a DATA frame does not match" in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "header is not readable"),
        (b"{", "header is not readable"),
        (b"\xff\xfe\xff", "header is not readable"),
        (b"[" * 100_000, "header is not readable"),
        (b'{"size": ' + b"9" * 5000 + b"}", "header is not readable"),
        (b"[]", "header is not a JSON object"),
        (b"null", "header is not a JSON object"),
        (b'"size"', "header is not a JSON object"),
        (b"{}", "'size' is missing"),
        (b'{"size": null}', "'size' is missing"),
        (b'{"size": -1}', "'size' is not a byte or extent count"),
        (b'{"size": 9223372036854775808}', "'size' is not a byte or extent count"),
        (b'{"size": 1.5}', "'size' is not a byte or extent count"),
        (b'{"size": NaN}', "'size' is not a byte or extent count"),
        (b'{"size": true}', "'size' is not a byte or extent count"),
        (b'{"size": "1"}', "'size' is not a byte or extent count"),
        (b'{"size": 1, "extents": []}', "'extents' is not a byte or extent count"),
        (b'{"size": 1, "changed_bytes": -5}', "'changed_bytes' is not a byte or extent count"),
        (b'{"size": 1, "name": 5}', "'name' is not text"),
        (b'{"size": 1, "intent": {}}', "'intent' is not text"),
        (b'{"size": 1, "intent": "other"}', "'intent' is not delta, full or snapback"),
        (b'{"size": 1, "head": {"id": "x\\u001b"}}', "'head' has control characters in it"),
        (b'{"size": 1, "head": {"id": "x", "parent": "' + b"y" * 1025 + b'"}}', "a text of more than 1024 letters"),
        (b'{"size": 1, "minimal": 1}', "'minimal' is not true or false"),
        (b'{"size": 1, "names": 1}', "'names' is no list"),
        (b'{"size": 1, "names": [""]}', "'names' has what is no id of a point"),
        (b'{"size": 1, "base": "x"}', "'base' is not an object"),
        (b'{"size": 1, "head": [1]}', "'head' is not an object"),
        (b'{"size": 1, "base": {}}', "'base' is not a point"),
        (b'{"size": 1, "base": {"id": null}}', "'base' is not a point"),
        (b'{"size": 1, "base": {"id": 5}}', "'base' is not a point"),
        (b'{"size": 1, "head": {"id": "x", "parent": 7}}', "'head' is not a point"),
        (b'{"size": 1, "head": {"id": "x", "time": []}}', "'head' is not a point"),
    ],
)
def test_a_bad_header_is_refused(text: bytes, message: str) -> None:
    found, error = admitted(Forge().header(text))
    assert found == []
    assert message in str(error)


def test_unknown_keys_of_the_header_are_ignored_and_nulls_are_not_there() -> None:
    text = json.dumps(
        {"size": 7, "future": {"a": [1]}, "base": {"id": "x", "future": 1}, "intent": None, "name": None}
    ).encode()
    forge = Forge()
    data = forge.header(text) + forge.frame(7, b"")
    header, abort = feed(data)
    assert header == Header(size=7, base=Point("x"))
    assert abort == Abort("")


def test_what_drives_a_terminal_is_taken_out_of_names_and_reasons() -> None:
    forge = Forge()
    header, abort = feed(forge.header(b'{"size": 7, "name": "a\\u001b[31mb"}') + forge.frame(7, b"\x1b[31mgone\n\x9b"))
    assert header == Header(size=7, name="a?[31mb")
    assert isinstance(abort, Abort)
    assert abort.reason.startswith("?[31mgone?")


def test_a_name_that_is_not_text_travels_in_the_header_and_in_an_abort() -> None:
    name = b"/dev/\xff".decode(errors="surrogateescape")
    header, abort = feed(wire([Header(size=1, name=name), Abort(f"cannot read {name}")]))
    assert isinstance(header, Header)
    assert header.name == name
    assert abort == Abort("cannot read /dev/\\udcff")


def test_a_long_reason_is_cut_and_not_refused() -> None:
    *_, abort = feed(wire([Header(size=1), Abort("ö" * 10_000)]))
    assert isinstance(abort, Abort)
    assert abort.reason.startswith("ö" * 2048)
    assert len(abort.reason) < 2100


def test_an_error_tells_the_byte_and_the_frame() -> None:
    pieces = encode(SMALL)
    with pytest.raises(StreamError) as caught:
        list(feed(b"".join([*pieces[:2], bytes(32)])))
    assert caught.value.offset == len(pieces[0]) + len(pieces[1])
    assert f"stream byte {caught.value.offset}, frame 2: unknown frame" in str(caught.value)


@pytest.mark.parametrize(
    ("kept", "words"), [(5, "inside a frame, 5 bytes behind byte"), (32, "inside a frame, 0 bytes"), (0, "at byte")]
)
def test_a_cut_tells_where_it_is(kept: int, words: str) -> None:
    pieces = encode(SMALL)
    with pytest.raises(StreamError, match=words) as caught:
        list(feed(b"".join([*pieces[:2], pieces[2][:kept]])))
    assert caught.value.offset == len(pieces[0]) + len(pieces[1])


def test_a_count_in_a_frame_without_a_table_is_refused() -> None:
    encoder = v4.Encoder()
    encoder.encode(Header(size=4096))
    frame = b"".join(encoder._frame(v4._MARK_TYPE, 1, [bytes(16)]))
    decoder = v4.Decoder()
    for piece in (b"".join(v4.Encoder().encode(Header(size=4096)))[len(v4.MAGIC) :], frame):
        view = memoryview(piece)
        while view:
            buffer = decoder.get_buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            if piece is frame and not view:
                with pytest.raises(StreamError, match="a MARK frame has no extents, and this one says 1"):
                    decoder.received(count)
            else:
                decoder.received(count)
