"""ssh in this process: asyncssh, its loop in a thread of its own, behind blocking calls.

Two queues join the caller's threads to the loop: what is to be sent, in pieces of 1 MiB, and what was
received. Both are bounded. A queue that is full blocks the caller, or makes asyncssh stop reading, and the
channel's window then stops the far side.
"""

from __future__ import annotations

import asyncio
import signal as signals
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import asyncssh

from lvmsync.errors import TransportError
from lvmsync.names import Host
from lvmsync.transport import Ssh
from lvmsync.transport.asyncssh_login import hang_up, log_in, wait_for_login
from lvmsync.transport.lines import Lines
from lvmsync.transport.loop import run_loop
from lvmsync.transport.pipe import Watch

PIECE = 1 << 20
"""Bytes that a caller's thread hands to the loop at once."""

QUEUE = 4 << 20
"""Bytes that may wait in each of the two queues."""

WINDOW = 16 << 20
"""Bytes that the far side may send ahead: more than Linux's TCP buffers hold (6 MiB, if they were not raised).
When we receive slowly, twice as many lie in memory: see ``Line._resume``."""

_BURST = 256 << 10  # bytes given to asyncssh at once; a keepalive waits behind them
_CLOSE_TIMEOUT = 300.0  # seconds; the far side may be busy with its last sync


@contextmanager
def connect(
    host: Host, command: str, options: Ssh, on_stderr: Callable[[str], None], *, stall_timeout: float | None = None
) -> Iterator[Line]:
    """Log in to ``host``, start ``command`` there, and yield the line to it.

    Raises:
        TransportError: no connection, an unknown host key, no login, or the command cannot be started.
    """
    with run_loop() as loop:
        line = Line(host, options, on_stderr, loop)
        line.stall_timeout = stall_timeout
        try:
            line.open(command)
            yield line
        finally:
            line.hang_up()


class Line(asyncssh.SSHClientSession[bytes]):
    """A Transport over one channel of an ssh connection; made by ``connect``.

    One thread may send while another receives.

    Attributes:
        stall_timeout: see `interfaces.Transport`.
    """

    stall_timeout: float | None = None

    def __init__(
        self, host: Host, options: Ssh, on_stderr: Callable[[str], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._host = host
        self._options = options
        self._loop = loop
        self._lines = Lines(on_stderr)
        self._connection: asyncssh.SSHClientConnection | None = None
        self._channel: asyncssh.SSHClientChannel[bytes]
        self._blocked: set[str] = set()  # who asked to stop writing: the channel (window), the socket
        self._is_waking = False
        self._seen = 0  # bytes in the inbox when _wake last looked
        self._is_draining = False
        self._rest = memoryview(b"")  # of the piece that was last received
        self._changed = threading.Condition()
        # From here on: under self._changed
        self._outbox: deque[memoryview] = deque()
        self._outbox_size = 0
        self._is_pumping = False
        self._wants_eof = False
        self._inbox: deque[bytes] = deque()
        self._inbox_size = 0
        self._is_paused = False
        self._is_discarding = False
        self._has_ended = False  # end of the far side's stdout
        self._is_closed = False
        self._status: int | None = None
        self._failure: BaseException | None = None
        self._moved = 0  # bytes, in both directions

    # The caller's threads

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send every byte of ``buffers``, in order.

        Raises:
            TransportError: the far side ended or is gone, or no byte moved for ``stall_timeout``.
        """
        if self._wants_eof:
            raise ValueError("send_all after send_eof")
        for piece in _pieces(buffers):
            with self._changed:
                self._wait_for_room()
                self._outbox.append(memoryview(piece))
                self._outbox_size += len(piece)
                self._start_pump()

    def receive_some(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer`` and return how many; 0 at the end.

        Raises:
            TransportError: the connection was lost before the far side's end.
        """
        filled = 0
        while filled < len(buffer):
            if not self._rest:
                with self._changed:
                    watch = self._watch()
                    while not self._inbox and not filled:
                        if self._has_ended:
                            return 0
                        if self._failure:
                            raise self._failure
                        self._wait(watch)
                    if not self._inbox:
                        break
                    self._rest = memoryview(self._inbox.popleft())
                    self._inbox_size -= len(self._rest)
                    if self._is_paused and self._inbox_size <= QUEUE // 2:
                        self._is_paused = False
                        self._loop.call_soon_threadsafe(self._resume)
            count = min(len(self._rest), len(buffer) - filled)
            buffer[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:]
            filled += count
        return filled

    def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        with self._changed:
            self._wants_eof = True
            if not self._is_closed:
                self._start_pump()

    def aclose(self) -> int:
        """Close the line and return the far command's exit status, 128+n where a signal ended it.

        What it still says on stdout is dropped. It has five minutes to end: receive to the end first
        where it may be busy for longer.

        Raises:
            TransportError: the connection was lost before the status came, or the time is up.
        """
        self.send_eof()
        with self._changed:
            self._is_discarding = True
            self._inbox.clear()
            if self._is_paused:
                self._is_paused = False
                self._loop.call_soon_threadsafe(self._resume)
            if not self._changed.wait_for(lambda: self._is_closed or self._failure, _CLOSE_TIMEOUT):
                self._failure = TransportError(f"{self._host}: the far side does not end; its state is not known")
        self.hang_up()
        if self._status is None:
            assert self._failure
            raise self._failure
        return self._status

    def open(self, command: str) -> None:
        """Log in and start ``command``."""
        wait_for_login(self._open(command), self._loop, self._host, self._options)

    def hang_up(self) -> None:
        """Close the connection, whatever its state; harmless when it is closed."""
        hang_up(self._connection, self._loop)

    def _wait_for_room(self) -> None:
        watch = self._watch()
        while True:
            if self._failure:
                raise self._failure
            if self._is_closed or self._status is not None:
                raise TransportError(
                    f"{self._host}: the far side ended, status {self._status}, before it read everything"
                )
            if self._outbox_size < QUEUE:
                return
            self._wait(watch)

    def _watch(self) -> Watch:
        # What the channel still holds shrinks when the far side reads, also within one piece
        return Watch(str(self._host), self.stall_timeout, lambda: self._moved - self._channel.get_write_buffer_size())

    def _wait(self, watch: Watch) -> None:
        """Wait for a change, or for one of these moments in which to look whether the line has stalled."""
        if not self._changed.wait(watch.nap):
            try:
                watch.check()
            except TransportError as error:
                self._failure = error
                raise

    def _start_pump(self) -> None:
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_soon_threadsafe(self._pump)

    # The loop's thread

    async def _open(self, command: str) -> None:
        self._connection = await log_in(self._host, self._options)
        # asyncssh 2.24 writes past a full socket, into memory; asyncio tells the connection when one is full
        self._connection.pause_writing = lambda: self._block("socket")  # type: ignore[method-assign]
        self._connection.resume_writing = lambda: self._unblock("socket")  # type: ignore[method-assign]
        async with asyncio.timeout(self._options.connect_timeout):
            await self._connection.create_session(
                lambda: self,
                command,
                encoding=None,
                window=WINDOW,
                request_pty=False,  # RequestTTY of the user's config would put a terminal into the stream
                x11_forwarding=False,
            )

    def _block(self, who: str) -> None:
        self._blocked.add(who)

    def _unblock(self, who: str) -> None:
        self._blocked.discard(who)
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give asyncssh what is to be sent, until it has enough."""
        while not self._blocked:
            with self._changed:
                if not self._outbox:
                    self._is_pumping = False
                    if self._wants_eof:
                        self._channel.write_eof()
                    return
                piece = self._outbox.popleft()
                if len(piece) > _BURST:
                    self._outbox.appendleft(piece[_BURST:])
                    piece = piece[:_BURST]
                self._outbox_size -= len(piece)
                self._moved += len(piece)
                self._changed.notify_all()
            with suppress(BrokenPipeError):  # the far side closed the channel; connection_lost comes next
                self._channel.write(cast(bytes, piece))  # it makes a copy

    def _resume(self) -> None:
        """Take all that asyncssh kept while it was paused, and only then pause again.

        With the first piece that it passes on, asyncssh 2.24 opens the whole window again, whatever it still
        keeps. Paused in the middle, it would keep one window more each time, up to the whole stream.
        """
        self._is_draining = True
        self._channel.resume_reading()
        self._is_draining = False
        with self._changed:
            self._pause_if_full()

    def _pause_if_full(self) -> None:
        if self._inbox_size >= QUEUE and not self._is_paused:
            self._is_paused = True
            self._channel.pause_reading()

    def _wake(self) -> None:
        """Wake who receives when there is a piece for it, or when no more comes just now."""
        with self._changed:
            if self._seen < self._inbox_size < PIECE:
                self._seen = self._inbox_size
                self._loop.call_soon(self._wake)
            else:
                self._is_waking = False
                self._changed.notify_all()

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Keep the channel."""
        self._channel = chan
        chan.set_write_buffer_limits(_BURST, _BURST // 4)

    def pause_writing(self) -> None:
        """The far side's window is full."""
        self._block("window")

    def resume_writing(self) -> None:
        """The far side's window is open again."""
        self._unblock("window")

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Queue what came on stdout; give on what came on stderr."""
        if datatype is not None:
            self._lines.feed(data)
            return
        with self._changed:
            self._moved += len(data)
            if self._is_discarding:
                return
            self._inbox.append(data)
            self._inbox_size += len(data)
            if not self._is_draining:
                self._pause_if_full()
        if not self._is_waking:
            self._is_waking = True
            self._seen = 0
            self._loop.call_soon(self._wake)

    def eof_received(self) -> bool:
        """Note the end of stdout; True: sending goes on."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
        return True

    def exit_status_received(self, status: int) -> None:
        """Note how the far command ended; who still sends is woken."""
        with self._changed:
            self._status = status
            self._changed.notify_all()

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """Note by which signal the far command ended."""
        self.exit_status_received(128 + getattr(signals, f"SIG{signal}", 127))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the channel is closed: with a status an end, without one a loss."""
        self._lines.end()
        with self._changed:
            self._is_closed = True
            # A connection that breaks takes with it what asyncssh kept while it was paused: that is no end
            self._has_ended = self._has_ended or (exc is None and self._status is not None)
            if not self._failure and (self._status is None or not self._has_ended):
                self._failure = TransportError(f"{self._host}: connection lost: {exc or 'closed by the far side'}")
                self._failure.__cause__ = exc
            self._changed.notify_all()


def _pieces(buffers: Sequence[bytes | bytearray | memoryview]) -> Iterator[bytes]:
    """Yield copies of about ``PIECE`` bytes: the buffers are the caller's again when send_all returns."""
    views: list[memoryview] = []
    size = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while len(view):
            part = view[: PIECE - size]
            view = view[len(part) :]
            views.append(part)
            size += len(part)
            if size == PIECE:
                yield b"".join(views)
                views, size = [], 0
    if views:
        yield b"".join(views)
