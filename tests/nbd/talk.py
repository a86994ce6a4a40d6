"""A client of NBD for the tests of the server's protocol, bytes by hand: what real ones never send, too."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lvmsync.nbd import wire
from lvmsync.nbd.connection import Chosen, Close, Command, Connection, Event, Send
from lvmsync.nbd.requests import Export

EXPORTS = {
    one.name: one
    for one in (
        Export("", 1 << 20, "the newest"),
        Export("1", 1000, "the oldest"),
        Export("w", 1 << 34, is_writable=True),
    )
}


def new(flags: int = 3) -> Connection:
    """Return a connection whose client has sent its flags."""
    connection = Connection(EXPORTS)
    assert feed(connection, struct.pack(">I", flags)) == []
    return connection


def feed(connection: Connection, data: bytes, piece: int = 1 << 30) -> list[Event]:
    """Send bytes, so many at a time; export are accepted."""
    events: list[Event] = []
    while data and len(buffer := connection.get_buffer()):
        count = min(len(buffer), piece, len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        for event in connection.received(count):
            events.append(event)
            if isinstance(event, Chosen):
                events += connection.accept()
    return events


def option(number: int, data: bytes = b"", magic: int = wire.OPTION_MAGIC) -> bytes:
    return struct.pack(">QII", magic, number, len(data)) + data


def text(word: str) -> bytes:
    return struct.pack(">I", len(word.encode())) + word.encode()


def go(name: str, *wanted: int, number: int = wire.OPT_GO) -> bytes:
    return option(number, text(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted))


def contexts(number: int, name: str, *queries: str) -> bytes:
    return option(number, text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries)))


def request(command: int, offset: int = 0, length: int = 0, flags: int = 0, cookie: int = 7) -> bytes:
    return struct.pack(">IHHQQI", wire.REQUEST_MAGIC, flags, command, cookie, offset, length)


def sent(events: list[Event]) -> bytes:
    """Return all bytes that are to be sent."""
    return b"".join(bytes(buffer) for event in events if isinstance(event, Send) for buffer in event.buffers)


def answers(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield option, type and data of each reply to options."""
    while data:
        magic, number, kind, length = struct.unpack(">QIII", data[:20])
        assert magic == 0x3E889045565A9
        yield number, kind, data[20 : 20 + length]
        data = data[20 + length :]


def kinds(events: list[Event]) -> list[int]:
    return [kind for _, kind, _ in answers(sent(events))]


def ready(name: str = "", *, is_structured: bool = True, has_allocation: bool = True) -> Connection:
    """Return a connection to an export."""
    connection = new()
    if is_structured:
        feed(connection, option(wire.OPT_STRUCTURED_REPLY))
    if has_allocation:
        feed(connection, contexts(wire.OPT_SET_META_CONTEXT, name, "base:allocation"))
    feed(connection, go(name))
    assert connection.export == EXPORTS[name]
    return connection


def errors(connection: Connection, data: bytes) -> int:
    """Send a request that fails, and return its error."""
    events = feed(connection, data)
    assert not any(isinstance(event, Command | Close) for event in events)
    reply = sent(events)
    if connection.terms.is_structured:
        magic, flags, kind, cookie, length, error, told = struct.unpack(">IHHQIIH", reply[:26])
        assert (magic, flags, kind, cookie) == (0x668E33EF, 1, 1 << 15 | 1, 7)
        assert length == 6 + told == len(reply) - 20
        assert reply[26:].decode()
    else:
        magic, error, cookie = struct.unpack(">IIQ", reply)
        assert (magic, cookie) == (0x67446698, 7)
    assert isinstance(error, int)
    return error
