"""Lines and raw bytes on one transport, cut anywhere; and what a peer may say that is no line of ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import PeerError, TransportError
from lvmsync.jobs.agent import protocol
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.protocol import ANSWER, READY, REFUSAL, WAIT, Line, encode, error_of, is_group, parse, tame


class Pieces:
    """A transport that gives bytes in pieces of chosen lengths, and then its end."""

    stall_timeout: float | None = None

    def __init__(self, data: bytes, lengths: Sequence[int] = ()) -> None:
        self.data = data
        self.lengths = list(lengths)
        self.sent = b""
        self.status = 0
        self.asked = 0

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self.sent += b"".join(map(bytes, buffers))

    def receive_some(self, buffer: memoryview) -> int:
        count = min(len(buffer), self.lengths.pop(0) if self.lengths else 1 << 20, len(self.data))
        buffer[:count] = self.data[:count]
        self.data = self.data[count:]
        self.asked += 1
        return count

    def send_eof(self) -> None:
        pass

    def aclose(self) -> int:
        return self.status


def read_raw(line: Line, length: int) -> bytes:
    got = b""
    while len(got) < length:
        buffer = memoryview(bytearray(length - len(got)))
        count = line.receive_some(buffer)
        assert count
        got += bytes(buffer[:count])
    return got


texts = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=40)
pieces = st.lists(st.integers(1, 9), max_size=60)


@given(st.lists(st.one_of(texts, st.binary(max_size=40)), max_size=8), pieces)
def test_lines_and_raw_bytes_are_told_apart_wherever_they_are_cut(said: list[str | bytes], lengths: list[int]) -> None:
    data = b"".join(one if isinstance(one, bytes) else f"{one}\n".encode() for one in said)
    line = Line(Pieces(data, lengths))
    for one in said:
        if isinstance(one, bytes):
            assert read_raw(line, len(one)) == one
        else:
            assert line.read_line() == one
    assert line.read_line() is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), json_values), pieces)
def test_an_object_comes_back_as_it_was_said(values: dict[str, object], lengths: list[int]) -> None:
    text = Line(Pieces(encode(ANSWER, values), lengths)).read_line()
    assert text is not None
    assert parse(text, ANSWER) == values
    assert parse(text, READY) is None


@given(st.binary(max_size=200))
def test_rubbish_is_no_line_of_ours(data: bytes) -> None:
    text = Line(Pieces(b"lvmsync ANSWER " + data)).read_line()
    assert text is not None
    values = parse(text, ANSWER)
    assert values is None or values == json.loads(text.removeprefix("lvmsync ANSWER "))


@pytest.mark.parametrize("body", ["[" * 30000, '{"a":' * 30000, "9" * 5000, '{"a": NaN}', "[]", "1", "null", '{"a": 1'])
def test_what_json_chokes_on_is_no_line_of_ours(body: str) -> None:
    assert parse(f"lvmsync REQUEST {body}", "lvmsync REQUEST") is None


def test_a_line_without_end_is_not_kept_in_memory() -> None:
    endless = Pieces(b"x" * (4 << 20))
    line = Line(endless)
    text = line.read_line(1000)
    assert text == "x" * 1000
    assert len(endless.data) > 3 << 20


def test_what_is_too_long_to_be_read_is_not_said() -> None:
    with pytest.raises(TransportError, match="1048576 at the most"):
        encode(ANSWER, {"a": "x" * protocol.LONGEST_LINE})


def far_side(said: bytes, status: int = 0, words: str = "") -> Peer:
    peer = Peer("far:vg/lv")
    transport = Pieces(said)
    transport.status = status
    peer.connect(transport)
    peer.last_words = words
    return peer


def test_signs_of_life_are_no_answer() -> None:
    peer = far_side(encode(WAIT) * 3 + encode(ANSWER, {"a": 1}) + encode(WAIT) + encode(READY))
    assert peer.expect(ANSWER) == {"a": 1}
    assert peer.expect(READY) == {}
    assert not peer.is_over


def test_a_refusal_is_raised_with_its_code_and_words_and_the_session_goes_on() -> None:
    refusal = encode(REFUSAL, {"code": 8, "message": "wrong base", "notes": ["one", "two"], "over": False})
    peer = far_side(refusal + encode(ANSWER, {}))
    with pytest.raises(PeerError, match=r"^far:vg/lv: wrong base") as caught:
        peer.expect(ANSWER)
    assert (caught.value.exit_code, caught.value.__notes__) == (8, ["one", "two"])
    assert not peer.is_over
    assert peer.expect(ANSWER) == {}


def test_a_refusal_that_ends_the_session_says_so() -> None:
    peer = far_side(encode(REFUSAL, {"code": 6, "message": "cut", "notes": [], "over": True}))
    with pytest.raises(PeerError, match="cut"):
        peer.expect(READY)
    assert peer.is_over


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        ({}, 7, "does not say why"),
        ({"code": "3", "message": ["x"], "notes": 4}, 7, "does not say why"),
        ({"code": 300, "message": "x"}, 7, "x"),
        ({"code": 3, "message": "a\nb\x1b]0;title\x07c\u202e"}, 3, "a b ]0;title c "),
    ],
)
def test_a_refusal_of_any_shape_is_one_harmless_line(refusal: dict[str, object], code: int, words: str) -> None:
    error = error_of(refusal, "far")
    assert error.exit_code == code
    assert str(error).endswith(words)


@pytest.mark.parametrize(
    ("said", "status", "words", "kind", "message"),
    [
        (b"", 0, "", TransportError, "ended without an answer, though its status is 0; is it an lvmsync"),
        (b"", 127, "sh: not found", PeerError, "lvmsync was not found there; install it"),
        (b"", 5, "lvmsync: changes lost", PeerError, "failed with status 5: changes lost"),
        (b"Welcome\x1b[2J!\n", 0, "", TransportError, r"said 'Welcome\\x1b\[2J!' where lvmsync should have answered"),
        (b"lvmsync ANSWER [1]\n", 0, "", TransportError, "where lvmsync should have answered"),
        (b"x" * (2 << 20), 0, "", TransportError, "where lvmsync should have answered"),
    ],
)
def test_a_far_side_that_gives_no_answer_is_told_in_one_line(
    said: bytes, status: int, words: str, kind: type[Exception], message: str
) -> None:
    peer = far_side(said, status, words)
    with pytest.raises(kind, match=message):
        peer.expect(ANSWER)
    assert peer.is_over


class Broken(Pieces):
    """A transport that no longer takes anything."""

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        raise TransportError("stopped reading")


@pytest.mark.parametrize(
    ("said", "check"),
    [
        (encode(WAIT) + encode(REFUSAL, {"code": 3, "message": "the pool is full"}), lambda e: "the pool is full" in e),
        (b"", lambda e: "failed with status 3: its words" in e),
    ],
)
def test_a_line_that_breaks_while_we_send_gives_the_far_sides_reason(said: bytes, check: Callable[[str], bool]) -> None:
    peer = Peer("far", last_words="lvmsync: its words")
    peer.connect(Broken(said))
    peer.line.transport.status = 3  # type: ignore[attr-defined]
    with pytest.raises(PeerError) as caught:
        peer.send([b"x"])
    assert check(str(caught.value))
    assert caught.value.exit_code == 3


def test_ids_that_stand_in_names_of_files_are_hex_digits_and_nothing_else() -> None:
    assert is_group("0123456789abcdef")
    for wrong in ("", "../../etc/passwd", "0123456789ABCDEF", "0" * 65, "01234567\n", 12345678, None):
        assert not is_group(wrong)


@given(st.text())
def test_a_peers_text_drives_no_terminal(text: str) -> None:
    assert tame(text).isprintable()
