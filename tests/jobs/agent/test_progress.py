"""What is said while a stream is sent, and between the requests of a pull: how far it is, that there is work, or no."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import DeviceError, LvmsyncError, PeerError, TransportError
from lvmsync.history import Point
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.policy import Policy
from lvmsync.jobs.agent.protocol import AT, DONE, READY, REFUSAL, REQUEST, TURN, WAIT, Line, encode, parse
from lvmsync.jobs.agent.server import serve
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.transaction import Transaction
from lvmsync.jobs.window import Window
from lvmsync.sources.source import Source
from lvmsync.targets.block import BlockTarget
from lvmsync.transport.striped import Socket
from tests.agent_line import agent_peer
from tests.fakes import make_source

MIB = 1 << 20
TIMEOUT = 60
RESUMABLE = StreamOptions(resumable=True)
ORDERS = {"resumable": True, "create": True}


@contextmanager
def line() -> Iterator[tuple[Agent, Line]]:
    """Yield an agent whose words are a test's, and the other end of its line."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer("far")
        peer.connect(Socket(ours, "far"))
        yield Agent(peer, "", ""), Line(Socket(theirs, "near"))


@contextmanager
def served(state: Path, beat: float = 1000.0) -> Iterator[Agent]:
    """Yield an agent in a thread, greeted."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with contextlib.suppress(LvmsyncError):  # the other side was told
            serve(Socket(theirs, "the client"), Policy(), state, ignore, beat=beat)
        theirs.close()

    with ThreadPoolExecutor(1) as pool, ours:
        pool.submit(run)
        peer = Peer("far")
        peer.connect(Socket(ours, "far"))
        yield open_agent(peer)
        ours.shutdown(socket.SHUT_WR)


def make(size: int) -> Source:
    return replace(make_source(b"\1" * size, [(0, size)]), base=None, head=Point("lv:b"))


def drop(line: Line) -> None:
    """Read what comes until there is no more."""
    buffer = memoryview(bytearray(MIB))
    with contextlib.suppress(TransportError):
        while line.receive_some(buffer):
            pass


def test_a_refusal_in_mid_stream_is_heard_though_nobody_takes_what_is_sent() -> None:
    with line() as (agent, far):
        far.send_all([encode(READY), encode(WAIT), encode(REFUSAL, {"code": 3, "message": "the pool is full"})])
        with pytest.raises(PeerError, match="far: the pool is full"):
            agent.receive("x", make(MIB), RESUMABLE, ignore, orders=ORDERS)
        assert agent.is_over


def test_a_sender_waits_for_what_it_sent_to_be_applied_and_gives_up_who_never_says_so() -> None:
    with line() as (agent, far), ThreadPoolExecutor(1) as pool:
        pool.submit(drop, far)
        far.say(READY)
        agent.peer.line.transport.stall_timeout = 0.2
        source = make(8 * MIB)
        with pytest.raises(TransportError, match="no byte moved for"):
            agent.receive("x", source, RESUMABLE, ignore, orders=ORDERS)


@pytest.mark.parametrize("said", [b"noise\n", encode(AT, {"bytes": 1}) + b"x" * 100 + b"\n"])
def test_something_else_in_mid_stream_ends_it(said: bytes) -> None:
    with line() as (agent, far), ThreadPoolExecutor(1) as pool:
        pool.submit(drop, far)
        far.send_all([encode(READY), said])
        with pytest.raises(TransportError, match="where lvmsync should have answered"):
            agent.receive("x", make(8 * MIB), RESUMABLE, ignore, orders=ORDERS)
        agent.peer.line.transport.send_eof()


def test_places_that_make_no_sense_are_no_places() -> None:
    with line() as (agent, far), ThreadPoolExecutor(1) as pool:
        pool.submit(drop, far)
        agent.peer.line.transport.stall_timeout = 0.2
        far.send_all([encode(READY)] + [encode(AT, {"bytes": value}) for value in (None, "x", True, -5, [1])])
        with pytest.raises(TransportError, match="no byte moved for"):
            agent.receive("x", make(8 * MIB), RESUMABLE, ignore, orders=ORDERS)


def test_a_receiver_that_writes_says_so_though_it_waits_for_bytes_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is on its way but the end, and the target takes longer than anybody has patience."""
    write, is_written = BlockTarget.write, threading.Event()

    def slow(self: BlockTarget, batch: Any) -> None:
        threading.Event().wait(0.8)
        write(self, batch)
        is_written.set()

    monkeypatch.setattr(BlockTarget, "write", slow)
    monkeypatch.setattr("lvmsync.jobs.agent.requests.SHORTEST_STALL", 0.0)
    monkeypatch.setattr("lvmsync.jobs.agent.voice._TICK", 0.02)

    def confirm() -> None:
        assert is_written.wait(TIMEOUT)

    source = replace(make(4096), confirm=confirm)
    with served(tmp_path / "state") as agent:
        agent.stall = agent.peer.line.transport.stall_timeout = 0.25
        receipt = agent.receive(str(tmp_path / "copy"), source, RESUMABLE, ignore, orders=ORDERS)
    assert receipt.confirmed


def test_a_receiver_that_holds_what_it_has_is_made_to_apply_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "_window_bytes", lambda self: 1 << 40)
    monkeypatch.setattr(Window.wait, "__defaults__", (0.02,))
    with served(tmp_path / "state") as agent:
        receipt = agent.receive(str(tmp_path / "copy"), make(8 * MIB), RESUMABLE, ignore, orders=ORDERS)
    assert receipt.confirmed


def test_what_is_past_a_smaller_target_counts_as_applied(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(bytes(4096))
    orders = {"resumable": True, "allow_smaller": True}
    with served(tmp_path / "state") as agent:
        receipt = agent.receive(str(tmp_path / "copy"), make(8 * MIB), RESUMABLE, ignore, orders=orders)
    assert receipt.dropped == [[4096, 8 * MIB - 4096]]


def test_a_staged_stream_counts_as_applied(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(bytes(8 * MIB))
    with served(tmp_path / "state") as agent:
        orders = {"resumable": True, "atomic": True}
        receipt = agent.receive(str(tmp_path / "copy"), make(8 * MIB), RESUMABLE, ignore, orders=orders)
    assert receipt.confirmed
    assert (tmp_path / "copy").read_bytes() == b"\1" * 8 * MIB


# Pulls


def pull(agent: Agent, folder: Path) -> Receipt:
    return agent.pull("vg/lv", "x", {}, Policy.of_word("x"), folder, ignore)


def test_a_far_side_of_a_pull_that_hangs_between_requests_is_given_up(tmp_path: Path) -> None:
    with line() as (agent, far):
        agent.stall = agent.peer.line.transport.stall_timeout = 0.2
        far.say(TURN)
        with pytest.raises(TransportError, match=r"no byte moved for 0\.2 s"):
            pull(agent, tmp_path)


def test_a_far_side_of_a_pull_that_works_may_take_its_time(tmp_path: Path) -> None:
    with line() as (agent, far), ThreadPoolExecutor(1) as pool:
        agent.stall = agent.peer.line.transport.stall_timeout = 0.3
        far.say(TURN)
        done = pool.submit(pull, agent, tmp_path)
        for _ in range(10):
            threading.Event().wait(0.06)
            far.say(WAIT)
        far.say(DONE, {"kind": "first"})
        assert done.result(TIMEOUT).kind == "first"


def test_who_is_pulled_from_says_that_it_works_unless_it_talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_talking, has_talked, may_end = (threading.Event() for _ in range(3))

    class Push:
        def __init__(self, line: Line, talking: contextlib.AbstractContextManager[Any], *_: Any, **__: Any) -> None:
            self.line, self.talking = line, talking

        def run(self) -> Receipt:
            assert is_talking.wait(TIMEOUT)
            with self.talking:
                threading.Event().wait(0.2)  # ten signs of life, if nobody talked
                self.line.send_all([b"-"])
                has_talked.set()
            assert may_end.wait(TIMEOUT)
            return Receipt("sync")

    monkeypatch.setattr("lvmsync.jobs.agent.pushing.Push", Push)
    with served(tmp_path / "state", beat=0.02) as agent:
        far = agent.peer.line
        far.say(REQUEST, {"verb": "push", "source": "vg/lv", "target": "x", "options": {}})
        assert [far.read_line() for _ in range(3)] == [TURN, WAIT, WAIT]
        is_talking.set()
        assert has_talked.wait(TIMEOUT)
        before = ""
        while "-" not in before:
            before = far.read_line() or ""
        assert before == f"-{WAIT}"
        assert far.read_line() == WAIT
        may_end.set()
        while (text := far.read_line()) == WAIT:
            pass
        assert parse(text or "", DONE) is not None


def test_in_a_pull_it_is_our_user_who_says_how_long_to_wait_in_a_stream(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(bytes(MIB))
    with line() as (agent, far):
        agent.stall = agent.peer.line.transport.stall_timeout = 0.2
        far.say(TURN)
        far.say(REQUEST, {"verb": "receive", "target": str(tmp_path / "copy"), "options": {}, "stall": 120})
        with pytest.raises(TransportError, match=r"no byte moved for 0\.2 s"):
            agent.pull("vg/lv", "x", {}, Policy.of_word(str(tmp_path / "copy")), tmp_path, ignore)


@pytest.mark.parametrize(("asked", "told"), [(4, 4.0), (7.5, 7.5), (None, 3600.0)])
def test_who_is_pulled_from_asks_for_the_patience_of_who_pulls(
    asked: float | None, told: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(connect: Callable[[], Agent], *_: Any, **__: Any) -> Receipt:
        raise DeviceError(f"it is {connect().stall} s")

    monkeypatch.setattr("lvmsync.jobs.agent.pushing.sync_volume", sync)
    monkeypatch.setattr("lvmsync.jobs.agent.pushing.Push._find", lambda _: (None, []))
    with agent_peer(tmp_path / "state", "far") as (_, peer):
        agent = open_agent(peer)
        agent.stall = asked
        with pytest.raises(PeerError, match=rf"it is {told} s"):
            pull(agent, tmp_path)
