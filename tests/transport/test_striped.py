"""Several lines as one: order, ends, losses, and lines of different speeds."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lvmsync.errors import TransportError
from lvmsync.transport.striped import PIECE, WINDOW, Socket, Striped

MIB = 1 << 20


class Ends:
    """Two striped transports that lead to each other over pairs of sockets."""

    def __init__(self, count: int, stall_timeout: float | None = 20) -> None:
        self.pairs = [socket.socketpair() for _ in range(count)]
        here, there = zip(*[(Socket(one, "a"), Socket(other, "b")) for one, other in self.pairs], strict=True)
        here[0].stall_timeout = there[0].stall_timeout = stall_timeout
        self.here, self.there = Striped(here), Striped(there)


def receive_all(line: Striped) -> bytes:
    buffer = memoryview(bytearray(MIB))
    received = bytearray()
    while count := line.receive_some(buffer[: random.randrange(1, MIB)]):
        received += buffer[:count]
    return bytes(received)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_bytes_arrive_in_order_both_ways_at_once(count: int) -> None:
    ends = Ends(count)
    data = random.Random(1).randbytes(20 * MIB + 17)

    def send(line: Striped) -> None:
        sizes = random.Random(2)
        at = 0
        while at < len(data):
            step = sizes.choice([1, 100, PIECE, PIECE + 1, 3 * MIB])
            line.send_all([data[at : at + step // 2], memoryview(data)[at + step // 2 : at + step]])
            at += step
        line.send_eof()

    senders = [in_thread(lambda line=line: send(line)) for line in (ends.here, ends.there)]  # type: ignore[misc]
    received: list[bytes] = []
    other = in_thread(lambda: received.append(receive_all(ends.there)))
    received.append(receive_all(ends.here))
    for thread in [*senders, other]:
        thread.join(20)
    assert [hashlib.sha256(each).digest() for each in received] == [hashlib.sha256(data).digest()] * 2
    closing = in_thread(ends.there.aclose)
    assert ends.here.aclose() == 0
    closing.join(20)


def test_the_buffers_are_the_callers_again() -> None:
    ends = Ends(3)
    buffer = bytearray(b"first")
    ends.here.send_all([buffer])
    buffer[:] = b"other"
    got = memoryview(bytearray(9))
    assert bytes(got[: ends.there.receive_some(got)]) == b"first"


def test_an_end_without_bytes_is_an_end() -> None:
    ends = Ends(4)
    ends.here.send_all([])
    ends.here.send_eof()
    assert receive_all(ends.there) == b""
    assert ends.there.receive_some(memoryview(bytearray(1))) == 0
    with pytest.raises(ValueError, match="after"):
        ends.here.send_all([b"x"])


@pytest.mark.parametrize("lost", [0, 2])
def test_a_line_that_is_lost_is_no_end(lost: int) -> None:
    ends = Ends(3)
    ends.here.send_all([b"hello"])
    buffer = memoryview(bytearray(100))
    assert ends.there.receive_some(buffer) == 5
    ends.pairs[lost][0].shutdown(socket.SHUT_RDWR)
    with pytest.raises(TransportError, match="one of 3 streams was lost"):
        ends.there.receive_some(buffer)
    with pytest.raises(TransportError):
        ends.there.send_all([bytes(100 * MIB)])
    with pytest.raises(TransportError):
        ends.there.aclose()


def test_what_came_before_a_loss_is_received() -> None:
    ends = Ends(2)
    ends.here.send_all([b"the reason"])
    ends.here.finish()
    for one, _ in ends.pairs:
        one.shutdown(socket.SHUT_RDWR)
    assert receive_all(ends.there) == b"the reason"


def test_a_line_that_stands_still_stalls_all_and_its_window_is_bounded() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    there = [Socket(other, "b") for _, other in pairs]
    there[0].stall_timeout = 0.5
    line = Striped(there)
    # Only the second line brings anything: piece 0 never comes
    head = struct.Struct("<QI")
    moved = 0
    pairs[1][0].settimeout(0.2)
    with suppress(TimeoutError):
        for number in range(1, 10 * WINDOW):
            pairs[1][0].sendall(head.pack(number, PIECE) + bytes(PIECE))
            moved += PIECE
    assert (WINDOW - 1) * PIECE <= moved <= (WINDOW + 4) * PIECE
    with pytest.raises(TransportError, match=r"2 streams: no byte moved for 0\.5 s"):
        line.receive_some(memoryview(bytearray(1)))


def test_one_line_may_rest_while_others_work() -> None:
    ends = Ends(3, stall_timeout=0.5)
    buffer = memoryview(bytearray(100))
    done = threading.Event()

    def trickle() -> None:
        while not done.wait(0.1):
            ends.here.send_all([b"."])

    thread = in_thread(trickle)
    for _ in range(12):  # longer than the patience
        assert ends.there.receive_some(buffer)
    done.set()
    thread.join()


@pytest.mark.parametrize(
    "rubbish",
    [
        struct.pack("<QI", 0, PIECE + 1),
        struct.pack("<QI", 0, 1) + b"x" + struct.pack("<QI", 0, 1) + b"y",
        bytes(range(1, 8)),  # fewer than a head has
    ],
)
def test_what_is_no_piece_is_refused(rubbish: bytes) -> None:
    one, other = socket.socketpair()
    line = Striped([Socket(other, "b")])
    one.sendall(rubbish)
    one.shutdown(socket.SHUT_WR)
    buffer = memoryview(bytearray(100))
    with pytest.raises(TransportError):  # noqa: PT012  # a whole piece may come first
        while line.receive_some(buffer):
            pass
        pytest.fail("taken for an end")


def test_nothing_is_written_into_a_file_that_gets_the_number_of_a_socket_that_was_closed(tmp_path: Path) -> None:
    for _ in range(20):
        ours, theirs = socket.socketpair()
        line = Socket(ours, "far")
        failures: list[TransportError] = []

        def send(line: Socket = line, failures: list[TransportError] = failures) -> None:
            try:
                line.send_all([b"Z" * (8 << 20)])
            except TransportError as error:
                failures.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        while not theirs.recv(1, socket.MSG_PEEK):
            pass
        line.aclose()
        with (tmp_path / "file").open("wb") as file:
            sender.join(30)
            assert not sender.is_alive()
            assert os.fstat(file.fileno()).st_size == 0
        assert len(failures) == 1
        theirs.close()
