"""An agent's session over a socket: requests of every kind, rubbish, signs of life, and a line that is gone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvmsync.errors import LvmsyncError, PeerError, StreamError, TransportError, UsageError, VerifyError
from lvmsync.jobs import create, standing
from lvmsync.jobs.agent import server
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.policy import Policy
from lvmsync.jobs.agent.protocol import (
    ANSWER,
    DONE,
    LONGEST_REQUEST,
    READY,
    RECEIPT,
    REFUSAL,
    REQUEST,
    TURN,
    WAIT,
    Line,
    encode,
    parse,
)
from lvmsync.jobs.agent.server import Session, serve
from lvmsync.jobs.progress import Progress, Receipt, ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.standing import Standing
from lvmsync.names import Comparison, Volume, parse_source
from lvmsync.sources import Reading, open_source
from lvmsync.sources.source import Source
from lvmsync.transport.striped import Socket

MIB = 1 << 20
TIMEOUT = 60


@dataclass
class Call:
    """A session under way: our end of its line, and what it ends with."""

    line: Line
    result: Future[None]

    def end(self) -> None:
        """Hang up, and raise what the session ended with."""
        self.line.transport.send_eof()
        self.result.result(TIMEOUT)

    def answers(self) -> list[str]:
        """Hang up, and return the rest of what was said."""
        self.line.transport.send_eof()
        return list(iter(self.line.read_line, None))


@contextmanager
def called(state: Path, policy: Policy | None = None, beat: float = 1000.0) -> Iterator[Call]:
    """Run a session in a thread, past its greeting."""
    ours, theirs = socket.socketpair()
    far = Socket(theirs, "the client")

    def run() -> None:
        try:
            serve(far, policy or Policy(), state, ignore, beat=beat)
        finally:
            theirs.close()

    with ThreadPoolExecutor(1) as pool, ours:
        near = Socket(ours, "the agent")
        near.stall_timeout = TIMEOUT
        call = Call(Line(near), pool.submit(run))
        try:
            yield call
        finally:
            near.send_eof()


@contextmanager
def greeted(state: Path, policy: Policy | None = None, beat: float = 1000.0) -> Iterator[Agent]:
    with called(state, policy, beat) as call:
        peer = Peer("far")
        peer.connect(call.line)
        yield open_agent(peer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "new").write_bytes(b"new!" * (MIB // 4))
    (tmp_path / "copy").write_bytes(b"old!" * (MIB // 4))
    return tmp_path


@contextmanager
def whole(folder: Path) -> Iterator[Source]:
    with open_source(parse_source(f"full:{folder / 'new'}"), Reading()) as source:
        yield source


def send(agent: Agent, folder: Path, **orders: object) -> None:
    with whole(folder) as source:
        agent.receive(str(folder / "copy"), source, StreamOptions(), ignore, orders=orders)


def test_many_requests_are_served_one_after_the_other(folder: Path) -> None:
    with greeted(folder / "state") as agent:
        target = str(folder / "copy")
        assert agent.standing(target).point is None
        for _ in range(2):
            send(agent, folder)
        with agent.compare(target, Comparison(Volume(str(folder / "new"))), Reading(), ignore) as source:
            assert not len(source.changes)
        assert agent.standing(target).point
        agent.create(str(folder / "made"), 3 * MIB)
        assert (folder / "made").stat().st_size == 3 * MIB
        assert agent.recover(target).notes == ["nothing to recover: no transaction is open"]
        assert not agent.is_over
    assert (folder / "copy").read_bytes() == (folder / "new").read_bytes()


def test_a_refusal_has_the_code_of_its_error_and_the_session_goes_on(folder: Path) -> None:
    with greeted(folder / "state") as agent:
        for path, code in (("relative", 2), (str(folder / "copy"), 3)):
            with pytest.raises(PeerError) as caught:
                agent.create(path, 5)
            assert caught.value.exit_code == code
        with pytest.raises(PeerError, match="group"):
            agent.commit_group("../../etc", [str(folder / "copy")])
        with pytest.raises(PeerError) as caught:
            agent.commit_group("0123456789abcdef", [str(folder / "copy")])
        assert caught.value.exit_code == 8
        agent.abort_group("0123456789abcdef", [str(folder / "copy")])
        assert agent.standing(str(folder / "none")).exists is False


def test_a_stream_that_is_refused_ends_the_session(folder: Path) -> None:
    (folder / "copy").write_bytes(b"small")
    with greeted(folder / "state") as agent:
        with pytest.raises(PeerError, match="too small") as caught:
            send(agent, folder)
        assert caught.value.exit_code == 3
        assert agent.is_over
        with pytest.raises(TransportError, match="its session is over"):
            agent.standing("x")


def test_a_dry_run_asks_and_sends_nothing(folder: Path) -> None:
    with greeted(folder / "state") as agent:
        send(agent, folder, dry_run=True)
        assert agent.is_over
    assert (folder / "copy").read_bytes().startswith(b"old!")


def test_a_source_that_fails_says_what_became_of_the_target(folder: Path) -> None:
    def fail() -> None:
        raise VerifyError("the source is not what it was")

    with greeted(folder / "state") as agent, whole(folder) as source:
        changed = Source(**{**vars(source), "confirm": fail})
        with pytest.raises(VerifyError, match="not what it was") as caught:
            agent.receive(str(folder / "copy"), changed, StreamOptions(), ignore)
        assert "rolled back" in " ".join(caught.value.__notes__)
        assert agent.is_over
    assert (folder / "copy").read_bytes().startswith(b"old!")


def test_a_receipt_of_something_else_is_no_success(folder: Path) -> None:
    said = encode(READY) + encode(RECEIPT, {"bytes": MIB, "extents": 1, "digest": "0" * 32})
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    with ours, theirs, whole(folder) as source:
        theirs.sendall(said)
        peer = Peer("far")
        peer.connect(Socket(ours, "the agent"))
        with pytest.raises(VerifyError, match=r"confirms digest 00000.*do not use the target"):
            Agent(peer, "", "").receive("x", source, StreamOptions(), ignore)


def test_a_receipt_of_what_is_not_durable_is_no_success() -> None:
    agent = Agent(Peer("far"), "", "")
    receipt = Receipt(job="send", bytes=5, extents=1, digest="0" * 32)
    told = {"bytes": 5, "extents": 1, "digest": "0" * 32}
    assert agent._confirm(receipt, {**told, "durable": True}).confirmed
    for wrong in ({}, {"durable": False}, {"durable": None}):
        with pytest.raises(VerifyError, match="far does not say that what was sent is durable there"):
            agent._confirm(receipt, {**told, **wrong})


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"verb": "format"}, "no such request: 'format'"),
        ({"verb": "__init__"}, "no such request"),
        ({"verb": "standing"}, "lacks 'target'"),
        ({"verb": "standing", "target": 5}, "what 'target' says makes no sense"),
        ({"verb": "standing", "target": ""}, "makes no sense"),
        ({"verb": "standing", "target": "x\0"}, "makes no sense"),
        ({"verb": "standing", "target": "x" * 5000}, "makes no sense"),
        ({"verb": "standing", "target": "/x", "state": "/tmp"}, "has no 'state'"),
        ({"verb": "recover", "target": "/x", "back": 1}, "makes no sense"),
        ({"verb": "create", "target": "/x", "size": -1}, "makes no sense"),
        ({"verb": "create", "target": "/x", "size": True}, "makes no sense"),
        ({"verb": "create", "target": "/x", "size": 1 << 63}, "makes no sense"),
        ({"verb": "create", "target": "/x", "size": 1.5}, "makes no sense"),
        ({"verb": "commit_group", "group": "0123456789abcdef", "targets": "x"}, "makes no sense"),
        ({"verb": "commit_group", "group": "0123456789abcdef", "targets": ["x"] * 1000}, "makes no sense"),
        ({"verb": "snapshot", "target": "/x", "replica": "$(touch x)"}, "makes no sense"),
    ],
)
def test_requests_that_make_no_sense_are_refused_in_one_line(
    folder: Path, request_: dict[str, object], words: str
) -> None:
    with called(folder / "state") as call:
        call.line.read_line()
        call.line.say(REQUEST, request_)
        call.line.say(REQUEST, {"verb": "standing", "target": str(folder / "copy")})
        refusal, answer = call.answers()
        found = parse(refusal, REFUSAL)
        assert found
        assert (found["code"], found["over"]) == (2, False)
        assert words in found["message"]
        assert parse(answer, ANSWER)
        call.end()


@pytest.mark.parametrize(
    "options",
    [
        {"undo": True}, {"state": "/tmp/x"}, {"target": "/tmp/x"}, {"group": "../x"}, {"resumable": "yes"},
        {"snapback": 5}, {"pool_limit": "95"}, {"pool_limit": True}, {"no_undo": []}, {"": True},
    ],
)  # fmt: skip
def test_options_of_a_receive_that_make_no_sense_are_refused(folder: Path, options: dict[str, object]) -> None:
    with called(folder / "state") as call:
        call.line.read_line()
        call.line.say(REQUEST, {"verb": "receive", "target": str(folder / "copy"), "options": options})
        (refusal,) = call.answers()
        found = parse(refusal, REFUSAL)
        assert found
        assert (found["code"], found["over"]) == (2, True)
        with pytest.raises(UsageError):
            call.end()
    assert (folder / "copy").read_bytes().startswith(b"old!")


RUBBISH = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=100).map(lambda data: b"lvmsync REQUEST " + data),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["verb", "target", "options", "size"]), inner),
    ).map(lambda value: f"lvmsync REQUEST {json.dumps(value)}\n".encode()),
    st.fixed_dictionaries(
        {"verb": st.sampled_from([*server._VERBS, "x"])},
        optional={
            key: st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.just({}), st.just(["vg1/lv"]))
            for key in ("target", "targets", "size", "seed", "options", "group", "source", "count", "id", "stall")
        },
    ).map(lambda value: f"lvmsync REQUEST {json.dumps(value)}\n".encode()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RUBBISH, max_size=4))
def test_rubbish_is_answered_or_ends_the_session_and_nothing_else(tmp_path: Path, said: list[bytes]) -> None:
    policy = Policy(targets=("vg9/none",), sources=(), may_create=False, may_snapshot=False, files=frozenset())
    with called(tmp_path / "state", policy) as call, pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvmsync.jobs.agent.streams._JOIN_SECONDS", 0.01)
        call.line.send_all([b"".join(said) or b"\n"])
        for text in call.answers():
            assert text.startswith(("lvmsync AGENT", REFUSAL, ANSWER)), text
        error = call.result.exception(TIMEOUT)
        assert error is None or isinstance(error, LvmsyncError), error
    assert not (tmp_path / "state" / "targets").exists()


def test_a_request_without_end_is_not_read_on(folder: Path) -> None:
    with called(folder / "state") as call:
        call.line.send_all([b"lvmsync REQUEST {" + b" " * (2 * LONGEST_REQUEST)])
        with pytest.raises(StreamError, match="no request"):
            call.end()


def slow(monkeypatch: pytest.MonkeyPatch, until: threading.Event) -> None:
    """Let `recover` take until an event."""

    def recover(*_: object, **__: object) -> None:
        assert until.wait(TIMEOUT)
        raise UsageError("done waiting")

    monkeypatch.setattr("lvmsync.jobs.recover.recover", recover)


def test_an_agent_that_works_gives_signs_of_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    slow(monkeypatch, released)
    with called(folder / "state", beat=0.02) as call:
        call.line.read_line()
        call.line.say(REQUEST, {"verb": "recover", "target": str(folder / "copy")})
        assert [call.line.read_line() for _ in range(3)] == [WAIT] * 3
        released.set()
        while (text := call.line.read_line()) == WAIT:
            pass
        assert text
        assert "done waiting" in text
        call.end()


def test_an_agent_gives_signs_of_life_between_two_requests_so_that_a_line_that_is_gone_breaks(folder: Path) -> None:
    with called(folder / "state", beat=0.02) as call:
        call.line.read_line()
        for _ in range(2):
            assert [call.line.read_line() for _ in range(3)] == [WAIT] * 3
            call.line.say(REQUEST, {"verb": "standing", "target": str(folder / "copy")})
            while (text := call.line.read_line()) == WAIT:
                pass
            assert parse(text or "", ANSWER)
        call.end()


def test_of_a_target_lvm_is_asked_until_it_is_known_to_merge_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges, asked = ["a merge", None, None], []

    def played(path: str, state: Path, *, is_first: bool) -> Standing:
        asked.append(is_first)
        return Standing(path, "", "", exists=True, in_use=merges.pop(0))

    monkeypatch.setattr(standing, "standing", played)
    with called(folder / "state") as call:
        call.line.read_line()
        for merge in ("a merge", None, None):
            call.line.say(REQUEST, {"verb": "standing", "target": str(folder / "copy")})
            while (text := call.line.read_line()) == WAIT:
                pass
            assert (parse(text or "", ANSWER) or {})["in_use"] == merge
        call.end()
    assert asked == [True, True, False]


def test_a_turn_is_not_disturbed_by_signs_of_life_at_rest(folder: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        theirs.settimeout(0.3)
        session = Session(Line(Socket(ours, "the agent")), Policy(), folder / "state", ignore, beat=0.02, patience=60)
        done = pool.submit(session.run, DONE)
        with pytest.raises(TimeoutError):  # it would be taken for a request by the agent, after the turn
            theirs.recv(100)
        theirs.sendall(encode(DONE, {}))
        assert done.result(TIMEOUT) == (DONE, {})


def test_an_agent_whose_line_is_gone_ends_its_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    slow(monkeypatch, released)
    ours, theirs = socket.socketpair()
    with theirs, ThreadPoolExecutor(1) as pool:
        line = Socket(theirs, "the client")
        done = pool.submit(serve, line, Policy(), folder / "state", ignore, beat=0.02, on_lost=released.set)
        ours.sendall(encode(REQUEST, {"verb": "recover", "target": str(folder / "copy")}))
        ours.recv(100)
        ours.close()
        with pytest.raises(TransportError):
            done.result(TIMEOUT)
    assert released.is_set()


def test_a_turn_is_served_until_the_other_side_is_done(folder: Path) -> None:
    """The agent's half of a pull is played by hand: it asks, and then says that it is done."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        far = Line(Socket(theirs, "the puller"))
        peer = Peer("far")
        peer.connect(Socket(ours, "the agent"))
        agent = Agent(peer, "", "")
        told: list[Progress] = []
        policy = Policy.of_word(str(folder / "copy"))
        state = folder / "state"
        pulled = pool.submit(
            agent.pull, "vg/lv", str(folder / "copy"), {"full": True, "store": None}, policy, state, told.append
        )
        request = parse(far.read_line() or "", REQUEST)
        assert request
        assert (request["verb"], request["source"], request["options"]) == ("push", "vg/lv", {"full": True})
        far.say(TURN)
        pusher = Peer("near")
        pusher.connect(far)
        asking = Agent(pusher, "", "")
        with pytest.raises(PeerError, match="no target that this server allows"):
            asking.standing(str(folder / "new"))
        with whole(folder) as source:
            receipt = asking.receive(str(folder / "copy"), source, StreamOptions(), ignore)
        far.say(DONE, {**vars(receipt), "kind": "first", "notes": ["a\nb"]})
        done = pulled.result(TIMEOUT)
        assert (done.bytes, done.kind, done.notes) == (MIB, "first", ["a b"])
        assert told
        assert not agent.is_over
    assert (folder / "copy").read_bytes() == (folder / "new").read_bytes()


@pytest.mark.parametrize(
    ("last", "kind", "words"),
    [
        (encode(REFUSAL, {"code": 5, "message": "changes lost"}), PeerError, "far: changes lost"),
        (b"", TransportError, "ended before it was done"),
        (b"noise\n", StreamError, "no request"),
        (encode(DONE, {"bytes": "many"}), TransportError, "receipt is not readable: bytes"),
    ],
)
def test_a_turn_that_ends_badly_is_told(folder: Path, last: bytes, kind: type[LvmsyncError], words: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(encode(TURN) + last)
        theirs.shutdown(socket.SHUT_WR)
        peer = Peer("far")
        peer.connect(Socket(ours, "the agent"))
        with pytest.raises(kind, match=words):
            Agent(peer, "", "").pull("vg/lv", "x", {}, Policy.of_word("x"), folder / "state", ignore)


def test_an_agent_of_another_protocol_is_told_to_be_updated() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'lvmsync AGENT {"protocol": 1, "version": "7.0", "host": "x"}\n')
        peer = Peer("far")
        peer.connect(Socket(ours, "the agent"))
        with pytest.raises(TransportError, match=r"lvmsync 7\.0 there speaks protocol 1, and this one speaks 2"):
            open_agent(peer)


def test_a_pool_is_one_that_the_policy_names_and_no_target(folder: Path) -> None:
    policy = replace(Policy.of_word("vg/new", may_create=True), pools=frozenset(["vg/pool"]))
    with greeted(folder / "state", policy) as agent, pytest.raises(PeerError, match="makes no volumes in 'vg/other'"):
        agent.create("vg/new", MIB, pool="vg/other")
    with greeted(folder / "state", policy) as agent, pytest.raises(PeerError, match="no target that this server"):
        agent.create("vg/pool", MIB)


def test_a_volume_is_made_as_one_by_its_path_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, str | None]] = []
    monkeypatch.setattr(create, "create_volume", lambda name, size, pool, _: made.append((name, size, pool)))
    with greeted(folder / "state") as agent:
        agent.create("/dev/vg/new", MIB, pool="pool")
        agent.create("/dev/mapper/my--vg-new", MIB)
    assert made == [("vg/new", MIB, "vg/pool"), ("my-vg/new", MIB, None)]
