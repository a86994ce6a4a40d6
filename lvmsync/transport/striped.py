"""Several lines as one: what is sent goes out in pieces, each over the line that has room for it.

A piece is a head, {u64 number, u32 length} little-endian, and its bytes. Pieces are numbered over all lines,
and put together by their numbers. Each line ends with a head whose length is 0 and whose number is how many
pieces there were on all: without it, an end is a loss. All lines are one: if one is lost, all are.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress

from lvmsync.errors import LvmsyncError, TransportError
from lvmsync.interfaces import Transport
from lvmsync.transport.pipe import Flow, Flowing, Watch, unused

PIECE = 256 << 10
"""Bytes of a piece, at the most."""
WINDOW = 64
"""Pieces that may wait for one that is late."""
MOST_LINES = 16

_HEAD = struct.Struct("<QI")


class Striped:
    """A Transport over several others, which must all lead to the same `Striped` on the far side.

    It ends them with itself, but does not own them: whoever opened them closes them. Its threads end when
    they do.

    Args:
        lines: the first of them is the one whose status `aclose` returns; their ``stall_timeout`` is taken over.

    Attributes:
        stall_timeout: see `interfaces.Transport`: of all lines together, for one may rest while others work.
    """

    def __init__(self, lines: Sequence[Transport]) -> None:
        self.stall_timeout = lines[0].stall_timeout
        self._lines = lines
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._rest = memoryview(b"")  # of the piece that was last received
        self._is_ended = False  # by us
        self._changed = threading.Condition()
        # From here on: under self._changed
        self._failure: TransportError | None = None
        self._moved = 0  # bytes, in both directions
        self._sent = 0  # pieces
        self._waiting = 0  # pieces that no line has taken yet
        self._next = 0  # number of the piece that is to be received
        self._inbox: dict[int, bytes] = {}
        self._last: int | None = None  # how many pieces the far side has sent, once it has ended
        self._is_discarding = False
        self._feeding = len(lines)  # that are still sent to
        self._open = set(range(len(lines)))  # lines that are still received from
        for line in lines:
            line.stall_timeout = None
        for work in self._send, self._receive:
            for index in range(len(lines)):
                threading.Thread(target=work, args=[index], name="stripe", daemon=True).start()

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send every byte of ``buffers``, in order.

        Raises:
            TransportError: a line is gone, or no byte moved on any for ``stall_timeout``.
        """
        if self._is_ended:
            raise ValueError("send_all after send_eof")
        data = b"".join(buffers)
        for start in range(0, len(data), PIECE):
            self._put(data[start : start + PIECE])

    def receive_some(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer`` and return how many; 0 at the end.

        Raises:
            TransportError: a line was lost before the far side's end.
        """
        if not self._rest:
            with self._changed:
                watch = self._watch()
                while self._next not in self._inbox:
                    if self._next == self._last:
                        return 0
                    self._wait(watch)
                self._rest = memoryview(self._inbox.pop(self._next))
                self._next += 1
                self._changed.notify_all()
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        if self._is_ended:
            return
        self._is_ended = True
        for _ in self._lines:
            self._outbox.put(None)

    def finish(self) -> None:
        """Send the end, and wait until the lines have taken all there is, or have failed."""
        self.send_eof()
        with self._changed, suppress(TransportError):
            watch = self._watch()
            while self._feeding:
                self._wait(watch)

    def aclose(self) -> int:
        """Close all lines and return the exit status of the first one's far side.

        What the far side still says is dropped.

        Raises:
            TransportError: a line was lost, and no status tells why.
        """
        self.send_eof()
        with self._changed:
            self._is_discarding = True
            self._changed.notify_all()
            watch = self._watch()
            with suppress(TransportError):
                while self._open:
                    self._wait(watch)
            if self._failure and 0 in self._open:  # it may never end by itself: it will be cut
                raise self._failure
        statuses = [line.aclose() for line in (self._lines[:1] if self._failure else self._lines)]
        if self._failure and not statuses[0]:
            raise self._failure
        return statuses[0]

    def _put(self, piece: bytes) -> None:
        with self._changed:
            watch = self._watch()
            while self._waiting >= 2 * len(self._lines):
                self._wait(watch)
            if self._failure:
                raise self._failure
            self._outbox.put(_HEAD.pack(self._sent, len(piece)) + piece)
            self._waiting += 1
            self._sent += 1

    def _watch(self) -> Watch:
        return Watch(f"{len(self._lines)} streams", self.stall_timeout, lambda: self._moved)

    def _wait(self, watch: Watch) -> None:
        """Wait for a change under ``_changed``; raise what has gone wrong."""
        if self._failure:
            raise self._failure
        if not self._changed.wait(watch.nap):
            try:
                watch.check()
            except TransportError as error:
                self._fail(error)
                raise

    def _send(self, index: int) -> None:
        """Give pieces to one line, until the end: a thread's work."""
        line = self._lines[index]
        try:
            while (piece := self._outbox.get()) is not None:
                line.send_all([piece])
                with self._changed:
                    self._moved += len(piece)
                    self._waiting -= 1
                    self._changed.notify_all()
            if not self._failure:
                line.send_all([_HEAD.pack(self._sent, 0)])
                line.send_eof()
        except (LvmsyncError, OSError, ValueError) as error:
            self._fail(error)
        with self._changed:
            self._feeding -= 1
            self._changed.notify_all()

    def _receive(self, index: int) -> None:
        """Take pieces from one line, until its end: a thread's work."""
        try:
            while self._take(self._lines[index]):
                pass
        except (LvmsyncError, OSError, ValueError) as error:
            self._fail(error)
        with self._changed:
            self._open.discard(index)
            self._changed.notify_all()

    def _take(self, line: Transport) -> bool:
        """Receive one piece; False for the last head of the line."""
        number, length = _HEAD.unpack(self._read(line, _HEAD.size))
        if length > PIECE:
            raise TransportError(f"a piece of {length} bytes came on a stream: what talks there is no lvmsync")
        piece = self._read(line, length)
        with self._changed:
            if not length:
                self._last = number
                return False
            # The piece that is waited for is never behind one that waits here: numbers ascend on every line.
            self._changed.wait_for(lambda: number < self._next + WINDOW or self._failure or self._is_discarding)
            if number < self._next or number in self._inbox:
                raise TransportError(f"piece {number} came twice on the streams: what talks there is no lvmsync")
            if not self._is_discarding:
                self._inbox[number] = piece
            self._changed.notify_all()
        return True

    def _read(self, line: Transport, size: int) -> bytes:
        """Return exactly ``size`` bytes of a line."""
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = line.receive_some(view)
            if not count:
                raise TransportError(f"one of {len(self._lines)} streams was lost, and so all are; try again")
            view = view[count:]
            with self._changed:
                self._moved += count
        return bytes(data)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if not self._failure:
                if not isinstance(error, TransportError):
                    error = TransportError(f"one of the streams was lost: {error}")
                self._failure = error
                for _ in self._lines:
                    self._outbox.put(None)  # whoever waits for a piece
            self._changed.notify_all()


class Socket(Flowing):
    """A Transport over a connected stream socket; its far side has no exit status."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._flow = Flow(name)
        self._name = name

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send every byte of ``buffers``, in order."""
        try:
            with self._flow.writing:
                self._flow.write_all(self._socket.fileno(), buffers, self._socket.fileno())
        except OSError as error:
            raise TransportError(f"{self._name}: {error.strerror}") from error

    def receive_some(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer`` and return how many; 0 at the end."""
        try:
            with self._flow.reading:
                return self._flow.read_some(self._socket.fileno(), buffer)
        except OSError as error:
            raise TransportError(f"{self._name}: {error.strerror}") from error

    def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        with suppress(OSError):  # the far side is gone
            self._socket.shutdown(socket.SHUT_WR)

    def aclose(self) -> int:
        """Close the socket, and wake who waits for it; it has no status, so it is 0."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with unused(self._flow.writing, self._flow.reading) as is_unused:
            if is_unused:
                self._socket.close()
        return 0
