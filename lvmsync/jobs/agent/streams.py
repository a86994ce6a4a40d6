"""``--streams``: one conversation over several lines to the same agent.

    line 1    client  REQUEST {"verb": "stripe", "count": 4}
              agent   ANSWER {"id": ..., "secret": ...}
    2 to 4    each starts an agent as line 1 does, and is greeted
              client  REQUEST {"verb": "join", "id": ..., "secret": ...}
              agent   ANSWER {}      from here on its bytes are the first agent's
    line 1    agent   ANSWER {"lines": 4}
    1 to 4    pieces; see `lvmsync.transport.striped`

The first agent listens on a socket in the state folder, where only its user can reach it; an agent that is to
join goes there, and nowhere else. The secret never is on a command line. Who joins has the rights of the first
line, and needs its secret for that.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lvmsync.errors import ConflictError, DeviceError, PeerError, TransportError, UsageError
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.protocol import ANSWER, Line
from lvmsync.system.ledger import make_folders
from lvmsync.transport.striped import MOST_LINES, Socket, Striped

_FOLDER = "streams"
_ID = re.compile("[0-9a-f]{32}")
_AT_ONCE = 5  # logins at the same time: an sshd drops some of ten (MaxStartups)
_JOIN_SECONDS = 60.0  # for one more line to come
_SECRET_SECONDS = 10.0  # for the secret of one that is there
_STALE_SECONDS = 60.0  # age of a socket that nobody listens on
_END_SECONDS = 10.0  # for the last words
_CHUNK = 256 << 10
_WELCOME = b"+"


def widen(agent: Agent, first: Transport, open_line: Callable[[], tuple[Peer, Transport]], count: int) -> Striped:
    """Open more lines to an agent, and return all as one; the agent goes on over that, and nothing else.

    Args:
        agent: whose session has just begun.
        first: its line.
        open_line: starts another agent in the same way; returns it, not yet greeted, and its line. Called from
            several threads at once.
        count: lines in all, 2 to 16.

    Raises:
        PeerError, TransportError: one of the lines could not be opened or joined.
    """
    ticket = agent.ask("stripe", count=count)

    def add(number: int) -> Transport:
        try:
            peer, line = open_line()
            open_agent(peer).ask("join", id=ticket.get("id"), secret=ticket.get("secret"))
        except (PeerError, TransportError) as error:
            error.add_note(f"this was stream {number} of {count}; fewer may work (--streams)")
            raise
        return line

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        lines = [first, *pool.map(add, range(2, count + 1))]
    agent.peer.expect(ANSWER)
    return Striped(lines)


def accept(line: Line, say: Callable[[str, dict[str, Any]], None], count: int, state: Path) -> Striped:
    """Tell the client how to join, wait for the lines that it opens, and return all as one.

    Args:
        line: the first one.
        say: says a line of text on it.
        count: lines in all.
        state: the state folder.

    Raises:
        UsageError: there are several already, or so many cannot be.
        TransportError: a line that was to come did not.
    """
    if isinstance(line.transport, Striped) or not 2 <= count <= MOST_LINES:
        raise UsageError(f"{count} streams are out of range: 2 to {MOST_LINES}, and once in a session")
    name, secret = secrets.token_hex(16), secrets.token_hex(16)
    joined: list[Transport] = []
    with _listening(state, name) as listener:
        say(ANSWER, {"id": name, "secret": secret})
        deadline = time.monotonic() + _JOIN_SECONDS
        while len(joined) < count - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except OSError as error:
                raise TransportError(
                    f"stream {len(joined) + 2} of {count} did not come within {_JOIN_SECONDS:g} s"
                ) from error
            if _is_welcome(connection, secret):
                joined.append(Socket(connection, "a stream"))
                deadline = time.monotonic() + _JOIN_SECONDS
            else:
                connection.close()
    return Striped([line.transport, *joined])


def join(line: Line, say: Callable[[str, dict[str, Any]], None], name: str, secret: str, state: Path) -> None:
    """Carry the bytes of a line to the agent that waits for it, and those of the agent back, until both end.

    Args:
        line: to the client.
        say: says a line of text on it, and is silent from then on.
        name: what the agent is found by.
        secret: what it wants to hear.
        state: the state folder.

    Raises:
        ConflictError: nobody waits for this line.
        TransportError: the agent is gone.
    """
    if not _ID.fullmatch(name) or not _ID.fullmatch(secret):
        raise UsageError("request 'join': what it says makes no sense")
    connection = _connect(state, name, secret)
    say(ANSWER, {})
    line.transport.stall_timeout = None  # the agent looks after all lines together
    agent = Socket(connection, "the first stream")
    back = threading.Thread(target=_carry, args=[agent.receive_some, line.transport], daemon=True)
    back.start()
    _carry(line.receive_some, agent)
    back.join()


def finish(line: Line) -> None:
    """Let what was said last get out, where several lines are used: the process may end behind it."""
    if isinstance(line.transport, Striped):
        line.transport.stall_timeout = _END_SECONDS
        line.transport.finish()


def _carry(receive_some: Callable[[memoryview], int], to: Transport) -> None:
    """Pass bytes on until their end, and that as well."""
    buffer = memoryview(bytearray(_CHUNK))
    with suppress(TransportError, DeviceError):  # the other direction ends as well, and the client sees a line lost
        while count := receive_some(buffer):
            to.send_all([buffer[:count]])
    with suppress(TransportError, DeviceError):
        to.send_eof()


@contextmanager
def _open_folder(state: Path) -> Iterator[int]:
    """Yield a descriptor of the folder of sockets, which only we can enter; paths of sockets are short through it."""
    folder = state / _FOLDER
    make_folders(folder)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
            raise DeviceError(f"{folder} must be its user's alone, as with: chmod 700 {folder}")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _listening(state: Path, name: str) -> Iterator[socket.socket]:
    with _open_folder(state) as fd, socket.socket(socket.AF_UNIX) as listener:
        _sweep(fd)
        listener.bind(f"/proc/self/fd/{fd}/{name}.new")
        try:
            listener.listen(MOST_LINES)
            os.rename(f"{name}.new", name, src_dir_fd=fd, dst_dir_fd=fd)
            yield listener
        finally:
            for left in name, f"{name}.new":
                with suppress(FileNotFoundError):
                    os.unlink(left, dir_fd=fd)


def _sweep(fd: int) -> None:
    """Remove the sockets of agents that were killed."""
    for name in os.listdir(fd):
        if not _ID.fullmatch(name.removesuffix(".new")):
            continue
        with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
            if time.time() - os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime > _STALE_SECONDS:
                try:
                    probe.connect(f"/proc/self/fd/{fd}/{name}")
                except ConnectionRefusedError:
                    os.unlink(name, dir_fd=fd)


def _is_welcome(connection: socket.socket, secret: str) -> bool:
    """Tell whether who has connected is of our user and knows the secret, and tell it so."""
    try:
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        connection.settimeout(_SECRET_SECONDS)
        said = b""
        while len(said) < len(secret) and (more := connection.recv(len(secret) - len(said))):
            said += more
        if user != os.geteuid() or not hmac.compare_digest(said, secret.encode()):
            return False
        connection.sendall(_WELCOME)
    except OSError:
        return False
    return True


def _connect(state: Path, name: str, secret: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _open_folder(state) as fd:
            connection.connect(f"/proc/self/fd/{fd}/{name}")
        connection.settimeout(_JOIN_SECONDS)
        connection.sendall(secret.encode())
        if connection.recv(1) != _WELCOME:
            raise ConflictError("the first stream does not want this one")
    except OSError as error:
        connection.close()
        raise ConflictError(f"no stream waits for this one: {error.strerror or error}") from error
    except ConflictError:
        connection.close()
        raise
    return connection
