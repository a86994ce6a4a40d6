"""The far side of a line, as the side that asks sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lvmsync.errors import PeerError, TransportError
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.listener import Listener
from lvmsync.jobs.agent.protocol import REFUSAL, WAIT, Line, error_of, parse, show
from lvmsync.stream.frames import Buffer


@dataclass
class Peer:
    """The far side at the other end of a line.

    Attributes:
        place: what messages call it.
        line: the line to it; set by `connect`.
        last_words: its last line on stderr, for the message if it fails.
        is_over: whether the line has ended, or may hold what is not understood: nothing more can be asked.
        talking: held as long as something is being asked of it, a stream and its receipt included.
    """

    place: str
    line: Line = field(init=False)
    last_words: str = ""
    is_over: bool = field(default=False, init=False)
    talking: AbstractContextManager[Any] = field(default_factory=nullcontext)
    _listener: Listener | None = field(default=None, init=False)

    def connect(self, transport: Transport | Line) -> None:
        """Set the line to it."""
        self.line = transport if isinstance(transport, Line) else Line(transport)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send to it; if the line breaks because it ended, or it refuses what is sent, that is the error."""
        if self._listener and self._listener.has_given_up:
            self._give_up_early()
        try:
            self.line.send_all(buffers)
        except TransportError as error:
            self.is_over = True
            self._give_reason()
            self.fail(str(error))

    def receive_some(self, buffer: memoryview) -> int:
        """Receive raw bytes; 0 at the end."""
        return self.line.receive_some(buffer)

    def listen(
        self, on_applied: Callable[[int], None] = lambda _: None, on_end: Callable[[], None] = lambda: None
    ) -> None:
        """Read, in a thread of its own, what it says while a stream is sent to it, up to its next answer or its end.

        `expect` gives that answer.

        Args:
            on_applied: told of how many bytes of changes it has applied.
            on_end: called when it will say no more of that.
        """
        self._listener = Listener(self.line, on_applied, on_end)

    def expect(self, word: str) -> dict[str, Any]:
        """Read lines until it has something to say, and return the object behind ``word``.

        Raises:
            PeerError: it refused, or ended without an answer.
            TransportError: something else talks on its line.
        """
        line = self._read_answer()
        if line is None:
            self.fail("it ended without an answer")
        refusal = parse(line, REFUSAL)
        if refusal is not None:
            self.is_over |= refusal.get("over") is True
            raise error_of(refusal, self.place)
        values = parse(line, word)
        if values is None:
            self.is_over = True
            raise TransportError(
                f"{self.place} said '{show(line)}' where lvmsync should have answered:"
                " if its shell prints text at login, silence that for sessions without a terminal"
            )
        return values

    def fail(self, what: str) -> NoReturn:
        """End the line, and raise what its exit status means."""
        self.is_over = True
        status = self.line.transport.aclose()
        words = self.last_words.removeprefix("lvmsync: ")
        if status == 127:
            raise PeerError(
                f"{self.place}: lvmsync was not found there; install it, or name its path with --remote-command", status
            )
        if status:
            raise PeerError(f"{self.place} failed with status {status}: {words or what}", status)
        raise TransportError(f"{self.place}: {what}, though its status is 0; is it an lvmsync that can answer?")

    def _give_reason(self) -> None:
        """Raise what the far side had to say before it ended, if it did."""
        try:
            while line := self._read_answer():
                refusal = parse(line, REFUSAL)
                if refusal is not None:
                    raise error_of(refusal, self.place)
        except TransportError:
            return  # its exit status has to do

    def _give_up_early(self) -> NoReturn:
        """Raise why it does not want what is sent to it, now and whenever something is."""
        listener = self._listener
        try:
            self.expect(REFUSAL)
        except TransportError as error:
            if self.is_over:
                raise
            self.fail(str(error))
        finally:
            self._listener = listener
        raise AssertionError("no refusal is an error, too")

    def _read_answer(self) -> str | None:
        """Read lines until it says something else than that it works; None: it has ended."""
        listener, self._listener = self._listener, None
        if listener:
            return listener.read_answer()
        while (line := self.line.read_line()) == WAIT:
            pass
        return line
