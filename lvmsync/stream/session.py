"""The rules of a stream: which frame may follow which, and what a receiver checks of each.

The decoders know bytes; this knows order. `Receiver` finds out the format, and gives only frames that
keep every rule: whatever breaks one is a `StreamError`, before anything of it reaches a target.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

import numpy as np

from lvmsync.errors import StreamError
from lvmsync.extents import MAX_SIZE
from lvmsync.stream import v3, v4
from lvmsync.stream.frames import Abort, Changes, Data, End, Frame, Header, Hole, Mark, Zero


class State(Enum):
    """Where a stream is."""

    START = auto()
    BODY = auto()
    ENDED = auto()
    ABORTED = auto()


TRANSITIONS: dict[State, dict[type, State]] = {
    State.START: {Header: State.BODY},
    State.BODY: {
        Data: State.BODY,
        Zero: State.BODY,
        Hole: State.BODY,
        Mark: State.BODY,
        End: State.ENDED,
        Abort: State.ABORTED,
    },
    State.ENDED: {},
    State.ABORTED: {},
}
"""What may come in each state, and the state after it. A frame that is not here is an error."""


class Receiver:
    """Bytes of a stream of either format to frames that keep the rules.

    Feed it with ``get_buffer`` and ``received``; take ``frames`` after each, and ``receive_eof`` at the end.
    """

    def __init__(self) -> None:
        self.state = State.START
        self.header = Header()
        self.extents = 0
        self.changed_bytes = 0
        self._line = memoryview(bytearray(len(v4.MAGIC)))
        self._line_filled = 0
        self._decoder: v3.Decoder | v4.Decoder | None = None
        self._last_end = 0

    @property
    def version(self) -> int:
        """Which format it is: 3 or 4; 0 as long as that is not known."""
        return self._decoder.version if self._decoder else 0

    @property
    def digest(self) -> str | None:
        """Hex digest over all frames so far; None in a format without checksums."""
        return self._decoder.digest if isinstance(self._decoder, v4.Decoder) else None

    @property
    def position(self) -> int:
        """Byte of the stream up to which all frames are whole, in a format that has frames."""
        return self._decoder.position if isinstance(self._decoder, v4.Decoder) else 0

    @property
    def last(self) -> v4.FrameHead | None:
        """Where the frame is that was found last, in a format that has frames."""
        return self._decoder.last if isinstance(self._decoder, v4.Decoder) else None

    def get_buffer(self) -> memoryview:
        """Return where the next bytes are to be put; never empty."""
        return self._decoder.get_buffer() if self._decoder else self._line[self._line_filled :]

    def received(self, count: int) -> None:
        """Take ``count`` bytes that were put into the buffer.

        Raises:
            StreamError: they are not a stream, or a damaged one.
        """
        if self._decoder:
            self._decoder.received(count)
            return
        self._line_filled += count
        line = bytes(self._line[: self._line_filled])
        if not v4.MAGIC.startswith(line) and not v3.MAGIC.startswith(line):
            self._refuse_line(line)
        if line == v4.MAGIC:
            self._decoder = v4.Decoder()
        elif line == v3.MAGIC:
            self._decoder = v3.Decoder()

    def frames(self) -> Iterator[Frame]:
        """Yield every frame that is there, checked.

        Raises:
            StreamError: a frame breaks a rule.
        """
        if self._decoder:
            for frame in self._decoder.frames():
                yield self._admit(frame)

    def receive_eof(self) -> Iterator[Frame]:
        """Yield what the end of the input brings: in PROTO[3] it is the End.

        Raises:
            StreamError: the stream is cut short.
        """
        if not self._decoder:
            found = f"{self._line_filled} bytes" if self._line_filled else "nothing"
            raise StreamError(f"no stream: {found} came before the end of the input; did the sender fail?", offset=0)
        for frame in self._decoder.receive_eof():
            yield self._admit(frame)

    def _refuse_line(self, line: bytes) -> None:
        text = line.decode("ascii", "replace").encode("unicode_escape", "replace").decode()
        if line.startswith(b"lvmsync PROTO["):
            raise StreamError(f"stream begins with '{text}': not a version that this lvmsync reads (3 and 4)", offset=0)
        raise StreamError(
            f"not an lvmsync stream: it begins with '{text}'; if a remote shell prints text at login, silence it",
            offset=0,
        )

    def _admit(self, frame: Frame) -> Frame:
        after = TRANSITIONS[self.state].get(type(frame))
        if after is None:
            raise StreamError(f"a {type(frame).__name__} frame cannot come in state {self.state.name}")
        match frame:
            case Header():
                self.header = frame
                self._last_end = frame.resume or 0
            case Data() | Zero() | Hole():
                self._admit_changes(frame)
            case Mark() | End():
                self._admit_count(frame)
        self.state = after
        return frame

    def _admit_changes(self, frame: Changes) -> None:
        offsets, lengths = frame.table[:, 0], frame.table[:, 1]
        if not len(offsets):
            raise StreamError("a frame of changes without extents")
        size = self.header.size
        limit = np.uint64(MAX_SIZE if size is None else size)
        # Each is bounded before they are added, so that the sum cannot wrap.
        if not lengths.all() or offsets.max() > limit or lengths.max() > limit or (offsets + lengths).max() > limit:
            raise StreamError(f"an extent of the stream is empty, or ends past its device of {limit} bytes")
        if self.version == 4:
            ends = offsets + lengths
            if int(offsets[0]) < self._last_end or bool((offsets[1:] < ends[:-1]).any()):
                raise StreamError(f"extents of the stream are not in order at offset {int(offsets[0])}")
            self._last_end = int(ends[-1])
        self.extents += len(offsets)
        self.changed_bytes += frame.changed_bytes

    def _admit_count(self, frame: Mark | End) -> None:
        if (frame.extents, frame.changed_bytes) != (self.extents, self.changed_bytes):
            raise StreamError(
                f"the stream says it carried {frame.extents} extents and {frame.changed_bytes} bytes;"
                f" {self.extents} and {self.changed_bytes} arrived"
            )
        announced = self.header.changed_bytes
        if isinstance(frame, End) and announced is not None and announced != self.changed_bytes:
            raise StreamError(f"the stream announced {announced} bytes of changes and carried {self.changed_bytes}")
