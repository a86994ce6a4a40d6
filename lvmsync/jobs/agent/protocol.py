"""What client and agent say to each other: lines of text over a transport, and raw bytes between them.

    agent   lvmsync AGENT {...}       the greeting
    client  lvmsync REQUEST {...}     one at a time
    agent   lvmsync WAIT              now and then, while it works; says nothing else
            lvmsync READY, TURN       go on, as the request's verb has it
            lvmsync AT {...}          of a stream that is being sent: how much of it is applied
            lvmsync ANSWER {...}      done; of a stream: RECEIPT
            lvmsync REFUSAL {...}     not done: code, message, notes

docs/agent.md has the whole of it. A line is bounded before it is read, and believed only when it was parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lvmsync.errors import LvmsyncError, PeerError, TransportError
from lvmsync.interfaces import Transport
from lvmsync.stream.frames import Buffer

PROTOCOL = 2
"""Version of the conversation, told in the greeting."""

AGENT, REQUEST, ANSWER = "lvmsync AGENT", "lvmsync REQUEST", "lvmsync ANSWER"
REFUSAL, READY, RECEIPT = "lvmsync REFUSAL", "lvmsync READY", "lvmsync RECEIPT"
WAIT, TURN, DONE, AT = "lvmsync WAIT", "lvmsync TURN", "lvmsync DONE", "lvmsync AT"

LONGEST_LINE = 1 << 20
"""Bytes of a line, at the most, its end included."""
LONGEST_REQUEST = 64 << 10
"""The same of a request: its reader may be the one that has to be careful."""
BEAT = 10.0
"""Seconds between two WAITs of an agent that works."""

_CHUNK = 64 << 10
_GROUP = re.compile("[0-9a-f]{8,64}")


class Line:
    """One end of a transport on which lines of text and raw bytes follow each other.

    Attributes:
        transport: what carries it.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._buffer = memoryview(bytearray(_CHUNK))
        self._rest = self._buffer[:0]  # what came with a line, and is behind it

    def say(self, word: str, values: Mapping[str, Any] | None = None) -> None:
        """Send a line: one of the words above, and an object where it has one."""
        self.send_all([encode(word, values)])

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send raw bytes; see `Transport`."""
        self.transport.send_all(buffers)

    def receive_some(self, buffer: memoryview) -> int:
        """Receive raw bytes; see `Transport`."""
        if not self._rest:
            return self.transport.receive_some(buffer)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def read_line(self, longest: int = LONGEST_LINE) -> str | None:
        """Read a line and return it without its end; None where the other side has ended.

        A line that is longer, or whose end does not come, is returned as far as it is there: it will not be
        one of ours.
        """
        line = bytearray()
        while len(line) < longest:
            if not self._rest:
                count = self.transport.receive_some(self._buffer)
                if not count:
                    break
                self._rest = self._buffer[:count]
            at = bytes(self._rest).find(b"\n")
            taken = len(self._rest) if at < 0 else at + 1
            line += self._rest[:taken]
            self._rest = self._rest[taken:]
            if at >= 0:
                break
        return bytes(line[:longest]).decode(errors="replace").removesuffix("\n") if line else None


def encode(word: str, values: Mapping[str, Any] | None = None) -> bytes:
    """Return a line of the conversation.

    Raises:
        TransportError: it is too long for the other side to read.
    """
    text = word if values is None else f"{word} {json.dumps(values, allow_nan=False)}"
    line = f"{text}\n".encode()
    if len(line) > LONGEST_LINE:
        raise TransportError(f"'{word}' has {len(line)} bytes, and a line has {LONGEST_LINE} at the most")
    return line


def parse(line: str, word: str) -> dict[str, Any] | None:
    """Return the object of a line that begins with ``word``; an empty one if it has none, None for another line."""
    if line == word:
        return {}
    if not line.startswith(f"{word} "):
        return None
    try:
        values = json.loads(line.removeprefix(f"{word} "), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def show(line: str) -> str:
    """Return the beginning of a line that is not understood, with nothing in it that drives a terminal."""
    return line[:80].encode("unicode_escape", "replace").decode()


def refusal_of(error: LvmsyncError) -> dict[str, Any]:
    """Return the object of the REFUSAL that tells an error."""
    return {"code": error.exit_code, "message": str(error), "notes": list(getattr(error, "__notes__", ()))}


def error_of(refusal: Mapping[str, Any], place: str) -> PeerError:
    """Return the error that the far side's REFUSAL tells."""
    code, message, notes = refusal.get("code"), refusal.get("message"), refusal.get("notes")
    words = tame(message) if isinstance(message, str) else "it refused, and does not say why"
    if not words.startswith(place):
        words = f"{place}: {words}"
    error = PeerError(words, code if type(code) is int else TransportError.exit_code)
    for note in notes if isinstance(notes, list) else ():
        error.add_note(tame(str(note)))
    return error


def tame(text: str) -> str:
    """Return a peer's text with nothing in it that drives a terminal or breaks a line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def is_group(text: object) -> bool:
    """Tell whether a value is the id of a group or replica, as it may stand in the name of a file."""
    return isinstance(text, str) and _GROUP.fullmatch(text) is not None
