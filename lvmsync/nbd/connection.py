"""One client of a server, from its first byte to its last: what arrives becomes events, and what is to be sent.

A machine without I/O. Bytes are put into `Connection.get_buffer`, which is as long as what is missing of the next
message and never longer than a limit, whatever the client says; `Connection.received` returns what that comes to.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from lvmsync.nbd import haggling, wire
from lvmsync.nbd.replies import Buffer, failed
from lvmsync.nbd.requests import Export, Refusal, Request, Terms, check

_SCRATCH = 1 << 16  # bytes at a time of what is skipped


@dataclass(frozen=True)
class Send:
    """These bytes are to be sent."""

    buffers: Sequence[Buffer]


@dataclass(frozen=True)
class Chosen:
    """The client has chosen an export: `Connection.accept` or `Connection.refuse` it before anything more is read."""

    export: Export


@dataclass(frozen=True)
class Command:
    """A request that the export can carry out."""

    request: Request


@dataclass(frozen=True)
class Close:
    """The line is to be closed, once all requests before are answered.

    Attributes:
        reason: what the client did wrong; None: it is done.
    """

    reason: str | None = None


Event = Send | Chosen | Command | Close

_Steps = Generator[memoryview, None, None]
"""Yields each buffer that is to be filled, and an empty one where the outside is to decide."""

_NOTHING = memoryview(b"")


class Connection:
    """The server's side of a line to a client.

    Attributes:
        terms: what was agreed upon.
        export: the one that is served; None until it is accepted.
    """

    def __init__(self, exports: Mapping[str, Export]) -> None:
        """Take the exports by their names, in the order in which they are listed."""
        self.terms = Terms()
        self.export: Export | None = None
        self._talk = haggling.Talk(exports)
        self._events: list[Event] = []
        self._choice: tuple[int, Export, bytes] | None = None
        self._steps = self._run()
        self._buffer = next(self._steps)

    @property
    def greeting(self) -> bytes:
        """What is sent first."""
        return wire.GREETING.pack(wire.INIT_PASSWD, wire.OPTION_MAGIC, wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)

    def get_buffer(self) -> memoryview:
        """Return where the next bytes are to be put; empty when nothing more is to be read."""
        return self._buffer

    def received(self, count: int) -> list[Event]:
        """Take note that so many bytes were put into the buffer, and return what that comes to."""
        self._buffer = self._buffer[count:]
        if not len(self._buffer):
            self._go_on()
        events, self._events = self._events, []
        return events

    def accept(self) -> list[Event]:
        """Serve the export that was chosen."""
        assert self._choice is not None
        _, export, agreed = self._choice
        self.export = export
        self.terms = self._talk.terms_for(export.name)
        self._events.append(Send([agreed]))
        return self._decide()

    def refuse(self, message: str) -> list[Event]:
        """Do not serve the export that was chosen; the client may choose another one."""
        assert self._choice is not None
        option = self._choice[0]
        if option == wire.OPT_EXPORT_NAME:  # which has no reply for that
            self._steps.close()
            self._events.append(Close(message))
        else:
            self._events.append(Send([haggling.refusal(option, wire.REP_ERR_UNKNOWN, message)]))
        return self._decide()

    def _decide(self) -> list[Event]:
        self._choice = None
        self._go_on()
        events, self._events = self._events, []
        return events

    def _go_on(self) -> None:
        self._buffer = next(self._steps, _NOTHING)

    def _run(self) -> _Steps:
        """Haggle, then read requests, until the line is to be closed."""
        flags = memoryview(bytearray(wire.CLIENT_FLAGS.size))
        yield flags
        if not self._talk.take_flags(wire.CLIENT_FLAGS.unpack(flags)[0]):
            return self._events.append(Close("the client has flags that are not known"))
        while self.export is None:
            head = memoryview(bytearray(wire.OPTION.size))
            yield head
            magic, option, length = wire.OPTION.unpack(head)
            if magic != wire.OPTION_MAGIC:
                return self._events.append(Close(f"the client's option begins with {magic:#x}"))
            if length > wire.MAX_OPTION:
                yield from self._skip(length)
                data = None
            else:
                data = memoryview(bytearray(length))
                if length:
                    yield data
            answer = self._talk.answer(option, None if data is None else bytes(data))
            if answer.sent:
                self._events.append(Send([answer.sent]))
            if answer.is_end:
                return self._events.append(Close(answer.reason))
            if answer.chosen:
                self._choice = option, answer.chosen, answer.agreed
                self._events.append(Chosen(answer.chosen))
                yield _NOTHING
        yield from self._read_requests(self.export)

    def _read_requests(self, export: Export) -> _Steps:
        while True:
            head = memoryview(bytearray(wire.REQUEST.size))
            yield head
            magic, flags, command, cookie, offset, length = wire.REQUEST.unpack(head)
            if magic != wire.REQUEST_MAGIC:
                return self._events.append(Close(f"the client's request begins with {magic:#x}"))
            if command == wire.CMD_DISC:
                return self._events.append(Close())
            request = Request(command, flags, cookie, offset, length)
            refused: Refusal | None = check(request, export, self.terms)
            if command == wire.CMD_WRITE and length:
                if refused:
                    yield from self._skip(length)
                else:
                    payload = memoryview(bytearray(length))
                    yield payload
                    request = Request(command, flags, cookie, offset, length, payload)
            if refused:
                self._events.append(Send(failed(request, self.terms, refused.error, refused.message)))
            else:
                self._events.append(Command(request))

    def _skip(self, length: int) -> _Steps:
        scratch = memoryview(bytearray(min(length, _SCRATCH)))
        while length:
            piece = scratch[:length]
            yield piece
            length -= len(piece)
