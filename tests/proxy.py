"""A TCP proxy on 127.0.0.1 that can stall, cut and slow what goes through it, for the length of a ``with``."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 64 << 10
_MOST = 1 << 20  # bytes that one direction of a connection holds


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.held: deque[tuple[float, bytes]] = deque()  # (when it may go on, bytes)
        self.size = 0
        self.moved = 0  # bytes that went on
        self.has_ended = self.is_done = False
        self.free_at = 0.0


class Proxy:
    """Passes connections on to a port, until told otherwise.

    Attributes:
        port: where it listens.
        delay: seconds that a byte takes, each way.
        rate: bytes a second of each connection, each way; None: no limit.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay = 0.0
        self.rate: int | None = None
        self._is_stalled = False
        self._is_cut = False
        self._stall_behind: int | None = None
        self._pipes: list[_Pipe] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def moved(self) -> int:
        """Bytes that went through, both ways."""
        return sum(pipe.moved for pipe in self._pipes)

    @property
    def connections(self) -> int:
        """How many connections were made."""
        return len(self._pipes) // 2

    @property
    def is_stalled(self) -> bool:
        """Whether nothing goes through."""
        return self._is_stalled

    def stall(self, *, behind: int = 0) -> None:
        """Pass nothing on any more once so many bytes went through in all; the connections stay."""
        self._stall_behind = behind

    def cut(self) -> None:
        """Close all connections."""
        self._is_cut = True

    def close(self) -> None:
        """End the proxy and its connections."""
        self._ended = True
        self._thread.join(10)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._ended:
                for key, _ in selector.select(0.001):
                    if key.fileobj is self._listener:
                        self._open(selector)
                    else:
                        self._read(key.data, selector)
                if self._stall_behind is not None and self.moved >= self._stall_behind:
                    self._is_stalled = True
                for pipe in self._pipes:
                    if not pipe.is_done and not self._is_stalled:
                        self._pass_on(pipe, selector)
                if self._is_cut:
                    self._is_cut = False
                    self._close_all(selector)
            self._close_all(selector)
        self._listener.close()

    def _open(self, selector: selectors.BaseSelector) -> None:
        here, _ = self._listener.accept()
        there = socket.create_connection(("127.0.0.1", self._to))
        for one, other in (here, there), (there, here):
            one.setblocking(False)
            pipe = _Pipe(one, other)
            self._pipes.append(pipe)
            selector.register(one, selectors.EVENT_READ, pipe)

    def _read(self, pipe: _Pipe, selector: selectors.BaseSelector) -> None:
        data = b""
        with suppress(BlockingIOError, ConnectionError):
            data = pipe.source.recv(_CHUNK)
        now = time.monotonic()
        pipe.held.append((now + self.delay, data))
        pipe.size += len(data)
        pipe.has_ended = not data
        if not data or pipe.size >= _MOST or self._is_stalled:
            selector.unregister(pipe.source)

    def _pass_on(self, pipe: _Pipe, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        while pipe.held and pipe.held[0][0] <= now and pipe.free_at <= now:
            at, data = pipe.held.popleft()
            if not data:
                with suppress(OSError):
                    pipe.sink.shutdown(socket.SHUT_WR)
                pipe.is_done = True
                return
            try:
                sent = pipe.sink.send(data[: max(1, self.rate // 100)] if self.rate else data)
            except BlockingIOError:
                sent = 0
            except OSError:
                pipe.is_done = True
                return
            if self.rate:
                pipe.free_at = max(pipe.free_at, now - 0.02) + sent / self.rate
            pipe.size -= sent
            pipe.moved += sent
            if sent < len(data):
                pipe.held.appendleft((at, data[sent:]))
                if not sent:
                    break
        if pipe.size < _MOST and not pipe.has_ended and pipe.source.fileno() >= 0:
            with suppress(KeyError, ValueError):
                selector.register(pipe.source, selectors.EVENT_READ, pipe)

    def _close_all(self, selector: selectors.BaseSelector) -> None:
        for pipe in self._pipes:
            with suppress(KeyError, ValueError):
                selector.unregister(pipe.source)
            pipe.source.close()
            pipe.is_done = True


@contextmanager
def run_proxy(to: int) -> Iterator[Proxy]:
    """Start a proxy to a port of this machine."""
    proxy = Proxy(to)
    try:
        yield proxy
    finally:
        proxy.close()
