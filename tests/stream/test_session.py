"""The rules of a stream: which line begins it, what may follow what, and which extents and counts are believed."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import StreamError
from lvmsync.stream.frames import Abort, Data, End, Frame, Header, Hole, Mark, Zero
from lvmsync.stream.session import TRANSITIONS, Receiver, State
from tests.strategies import build_changes, describe
from tests.stream.feeding import Forge, admitted, byte_by_byte, encode, feed

ONE_OF_EACH: list[Frame] = [
    Header(size=4096),
    build_changes(Data, ((0, 1),), b"x"),
    build_changes(Zero, ((8, 1),), b""),
    build_changes(Hole, ((16, 1),), b""),
    Mark(0, 0),
    End(0, 0),
    Abort("why"),
]
BEFORE: dict[State, list[Frame]] = {
    State.START: [],
    State.BODY: [Header(size=4096)],
    State.ENDED: [Header(size=4096), End(0, 0)],
    State.ABORTED: [Header(size=4096), Abort("why")],
}


@pytest.mark.parametrize("frame", ONE_OF_EACH, ids=lambda frame: type(frame).__name__)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_a_frame_is_taken_where_the_table_has_it_and_refused_elsewhere(state: State, frame: Frame) -> None:
    receiver = Receiver()
    pieces = [piece.removeprefix(b"lvmsync PROTO[4]\n") for piece in encode([*BEFORE[state], frame])]
    allowed = TRANSITIONS[state].get(type(frame))
    found, error = admitted(b"lvmsync PROTO[4]\n" + b"".join(pieces), receiver=receiver)
    assert found == [describe(one) for one in [*BEFORE[state], *([frame] if allowed else [])]]
    assert receiver.state == (allowed or state)
    if allowed is None:
        assert str(error).endswith(("cannot come in state START", "cannot come in state BODY", "in one?"))
    else:
        assert (error is None) is (allowed is not State.BODY)


def test_nothing_comes_before_the_line_is_there() -> None:
    receiver = Receiver()
    assert (receiver.version, receiver.digest, receiver.position, receiver.header) == (0, None, 0, Header())
    receiver.get_buffer()[:5] = b"lvmsy"
    receiver.received(5)
    assert list(receiver.frames()) == []
    assert len(receiver.get_buffer()) == 12


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no stream: nothing came before the end of the input"),
        (b"lvmsync", "no stream: 7 bytes came before the end"),
        (b"lvmsync PROTO[2]\n", r"stream begins with 'lvmsync PROTO\[2\]\\n': not a version that this lvmsync reads"),
        (b"lvmsync PROTO[4] ", r"stream begins with 'lvmsync PROTO\[4\] ': not a version"),
        (b"lvmsync PROTO[44]\n", r"stream begins with 'lvmsync PROTO\[44\]': not a version"),
        (
            b"Welcome to host!\n and more",
            "not an lvmsync stream: it begins with 'Welcome to host!\\\\n'; if a remote shell",
        ),
        (b"\x1b[2J\xff", r"not an lvmsync stream: it begins with '\\x1b\[2J\\ufffd'"),
        (b"\xff\xfe", r"not an lvmsync stream: it begins with '\\ufffd\\ufffd'"),
        (b"LVMSYNC PROTO[4]\n", "not an lvmsync stream"),
    ],
)
def test_what_does_not_begin_with_the_line_of_a_known_format_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message) as caught:
        list(feed(data))
    assert caught.value.offset == 0
    with pytest.raises(StreamError) as caught:
        list(byte_by_byte(data))
    assert caught.value.offset == 0
    assert str(caught.value).split(":")[0].split(" '")[0] in message.replace("\\", "")


def begun(*frames: Frame, header: bytes = b'{"size": 65536}') -> tuple[int, StreamError | None]:
    """Return how many frames a receiver takes after a header, and what it says then."""
    forge = Forge()
    kinds = {Data: 2, Zero: 3, Hole: 4, Mark: 5}
    data = forge.header(header)
    for frame in frames:
        if isinstance(frame, Data | Zero | Hole):
            body = frame.table.tobytes() + (bytes(frame.payload) if isinstance(frame, Data) else b"")
            data += forge.frame(kinds[type(frame)], body, count=len(frame.table))
        else:
            assert isinstance(frame, Mark)
            data += forge.frame(5, struct.pack("<QQ", frame.extents, frame.changed_bytes))
    found, error = admitted(data)
    return len(found) - 1, error


@pytest.mark.parametrize("kind", [Data, Zero, Hole])
@pytest.mark.parametrize(
    ("extents", "message"),
    [
        ([(8, 4), (0, 4)], "not in order"),
        ([(0, 4), (3, 4)], "not in order"),
        ([(0, 4), (0, 4)], "not in order"),
        ([(0, 4), (8, 4), (8, 4)], "not in order"),
        ([(0, 0)], "is empty, or ends past its device of 65536 bytes"),
        ([(0, 4), (8, 0)], "is empty"),
        ([(65536, 1)], "ends past its device"),
        ([(65535, 2)], "ends past its device"),
        ([(65537, 0)], "is empty"),
    ],
)
def test_extents_that_are_out_of_order_empty_or_outside_are_refused(
    kind: type[Data | Zero | Hole], extents: Sequence[tuple[int, int]], message: str
) -> None:
    payload = bytes(sum(length for _, length in extents))
    count, error = begun(build_changes(kind, extents, payload))
    assert count == 0
    assert message in str(error)


@pytest.mark.parametrize(
    "extents",
    [
        [(0, (1 << 64) - 1)],
        [((1 << 64) - 1, 1)],
        [(1 << 63, 1 << 63)],
        [(4, (1 << 64) - 4)],
        [((1 << 64) - 4, 8)],
    ],
)
@pytest.mark.parametrize("size", [65536, (1 << 63) - 1])
def test_an_extent_whose_end_would_wrap_around_is_refused(size: int, extents: Sequence[tuple[int, int]]) -> None:
    count, error = begun(build_changes(Hole, extents, b""), header=b'{"size": %d}' % size)
    assert count == 0
    assert "ends past its device" in str(error)


@pytest.mark.parametrize(("offset", "taken"), [(11, 0), (12, 1), (13, 1), (0, 0)])
def test_extents_ascend_over_all_frames_and_may_touch(offset: int, taken: int) -> None:
    count, error = begun(build_changes(Data, ((8, 4),), b"data"), build_changes(Zero, ((offset, 4),), b""))
    assert count == 1 + taken
    assert ("not in order" in str(error)) is not taken


@pytest.mark.parametrize("mark", [Mark(0, 0), Mark(1, 4), Mark(2, 7), Mark(3, 8), Mark((1 << 64) - 1, 8)])
def test_a_mark_that_counts_otherwise_is_refused(mark: Mark) -> None:
    count, error = begun(build_changes(Zero, ((0, 4), (8, 4)), b""), mark)
    assert count == 1
    assert f"the stream says it carried {mark.extents} extents" in str(error)
    assert "2 and 8 arrived" in str(error)


@given(st.integers(0, 5), st.integers(0, 50))
def test_an_end_that_counts_otherwise_is_refused(extents: int, changed_bytes: int) -> None:
    frames: list[Frame] = [Header(size=100), build_changes(Hole, ((0, 4), (8, 4)), b"")]
    found, error = admitted(b"".join(encode([*frames, End(extents, changed_bytes)])))
    if (extents, changed_bytes) == (2, 8):
        assert error is None
    else:
        assert len(found) == 2
        assert "2 and 8 arrived" in str(error)


@pytest.mark.parametrize(("announced", "is_whole"), [(None, True), (8, True), (0, False), (7, False), (9, False)])
def test_an_end_after_other_than_the_announced_bytes_is_refused(announced: int | None, is_whole: bool) -> None:
    frames: list[Frame] = [
        Header(size=100, changed_bytes=announced),
        build_changes(Hole, ((0, 4), (8, 4)), b""),
        Mark(2, 8),
        End(2, 8),
    ]
    found, error = admitted(b"".join(encode(frames)))
    assert (error is None) is is_whole
    assert len(found) == 3 + is_whole
    if error:
        assert f"announced {announced} bytes of changes and carried 8" in str(error)


def test_a_receiver_counts_what_it_admits_and_keeps_the_header() -> None:
    receiver = Receiver()
    frames: list[Frame] = [
        Header(size=100, name="x"),
        build_changes(Data, ((0, 1), (2, 2)), b"abc"),
        build_changes(Hole, ((8, 4),), b""),
        End(3, 7),
    ]
    assert len(list(feed(b"".join(encode(frames)), receiver=receiver))) == 4
    assert receiver.header == frames[0]
    assert (receiver.extents, receiver.changed_bytes, receiver.state) == (3, 7, State.ENDED)
