"""An agent in a thread, at the other end of a pair of sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lvmsync.errors import LvmsyncError, TransportError
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.policy import Policy
from lvmsync.jobs.agent.server import serve
from lvmsync.jobs.progress import ignore


class Socket:
    """One end of the pair, as a `Transport` that counts what comes in."""

    stall_timeout: float | None = None

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.received = 0

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        try:
            self.end.sendall(b"".join(buffers))
        except OSError as error:
            raise TransportError(f"the line broke: {error.strerror}") from error

    def receive_some(self, buffer: memoryview) -> int:
        try:
            count = self.end.recv_into(buffer)
        except OSError as error:
            raise TransportError(f"the line broke: {error.strerror}") from error
        self.received += count
        return count

    def send_eof(self) -> None:
        self.end.shutdown(socket.SHUT_WR)

    def aclose(self) -> int:
        self.end.close()
        return 0


@contextmanager
def agent_peer(state: Path, place: str) -> Iterator[tuple[Socket, Peer]]:
    """Yield our end of the line, and the agent as a peer that has not been heard yet."""
    ours, theirs = (Socket(end) for end in socket.socketpair())

    def run() -> None:
        try:
            with suppress(LvmsyncError):  # the other side was told
                serve(theirs, Policy(), state, ignore)
        finally:
            theirs.aclose()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    peer = Peer(place)
    peer.connect(ours)
    try:
        yield ours, peer
    finally:
        with suppress(OSError):
            ours.send_eof()
        thread.join(30)
        assert not thread.is_alive()
        ours.aclose()
