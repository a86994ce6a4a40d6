"""PROTO[3], the original's format: records of any length, cut anywhere, in whatever order they come."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import StreamError
from lvmsync.extents import MAX_SIZE
from lvmsync.stream import v3
from lvmsync.stream.frames import Abort, Data, End, Frame, Header, Hole, Mark, Zero
from lvmsync.stream.session import Receiver
from tests.strategies import BIG, DEVICE, bodies, build_changes
from tests.stream.feeding import byte_by_byte, encode, feed, give

MAGIC = b"lvmsync PROTO[3]\n"
Record = tuple[int, bytes]


def records(data: bytes) -> list[Record]:
    """Read a stream by the letter of its description: u64 offset, u32 length (both big-endian), data."""
    assert data.startswith(MAGIC)
    at = len(MAGIC)
    found = []
    while at < len(data):
        offset, length = struct.unpack_from(">QI", data, at)
        found.append((offset, data[at + 12 : at + 12 + length]))
        assert len(found[-1][1]) == length
        at += 12 + length
    return found


def wire(parts: Sequence[Record]) -> bytes:
    return MAGIC + b"".join(struct.pack(">QI", offset, len(data)) + data for offset, data in parts)


def extents(frames: Sequence[Frame]) -> list[Record]:
    """Return the extents of all frames in their order, with their data."""
    found = []
    for frame in frames:
        if isinstance(frame, Data):
            at = 0
            for offset, length in frame.table.tolist():
                found.append((offset, bytes(frame.payload[at : at + length])))
                at += length
            assert at == len(frame.payload)
    return found


def joined(parts: Sequence[Record]) -> list[Record]:
    """Join the pieces that one record came in: each goes on where the last one stopped."""
    found: list[Record] = []
    for offset, data in parts:
        if found and found[-1][0] + len(found[-1][1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + data)
        else:
            found.append((offset, data))
    return found


RECORDS = st.lists(st.tuples(st.integers(0, BIG), st.binary(min_size=1, max_size=40)), max_size=12)


@given(RECORDS, st.lists(st.integers(1, 60), max_size=30))
def test_records_arrive_in_their_order_and_length_wherever_they_are_cut(parts: list[Record], sizes: list[int]) -> None:
    frames = list(feed(wire(parts), sizes))
    assert frames[0] == Header()
    assert frames[-1] == End(len(parts), sum(len(data) for _, data in parts))
    assert extents(frames) == parts
    assert extents(list(byte_by_byte(wire(parts)))) == parts


def test_small_and_long_records_keep_their_order_and_only_long_ones_come_in_pieces() -> None:
    rng = random.Random(3)
    lengths = [5, (1 << 20), 1, (1 << 20) + 1, 512, (3 << 20) + 7, 4096, 4096, (1 << 20) - 1]
    parts = [(rng.randrange(BIG), rng.randbytes(length)) for length in lengths]
    data = wire(parts)
    for sizes in ([], [1 << 16] * 200, [rng.randrange(1, 300_000) for _ in range(200)]):
        found = extents(list(feed(data, sizes)))
        assert joined(found) == parts
        whole = [part for part in found if part in parts]
        assert [part for part in parts if len(part[1]) <= v3.MAX_RECORD] == whole


def test_many_small_records_become_few_frames_and_keep_their_order_and_lengths() -> None:
    rng = random.Random(4)
    parts = [(rng.randrange(BIG), rng.randbytes(rng.randrange(1, 60))) for _ in range(60_000)]
    for size in (1 << 21, 4096):
        frames = list(feed(wire(parts), itertools.repeat(size)))
        assert extents(frames) == parts
        assert len(frames) < 10


def test_a_record_that_names_a_place_again_comes_as_it_is() -> None:
    parts = [(0, b"old"), (0, b"new"), (1, b"x")]
    assert extents(list(feed(wire(parts)))) == parts


def test_a_stream_of_nothing_is_whole() -> None:
    assert list(feed(MAGIC)) == [Header(), End(0, 0)]


@pytest.mark.parametrize("length", [100, (1 << 20) + 100, (2 << 20) + (128 << 10)])
def test_a_stream_cut_inside_a_record_is_an_error(length: int) -> None:
    first, second = (0, b"whole"), (4096, bytes(length))
    data = wire([first, second])
    inside = len(MAGIC) + 12 + 5
    for cut in (inside + 1, inside + 11, inside + 12, inside + 13, inside + 12 + length // 2, len(data) - 1):
        frames: list[Frame] = []
        with pytest.raises(StreamError, match="ends inside a record") as caught:
            frames += feed(data[:cut])
        assert not any(isinstance(frame, End) for frame in frames)
        assert inside <= (caught.value.offset or 0) <= cut


def test_a_cut_between_two_records_cannot_be_noticed() -> None:
    data = wire([(0, b"one"), (10, b"two")])
    assert extents(list(feed(data[: len(MAGIC) + 15]))) == [(0, b"one")]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (4096, 0), (MAX_SIZE, 1), (MAX_SIZE - 1, 2), ((1 << 64) - 1, (1 << 32) - 1)]
)
def test_a_record_that_cannot_be_is_refused_before_its_data_comes(offset: int, length: int) -> None:
    data = wire([(0, b"fine")]) + struct.pack(">QI", offset, length)
    with pytest.raises(StreamError, match="is not possible; the stream is damaged") as caught:
        list(feed(data))
    assert caught.value.offset == len(MAGIC) + 16


def test_a_record_up_to_the_end_of_the_largest_device_is_taken() -> None:
    assert extents(list(feed(wire([(MAX_SIZE - 2, b"ab")])))) == [(MAX_SIZE - 2, b"ab")]


def test_a_record_of_4_gib_takes_no_more_memory_than_any_other() -> None:
    receiver = Receiver()
    data = MAGIC + struct.pack(">QI", 0, (1 << 32) - 1)
    assert list(give(receiver, data, [7] * 5)) == [Header()]
    done = 0
    for _ in range(4):
        buffer = receiver.get_buffer()
        assert len(buffer) < 2 << 20
        buffer[:] = bytes(len(buffer))
        receiver.received(len(buffer))
        for offset, piece in extents(list(receiver.frames())):
            assert offset == done
            done += len(piece)
    assert done > 3 << 20


@given(bodies())
def test_changes_are_written_as_records_and_zeros_as_data(frames: list[Frame]) -> None:
    total = [record for frame in frames for record in as_records(frame)]
    data = b"".join(encode([Header(size=DEVICE), *frames, Mark(1, 1), End(1, 1)], version=3))
    assert records(data) == total


def as_records(frame: Frame) -> list[Record]:
    if isinstance(frame, Data):
        return extents([frame])
    assert isinstance(frame, Zero | Hole)
    return [(offset, bytes(length)) for offset, length in frame.table.tolist()]


@pytest.mark.parametrize("kind", [Data, Zero, Hole])
def test_long_extents_are_written_as_records_of_a_mib_at_most(kind: type[Data | Zero | Hole]) -> None:
    payload = random.Random(5).randbytes((2 << 20) + 10)
    frame = build_changes(kind, ((5, 3), (100, (2 << 20) + 7)), payload)
    found = records(b"".join(encode([Header(), frame], version=3)))
    assert [(offset, len(data)) for offset, data in found] == [
        (5, 3),
        (100, 1 << 20),
        (100 + (1 << 20), 1 << 20),
        (100 + (2 << 20), 7),
    ]
    assert b"".join(data for _, data in found) == (payload if kind is Data else bytes(len(payload)))


def test_a_huge_zero_is_written_from_one_mib_of_zeros() -> None:
    size = 64 << 30
    buffers = v3.Encoder().encode(build_changes(Zero, ((512, size),), b""))
    assert sum(len(buffer) for buffer in buffers) == size + size // v3.MAX_RECORD * 12
    assert {id(memoryview(buffer).obj) for buffer in buffers if len(buffer) > 12} == {id(v3._ZEROS.obj)}


def test_a_payload_is_passed_on_and_not_copied() -> None:
    frame = build_changes(Data, ((0, 4096),), bytes(4096))
    assert isinstance(frame, Data)
    assert memoryview(v3.Encoder().encode(frame)[1]).obj is frame.payload.obj


def test_the_format_cannot_say_that_the_sender_gave_up() -> None:
    with pytest.raises(StreamError, match="aborted: the snapshot overflowed"):
        v3.Encoder().encode(Abort("the snapshot overflowed"))


def test_the_receiver_knows_the_format_and_that_it_has_no_digest() -> None:
    receiver = Receiver()
    assert list(feed(wire([(0, b"x")]), receiver=receiver))[-1] == End(1, 1)
    assert (receiver.version, receiver.digest, receiver.position) == (3, None, 0)
