"""Streams that go on with an earlier one: what their header says of it, samples, and files that are written on."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lvmsync.errors import StreamError
from lvmsync.stream import v4
from lvmsync.stream.frames import MAX_SAMPLE, MAX_SAMPLES, Data, End, Frame, Header, Hole, Mark, Sample, Zero
from tests.strategies import build_changes, describe
from tests.stream.feeding import Forge, admitted, encode, feed

DIGEST = "0123456789abcdef" * 2
HEADER = Header(
    size=1 << 20,
    data_bytes=12,
    resume=4096,
    transaction="t1",
    samples=(Sample(0, 4096, DIGEST), Sample((1 << 20) - 65536, 65536, DIGEST)),
    group="g1",
)


def test_what_a_resumed_stream_says_arrives() -> None:
    assert next(iter(feed(b"".join(encode([HEADER]))))) == HEADER


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resume", -1, "'resume' is not"),
        ("resume", "1", "'resume' is not"),
        ("resume", None, "do not come without each other"),
        ("transaction", None, "do not come without each other"),
        ("transaction", 7, "'transaction' is not text"),
        ("group", 7, "'group' is not text"),
        ("data_bytes", 1.5, "'data_bytes' is not"),
        ("samples", {}, "'samples' is not a list"),
        ("samples", [[0, 1, DIGEST]] * (MAX_SAMPLES + 1), "at most 1024"),
        ("samples", [7], "'samples' has one"),
        ("samples", [[0, 1]], "'samples' has one"),
        ("samples", [[0, True, DIGEST]], "'samples' has one"),
        ("samples", [[0.0, 1, DIGEST]], "'samples' has one"),
        ("samples", [[0, 0, DIGEST]], "'samples' has one"),
        ("samples", [[0, MAX_SAMPLE + 1, DIGEST]], "'samples' has one"),
        ("samples", [[-1, 1, DIGEST]], "'samples' has one"),
        ("samples", [[(1 << 20) - 4095, 4096, DIGEST]], "'samples' has one"),
        ("samples", [[0, 1, 7]], "'samples' has one"),
        ("samples", [[0, 1, DIGEST.upper()]], "'samples' has one"),
        ("samples", [[0, 1, DIGEST + "0"]], "'samples' has one"),
    ],
)
def test_what_cannot_be_is_refused(key: str, value: object, message: str) -> None:
    values = {**dataclasses.asdict(HEADER), key: value}
    found, error = admitted(Forge().header(json.dumps(values).encode()))
    assert (found, type(error)) == ([], StreamError)
    assert message in str(error)


def test_nothing_may_lie_before_the_place_where_it_goes_on() -> None:
    inside: list[Frame] = [HEADER, build_changes(Zero, ((4096, 8),), b""), End(1, 8)]
    assert len(list(feed(b"".join(encode(inside))))) == 3
    before: list[Frame] = [HEADER, build_changes(Zero, ((4095, 8),), b""), End(1, 8)]
    found, error = admitted(b"".join(encode(before)))
    assert (len(found), "not in order at offset 4095" in str(error)) == (1, True)


FRAMES: list[Frame] = [
    Header(size=4096),
    build_changes(Data, ((0, 4), (8, 4)), b"abcdefgh"),
    build_changes(Zero, ((16, 16),), b""),
    Mark(3, 24),
    build_changes(Hole, ((512, 512),), b""),
    End(4, 536),
]


@pytest.mark.parametrize("kept", range(1, len(FRAMES)))
def test_a_stream_that_was_skimmed_is_read_and_written_on_at_the_edge_of_any_frame(kept: int) -> None:
    stream = b"".join(encode(FRAMES))
    skimmer = v4.Skimmer()
    looks = []
    for _ in range(kept):
        looks.append(skimmer.look(stream[skimmer.position : skimmer.position + v4.HEAD_SIZE]))
        skimmer.skip()
    assert looks[1:] == [(2, 8), (1, 0), (0, 16), (1, 0)][: kept - 1]
    decoder, rest = skimmer.decoder(), []
    at = decoder.position
    while at < len(stream):
        buffer = decoder.get_buffer()
        buffer[:] = stream[at : at + len(buffer)]
        decoder.received(len(buffer))
        at += len(buffer)
        rest += list(decoder.frames())
    assert list(decoder.receive_eof()) == []
    assert list(map(describe, rest[:-1])) == list(map(describe, FRAMES[kept:-1]))
    encoder = skimmer.encoder()
    again = b"".join(bytes(buffer) for frame in FRAMES[kept:] for buffer in encoder.encode(frame))
    assert stream[: skimmer.position] + again == stream


def test_a_stream_that_was_skimmed_to_its_end_has_the_digest_of_its_end() -> None:
    stream = b"".join(encode(FRAMES))
    skimmer = v4.Skimmer()
    while skimmer.position < len(stream):
        skimmer.look(stream[skimmer.position : skimmer.position + v4.HEAD_SIZE])
        skimmer.skip()
    assert skimmer.encoder().digest == stream[-16:].hex()


def test_a_skimmer_refuses_what_is_not_the_next_frame() -> None:
    stream = b"".join(encode(FRAMES))
    first = len(v4.MAGIC)
    with pytest.raises(StreamError, match="cut at byte 17"):
        v4.Skimmer().look(stream[first : first + 31])
    second = v4.Skimmer()
    second.look(stream[first : first + 32])
    at = second.position
    second.skip()
    assert second.position > at
    good = stream[second.position : second.position + 32]
    for place, value in ((0, 9), (1, 1), (8, 2), (16, 0)):  # type, codec, sequence, stored: less than the table
        bad = bytearray(good)
        bad[place] = value
        with pytest.raises(StreamError, match="not the header of frame 1"):
            second.look(bytes(bad))
    assert second.look(good) == (2, 8)
