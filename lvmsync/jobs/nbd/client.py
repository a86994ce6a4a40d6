"""One client of a server of NBD: its line, and the few threads that work on it.

Whichever thread is free reads the next request, and carries it out while another one reads on. So nothing is handed
from one thread to another, several requests are under way at once, and a client that does not take its replies stops
only itself.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress

from lvmsync.errors import LvmsyncError
from lvmsync.jobs.nbd.overlay import NoRoom
from lvmsync.jobs.nbd.volume import Volume
from lvmsync.nbd import replies, wire
from lvmsync.nbd.allocation import MOST
from lvmsync.nbd.connection import Chosen, Close, Command, Connection, Send
from lvmsync.nbd.replies import Buffer
from lvmsync.nbd.requests import Export, Request

THREADS = 4
"""Requests of one client that are under way at once."""

_MOST_BYTES = 64 << 20  # that are read and not sent yet, of one client
_IOV_MAX = 1024  # buffers of one system call (Linux)

Open = Callable[[Export], AbstractContextManager[Volume]]
"""Opens what an export is of; raises an LvmsyncError if that cannot be."""

Note = Callable[[LvmsyncError], None]
"""Takes what went wrong without ending the server; called by any thread."""


class Client:
    """A line to a client."""

    def __init__(self, line: socket.socket, exports: Mapping[str, Export], open_volume: Open, note: Note) -> None:
        self._line = line
        self._connection = Connection(exports)
        self._open = open_volume
        self._note = note
        self._reading = threading.Lock()  # held by the thread that reads the next request
        self._sending = threading.Lock()
        self._room = threading.Condition()
        self._under_way = 0  # bytes of requests
        self._free = 0  # threads that wait for the next request
        self._threads: list[threading.Thread] = []
        self._is_over = False

    def end(self) -> None:
        """Cut the line: whatever waits for it goes on, and ends."""
        self._is_over = True
        with self._room:
            self._room.notify_all()
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Serve the client until it is done, or gone."""
        with self._line, ExitStack() as opened:
            try:
                self._send([self._connection.greeting])
                volume = self._haggle(opened)
                if volume:
                    self._work(volume)
            except OSError:
                pass  # the client is gone
            finally:
                if self._connection.export is None:
                    self.end()
                for thread in self._threads:
                    thread.join()
                self.end()

    def _haggle(self, opened: ExitStack) -> Volume | None:
        """Go on until an export is chosen, and return what that is of; None: the client is done."""
        connection = self._connection
        while len(buffer := connection.get_buffer()):
            count = self._line.recv_into(buffer)
            if not count:
                return None
            events = connection.received(count)
            while events:
                event = events.pop(0)
                if isinstance(event, Send):
                    self._send(event.buffers)
                elif isinstance(event, Chosen):
                    try:
                        volume = opened.enter_context(self._open(event.export))
                    except LvmsyncError as error:
                        self._note(error)
                        events += connection.refuse(str(error))
                    else:
                        for agreed in connection.accept():
                            assert isinstance(agreed, Send)
                            self._send(agreed.buffers)
                        return volume
        return None

    def _work(self, volume: Volume) -> None:
        """Read requests, and carry them out, in turns with the other threads of this client."""
        try:
            while (request := self._next(volume)) is not None:
                self._send(self._carry_out(volume, request))
                with self._room:
                    self._under_way -= request.length
                    self._room.notify()
        except OSError:
            self.end()
        except BaseException:
            self.end()
            raise

    def _next(self, volume: Volume) -> Request | None:
        """Return the next request; None: there is none any more."""
        with self._room:
            self._free += 1
        with self._reading:
            with self._room:
                self._free -= 1
            request = None if self._is_over else self._receive()
            if request is None:
                self._is_over = True
                return None
            with self._room:
                while self._under_way and self._under_way + request.length > _MOST_BYTES and not self._is_over:
                    self._room.wait()
                self._under_way += request.length
            if not self._free and len(self._threads) < THREADS - 1:
                thread = threading.Thread(target=self._work, args=(volume,), daemon=True)
                self._threads.append(thread)
                thread.start()
        return request

    def _receive(self) -> Request | None:
        connection = self._connection
        while len(buffer := connection.get_buffer()):
            count = self._line.recv_into(buffer)
            if not count:
                return None
            for event in connection.received(count):
                if isinstance(event, Command):
                    return event.request
                if isinstance(event, Close):
                    return None
                assert isinstance(event, Send)
                self._send(event.buffers)
        return None

    def _carry_out(self, volume: Volume, request: Request) -> list[Buffer]:
        terms = self._connection.terms
        try:
            return self._answer(volume, request)
        except NoRoom as error:
            self._note(error)
            return replies.failed(request, terms, wire.ENOSPC, str(error))
        except LvmsyncError as error:
            self._note(error)
            return replies.failed(request, terms, wire.EIO, str(error))
        except MemoryError:
            return replies.failed(request, terms, wire.ENOMEM, "the server is out of memory")

    def _answer(self, volume: Volume, request: Request) -> list[Buffer]:
        terms = self._connection.terms
        offset, length = request.offset, request.length
        match request.command:
            case wire.CMD_READ:
                may_have_holes = replies.may_have_holes(request, terms)
                parts = volume.read(offset, length, may_have_holes=may_have_holes) if length else []
                return replies.data(request, terms, parts)
            case wire.CMD_BLOCK_STATUS:
                most = 1 if request.flags & wire.CMD_FLAG_REQ_ONE else MOST
                return replies.block_status(request, volume.status(offset, length, most))
            case wire.CMD_WRITE if length:
                volume.write(offset, request.payload)
            case wire.CMD_TRIM | wire.CMD_WRITE_ZEROES if length:
                volume.zero(offset, length)
        # Nothing is to be done for the others: what was written lasts as long as the server does, and no longer.
        return replies.done(request)

    def _send(self, buffers: Sequence[Buffer]) -> None:
        with self._sending:
            for at in range(0, len(buffers), _IOV_MAX):
                some = list(buffers[at : at + _IOV_MAX])
                sent = self._line.sendmsg(some)
                for buffer in some:
                    if sent < len(buffer):
                        self._line.sendall(memoryview(buffer)[sent:])
                    sent = max(0, sent - len(buffer))
