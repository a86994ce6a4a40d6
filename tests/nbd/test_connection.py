"""The NBD protocol: what each option and request comes to, and that no bytes whatever crash it or take its memory."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.nbd import replies, wire
from lvmsync.nbd.connection import Chosen, Close, Command, Connection, Send
from lvmsync.nbd.requests import Export, Request, Terms
from tests.nbd.talk import (
    EXPORTS,
    answers,
    contexts,
    errors,
    feed,
    go,
    kinds,
    new,
    option,
    ready,
    request,
    sent,
    text,
)


def test_the_greeting_is_that_of_fixed_newstyle_without_zeroes() -> None:
    assert Connection(EXPORTS).greeting == b"NBDMAGICIHAVEOPT\x00\x03"


@pytest.mark.parametrize("flags", [4, 1 << 31, 0xFFFFFFFF])
def test_a_client_with_flags_that_nobody_knows_is_left(flags: int) -> None:
    events = feed(Connection(EXPORTS), struct.pack(">I", flags))
    assert [type(event) for event in events] == [Close]


def test_an_option_of_another_magic_ends_it() -> None:
    connection = new()
    events = feed(connection, option(wire.OPT_LIST, magic=wire.INIT_PASSWD))
    assert events == [Close("the client's option begins with 0x4e42444d41474943")]
    assert len(connection.get_buffer()) == 0


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0), (0, 124)])
def test_an_export_is_chosen_in_the_old_way(flags: int, zeroes: int) -> None:
    connection = new(flags)
    events = feed(connection, option(wire.OPT_EXPORT_NAME, b"1"))
    assert sent(events) == struct.pack(">QH", 1000, 0b100001111) + bytes(zeroes)
    assert connection.export == EXPORTS["1"]
    assert connection.terms == Terms()


@pytest.mark.parametrize("name", [b"none", b"\xff", b"x" * 4097, b"x" * 70000, b"1\0"])
def test_an_export_that_is_not_there_ends_it_in_the_old_way(name: bytes) -> None:
    events = feed(new(), option(wire.OPT_EXPORT_NAME, name))
    assert [type(event) for event in events] == [Close]


def test_exports_are_listed_with_what_they_are() -> None:
    found = list(answers(sent(feed(new(), option(wire.OPT_LIST)))))
    assert found == [
        (3, wire.REP_SERVER, text("") + b"the newest"),
        (3, wire.REP_SERVER, text("1") + b"the oldest"),
        (3, wire.REP_SERVER, text("w")),
        (3, wire.REP_ACK, b""),
    ]


def test_an_abort_is_answered_and_is_the_end() -> None:
    events = feed(new(), option(wire.OPT_ABORT))
    assert kinds(events) == [wire.REP_ACK]
    assert events[-1] == Close()


def test_an_export_is_told_of_without_being_chosen() -> None:
    connection = new()
    events = feed(connection, go("1", wire.INFO_NAME, wire.INFO_DESCRIPTION, wire.INFO_BLOCK_SIZE, 99, number=6))
    assert list(answers(sent(events))) == [
        (6, wire.REP_INFO, struct.pack(">HQH", 0, 1000, 0b100001111)),
        (6, wire.REP_INFO, b"\0\1" + b"1"),
        (6, wire.REP_INFO, b"\0\2" + b"the oldest"),
        (6, wire.REP_INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
        (6, wire.REP_ACK, b""),
    ]
    assert connection.export is None
    assert kinds(feed(connection, go("w", wire.INFO_DESCRIPTION, number=6))) == [wire.REP_INFO, wire.REP_ACK]


def test_a_writable_export_says_so_and_one_with_structured_replies_that_it_need_not_be_cut() -> None:
    connection = new()
    feed(connection, option(wire.OPT_STRUCTURED_REPLY))
    events = feed(connection, go("w"))
    assert events[0] == Chosen(EXPORTS["w"])
    flags = struct.unpack(">HQH", next(answers(sent(events)))[2])[2]
    assert flags == 0b111101101
    assert connection.terms == Terms(is_structured=True)


@pytest.mark.parametrize("number", [wire.OPT_INFO, wire.OPT_GO])
def test_an_unknown_export_is_an_error_and_another_one_may_be_chosen(number: int) -> None:
    connection = new()
    assert kinds(feed(connection, go("none", number=number))) == [wire.REP_ERR_UNKNOWN]
    assert kinds(feed(connection, go("1"))) == [wire.REP_INFO, wire.REP_ACK]


def choose(connection: Connection, data: bytes) -> None:
    """Choose an export, and leave it open whether it is accepted."""
    while data:
        buffer = connection.get_buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        events = connection.received(count)
    assert [type(event) for event in events] == [Chosen]
    assert len(connection.get_buffer()) == 0


def test_an_export_that_cannot_be_opened_is_an_error_and_another_one_may_be_chosen() -> None:
    connection = new()
    choose(connection, go("1"))
    events = connection.refuse("it is damaged")
    assert list(answers(sent(events))) == [(7, wire.REP_ERR_UNKNOWN, b"it is damaged")]
    feed(connection, go("w"))
    assert connection.export == EXPORTS["w"]


def test_an_export_that_cannot_be_opened_ends_it_in_the_old_way() -> None:
    connection = new()
    choose(connection, option(wire.OPT_EXPORT_NAME, b"1"))
    assert connection.refuse("it is damaged") == [Close("it is damaged")]
    assert len(connection.get_buffer()) == 0


@pytest.mark.parametrize("number", [5, 0, 4, 11, 1 << 31, 0xFFFFFFFF])
def test_an_unknown_option_is_skipped(number: int) -> None:
    connection = new()
    assert kinds(feed(connection, option(number, b"something"))) == [wire.REP_ERR_UNSUP]
    assert kinds(feed(connection, option(number))) == [wire.REP_ERR_UNSUP]
    assert kinds(feed(connection, option(wire.OPT_LIST)))[-1] == wire.REP_ACK


@pytest.mark.parametrize(
    "data",
    [
        option(wire.OPT_LIST, b"x"),
        option(wire.OPT_STRUCTURED_REPLY, b"x"),
        option(wire.OPT_GO),
        option(wire.OPT_GO, text("1")),
        option(wire.OPT_GO, text("1") + b"\0\1"),
        option(wire.OPT_GO, text("1") + b"\0\0more"),
        option(wire.OPT_GO, struct.pack(">I", 0xFFFFFFFF) + b"1"),
        option(wire.OPT_INFO, struct.pack(">I", 2) + b"\xff\xff\0\0"),
        option(wire.OPT_INFO, text("a\0b") + b"\0\0"),
        option(wire.OPT_INFO, text("x" * 5000) + b"\0\0"),
        contexts(wire.OPT_LIST_META_CONTEXT, ""),  # no structured replies yet
        contexts(wire.OPT_SET_META_CONTEXT, "", "base:allocation"),
    ],
)
def test_an_option_that_is_not_as_it_should_be_is_an_error(data: bytes) -> None:
    connection = new()
    assert kinds(feed(connection, data)) == [wire.REP_ERR_INVALID]
    assert kinds(feed(connection, option(wire.OPT_LIST)))[-1] == wire.REP_ACK


@pytest.mark.parametrize(
    "data",
    [text("1"), text("1") + struct.pack(">I", 1), text("1") + struct.pack(">I", 0xFFFFFFFF) + text("base:"),
     text("1") + struct.pack(">I", 0) + b"x"],
)  # fmt: skip
@pytest.mark.parametrize("number", [wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT])
def test_queries_that_are_not_as_they_should_be_are_an_error_and_nothing_is_chosen(number: int, data: bytes) -> None:
    connection = new()
    feed(connection, option(wire.OPT_STRUCTURED_REPLY))
    feed(connection, contexts(wire.OPT_SET_META_CONTEXT, "1", "base:allocation"))
    assert kinds(feed(connection, option(number, data))) == [wire.REP_ERR_INVALID]
    feed(connection, go("1"))
    assert connection.terms.has_allocation == (number == wire.OPT_LIST_META_CONTEXT)


@pytest.mark.parametrize(
    ("queries", "listed", "chosen"),
    [
        ([], True, False),
        (["base:"], True, False),
        (["base:allocation"], True, True),
        (["x-other:", "base:allocation"], True, True),
        (["base:other"], False, False),
        (["nonsense", "qemu:dirty-bitmap:x"], False, False),
    ],
)
def test_the_one_metadata_context_is_listed_and_chosen(queries: list[str], listed: bool, chosen: bool) -> None:
    connection = new()
    feed(connection, option(wire.OPT_STRUCTURED_REPLY))
    found = list(answers(sent(feed(connection, contexts(9, "1", *queries)))))
    one = [(9, wire.REP_META_CONTEXT, bytes(4) + b"base:allocation")] if listed else []
    assert found == [*one, (9, wire.REP_ACK, b"")]
    found = list(answers(sent(feed(connection, contexts(10, "1", *queries)))))
    one = [(10, wire.REP_META_CONTEXT, b"\0\0\0\1base:allocation")] if chosen else []
    assert found == [*one, (10, wire.REP_ACK, b"")]
    assert kinds(feed(connection, contexts(9, "none", *queries))) == [wire.REP_ERR_UNKNOWN]
    feed(connection, go("1"))
    assert connection.terms.has_allocation == chosen


def test_a_context_that_was_chosen_for_another_export_does_not_hold() -> None:
    connection = new()
    feed(connection, option(wire.OPT_STRUCTURED_REPLY))
    feed(connection, contexts(wire.OPT_SET_META_CONTEXT, "1", "base:allocation"))
    feed(connection, go(""))
    assert errors(connection, request(wire.CMD_BLOCK_STATUS, 0, 512)) == wire.EINVAL


def test_an_option_that_is_too_long_is_skipped_in_little_memory() -> None:
    connection = new()
    feed(connection, struct.pack(">QII", wire.OPTION_MAGIC, wire.OPT_GO, 0xFFFFFFFF))
    length = len(connection.get_buffer())
    assert length == 1 << 16
    left = 0xFFFFFFFF
    while left:
        count = len(connection.get_buffer())
        events = connection.received(count)
        left -= count
    assert kinds(events) == [wire.REP_ERR_TOO_BIG]
    assert kinds(feed(connection, option(wire.OPT_LIST)))[-1] == wire.REP_ACK


def test_requests_come_out_as_they_were_sent_in_pieces_of_any_size() -> None:
    data = (
        request(wire.CMD_READ, 512, 4096, cookie=1)
        + request(wire.CMD_WRITE, 5, 10, wire.CMD_FLAG_FUA, cookie=2)
        + b"0123456789"
        + request(wire.CMD_WRITE, 5, 0, cookie=3)
        + request(wire.CMD_FLUSH, cookie=4)
        + request(wire.CMD_TRIM, 0, 1 << 31, cookie=5)
        + request(wire.CMD_WRITE_ZEROES, 0, 1 << 31, wire.CMD_FLAG_NO_HOLE, cookie=6)
        + request(wire.CMD_CACHE, 0, 0xFFFFFFFF, cookie=7)
        + request(wire.CMD_BLOCK_STATUS, 1, 99, wire.CMD_FLAG_REQ_ONE, cookie=8)
        + request(wire.CMD_READ, 1, 9, wire.CMD_FLAG_DF, cookie=9)
        + request(wire.CMD_DISC)
    )
    wanted = [
        Request(0, 0, 1, 512, 4096),
        Request(1, 1, 2, 5, 10, memoryview(b"0123456789")),
        Request(1, 0, 3, 5, 0),
        Request(3, 0, 4, 0, 0),
        Request(4, 0, 5, 0, 1 << 31),
        Request(6, 2, 6, 0, 1 << 31),
        Request(5, 0, 7, 0, 0xFFFFFFFF),
        Request(7, 8, 8, 1, 99),
        Request(0, 4, 9, 1, 9),
    ]
    for piece in (1, 3, 28, 1 << 20):
        events = feed(ready("w"), data, piece)
        assert events == [*map(Command, wanted), Close()]


@pytest.mark.parametrize("is_structured", [False, True])
@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("1", request(wire.CMD_WRITE, 0, 3) + b"abc", wire.EPERM),
        ("1", request(wire.CMD_TRIM, 0, 3), wire.EPERM),
        ("1", request(wire.CMD_WRITE_ZEROES, 0, 3), wire.EPERM),
        ("1", request(wire.CMD_READ, 999, 2), wire.EINVAL),
        ("1", request(wire.CMD_READ, (1 << 64) - 1, 1), wire.EINVAL),
        ("1", request(wire.CMD_CACHE, 1001, 0), wire.EINVAL),
        ("1", request(wire.CMD_FLUSH, 1, 0), wire.EINVAL),
        ("1", request(wire.CMD_FLUSH, 0, 1), wire.EINVAL),
        ("1", request(99), wire.EINVAL),
        ("1", request(0xFFFF), wire.EINVAL),
        ("1", request(wire.CMD_READ, 0, 1, 0x8000), wire.EINVAL),
        ("1", request(wire.CMD_READ, 0, 1, wire.CMD_FLAG_REQ_ONE), wire.EINVAL),
        ("1", request(wire.CMD_READ, 0, (32 << 20) + 1), wire.EINVAL),
        ("w", request(wire.CMD_TRIM, 1 << 34, 1), wire.EINVAL),
        ("w", request(wire.CMD_WRITE_ZEROES, 1 << 34, 1), wire.ENOSPC),
        ("w", request(wire.CMD_WRITE_ZEROES, 0, 1, 16), wire.EINVAL),
        ("w", request(wire.CMD_WRITE, (1 << 34) - 1, 2) + b"ab", wire.ENOSPC),
        ("w", request(wire.CMD_WRITE, 0, (32 << 20) + 1) + bytes((32 << 20) + 1), wire.EINVAL),
    ],
)
def test_what_an_export_cannot_do_is_an_error_and_the_next_request_is_read(
    name: str, data: bytes, error: int, is_structured: bool
) -> None:
    connection = ready(name, is_structured=is_structured, has_allocation=False)
    assert errors(connection, data) == error
    assert feed(connection, request(wire.CMD_READ, 1, 2)) == [Command(Request(0, 0, 7, 1, 2))]


def test_a_read_that_must_not_be_cut_and_is_too_long_is_an_overflow() -> None:
    assert errors(ready("w"), request(wire.CMD_READ, 0, 33 << 20, wire.CMD_FLAG_DF)) == wire.EOVERFLOW
    assert errors(ready("w", is_structured=False, has_allocation=False), request(0, 0, 1, 4)) == wire.EINVAL


def test_holes_are_told_only_to_who_has_asked_for_the_context_and_of_some_bytes() -> None:
    data = request(wire.CMD_BLOCK_STATUS, 0, 512)
    assert errors(ready(has_allocation=False), data) == wire.EINVAL
    assert errors(ready(), request(wire.CMD_BLOCK_STATUS, 0, 0)) == wire.EINVAL
    assert errors(ready(), request(wire.CMD_BLOCK_STATUS, (1 << 20) - 1, 2)) == wire.EINVAL
    assert feed(ready(), data) == [Command(Request(7, 0, 7, 0, 512))]


def test_a_request_of_another_magic_ends_it() -> None:
    connection = ready()
    events = feed(connection, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
    assert events == [Close("the client's request begins with 0x47455420")]
    assert len(connection.get_buffer()) == 0


def test_replies_are_laid_out_as_the_protocol_says() -> None:
    plain, structured = Terms(), Terms(is_structured=True, has_allocation=True)
    one = Request(wire.CMD_READ, 0, 0x0102030405060708, 100, 10)
    cookie = bytes(range(1, 9))
    assert b"".join(replies.done(one)) == bytes.fromhex("67446698 00000000") + cookie
    assert b"".join(replies.failed(one, plain, wire.EIO, "no")) == bytes.fromhex("67446698 00000005") + cookie
    assert b"".join(replies.failed(one, structured, wire.EIO, "nö")) == (
        bytes.fromhex("668e33ef 0001 8001") + cookie + bytes.fromhex("00000009 00000005 0003") + "nö".encode()
    )
    data: list[replies.Buffer] = [b"01234", memoryview(b"56789")]
    assert b"".join(replies.data(one, plain, [(100, 10, data)])) == (
        bytes.fromhex("67446698 00000000") + cookie + b"0123456789"
    )
    assert b"".join(replies.data(one, structured, [(100, 4, None), (104, 6, [b"456789"])])) == (
        bytes.fromhex("668e33ef 0000 0002") + cookie + bytes.fromhex("0000000c 0000000000000064 00000004")
        + bytes.fromhex("668e33ef 0001 0001") + cookie + bytes.fromhex("0000000e 0000000000000068") + b"456789"
    )  # fmt: skip
    empty = Request(wire.CMD_READ, 0, one.cookie, 100, 0)
    assert b"".join(replies.data(empty, plain, [])) == bytes.fromhex("67446698 00000000") + cookie
    assert b"".join(replies.data(empty, structured, [])) == bytes.fromhex("668e33ef 0001 0000") + cookie + bytes(4)
    assert b"".join(replies.block_status(one, b"12345678")) == (
        bytes.fromhex("668e33ef 0001 0005") + cookie + bytes.fromhex("0000000c 00000001") + b"12345678"
    )
    assert replies.may_have_holes(one, structured)
    assert not replies.may_have_holes(one, plain)
    assert not replies.may_have_holes(Request(wire.CMD_READ, wire.CMD_FLAG_DF, 1, 100, 10), structured)


def test_a_long_message_is_cut_between_two_letters() -> None:
    one = Request(wire.CMD_READ, 0, 1, 0, 1)
    reply = b"".join(bytes(part) for part in replies.failed(one, Terms(is_structured=True), wire.EIO, "ö" * 9000))
    assert len(reply) == 26 + 4096
    assert set(reply[26:].decode()) == {"ö"}


messages = st.one_of(
    st.binary(max_size=40),
    st.builds(option, st.integers(0, 12), st.binary(max_size=30)),
    st.builds(go, st.sampled_from(["", "1", "w", "x"]), number=st.sampled_from([6, 7])),
    st.builds(contexts, st.sampled_from([9, 10]), st.just("1"), st.sampled_from(["base:", wire.ALLOCATION])),
    st.builds(request, st.integers(0, 9), st.integers(0, 1 << 21), st.integers(0, 99), st.integers(0, 9)),
    st.just(option(wire.OPT_STRUCTURED_REPLY)),
)  # fmt: skip


@given(flags=st.sampled_from([0, 1, 2, 3, 9]), said=st.lists(messages, max_size=12), piece=st.integers(1, 50))
def test_no_bytes_whatever_crash_it_and_every_answer_is_well_formed(flags: int, said: list[bytes], piece: int) -> None:
    connection = Connection(EXPORTS)
    before = connection.export
    events = feed(connection, struct.pack(">I", flags) + b"".join(said), piece)
    for number, event in enumerate(events):
        if isinstance(event, Close):
            assert number == len(events) - 1
            assert len(connection.get_buffer()) == 0
        elif isinstance(event, Command):
            assert connection.export
            assert event.request.end <= connection.export.size
        else:
            assert isinstance(event, Send | Chosen)
    assert before is None


def test_the_longest_that_a_client_may_say_takes_no_more_memory_than_one_request() -> None:
    connection = ready("w")
    tracemalloc.start()
    try:
        for length in (0xFFFFFFFF, 33 << 20):
            assert feed(connection, request(wire.CMD_WRITE, 0, length)) == []
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
            left = length
            while left:
                count = len(connection.get_buffer())
                connection.received(count)
                left -= count
        feed(connection, request(wire.CMD_WRITE, 0, 32 << 20))
        assert 32 << 20 <= tracemalloc.get_traced_memory()[1] < 34 << 20
    finally:
        tracemalloc.stop()


def test_an_export_ends_where_it_ends() -> None:
    assert Request(0, 0, 1, 5, 6).end == 11
    assert Export("x", 1).transmission_flags(is_structured=False) == 0b100001111
