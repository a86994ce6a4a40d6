"""The side that serves: one request after the other, until its line ends.

What a request may name and ask for is the `Policy`'s to say. Nothing here runs a command of the other side.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lvmsync import __version__
from lvmsync.errors import ConflictError, LvmsyncError, StreamError, TransportError, UsageError
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.policy import Place, Policy
from lvmsync.jobs.agent.protocol import (
    AGENT,
    ANSWER,
    BEAT,
    DONE,
    LONGEST_REQUEST,
    PROTOCOL,
    READY,
    RECEIPT,
    REFUSAL,
    REQUEST,
    TURN,
    WAIT,
    Line,
    is_group,
    parse,
    refusal_of,
    show,
)
from lvmsync.jobs.agent.streams import accept, finish, join
from lvmsync.jobs.progress import Report
from lvmsync.names import parse_volume
from lvmsync.stream.frames import Buffer
from lvmsync.transport import SHORTEST_STALL, STALL_TIMEOUT

Request = Mapping[str, Any]

_MOST_TARGETS = 256  # of a group
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_LONGEST_PREFIX = 80  # letters of a volume's name in that of its snapshot; LVM allows 127 in all
_LONGEST_STALL = 3600.0  # seconds; a line that is gone must not hold a target for ever
_TICK = 0.5  # seconds between two looks whether a sign of life is due


def serve(
    line: Transport | Line,
    policy: Policy,
    state: Path,
    report: Report,
    *,
    beat: float = BEAT,
    on_lost: Callable[[], None] = lambda: None,
) -> None:
    """Greet, and serve requests until the line ends.

    Args:
        line: to the side that asks.
        policy: what it may.
        state: the state folder.
        report: takes the progress of what is received.
        beat: seconds between two signs of life.
        on_lost: called from another thread when the line is found to be gone while there is work: ends it.

    Raises:
        LvmsyncError: a stream failed; the other side was told.
        StreamError: what came is no request.
    """
    session = Session(line, policy, state, report, beat=beat, on_lost=on_lost)
    try:
        session.greet()
        session.run()
    finally:
        session.finish()


class Session:
    """One conversation, as the side that serves has it."""

    def __init__(
        self,
        line: Transport | Line,
        policy: Policy,
        state: Path,
        report: Report,
        *,
        beat: float = BEAT,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is said before `greet`."""
        self._line = line if isinstance(line, Line) else Line(line)
        self._voice = _Voice(self._line, beat, on_lost)
        self._policy = policy
        self._state = state
        self._report = report

    def greet(self) -> None:
        """Say who we are."""
        self._voice.say(AGENT, {"protocol": PROTOCOL, "version": __version__, "host": os.uname().nodename})

    def run(self, *ends: str) -> tuple[str, dict[str, Any]] | None:
        """Serve requests until the line ends, or until a line comes that begins with one of ``ends``: return that.

        Raises:
            LvmsyncError: a stream failed; the other side was told.
            StreamError: what came is no request.
        """
        with self._voice.beating():
            while (text := self._line.read_line(LONGEST_REQUEST)) is not None:
                for end in ends:
                    values = parse(text, end)
                    if values is not None:
                        return end, values
                request = parse(text, REQUEST)
                if request is None or not isinstance(request.get("verb"), str):
                    error = StreamError(f"this is no request of an lvmsync: '{show(text)}'")
                    self._voice.say(REFUSAL, {**refusal_of(error), "over": True})
                    raise error
                self._serve(request)
        return None

    def finish(self) -> None:
        """Let what was said last get out."""
        finish(self._line)

    def _serve(self, request: Request) -> None:
        """Carry out one request, and answer it."""
        verb = request["verb"]
        with self._voice.working(_bound_stall(request.get("stall", STALL_TIMEOUT))):
            try:
                answer = _find_verb(verb)(self, request)
            except TransportError:
                raise  # there is nobody to tell
            except LvmsyncError as error:
                is_over = verb in _STREAMS  # what comes next on the line is not known
                self._voice.say(REFUSAL, {**refusal_of(error), "over": is_over})
                if is_over:
                    raise
            else:
                if answer is not None:
                    self._voice.say(ANSWER, answer)

    # The verbs

    def _standing(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.standing import standing

        place = self._policy.find_target(_take(request, target=_is_word)["target"])
        answer: dict[str, Any] = standing(place.path, self._state).to_json()
        return answer

    def _receive(self, request: Request) -> None:
        from lvmsync.jobs.receive import ReceiveOptions, receive

        asked = _take(request, target=_is_word, options=_is_object)
        options = _take({"verb": "receive", **asked["options"]}, **_OPTIONS)
        place = self._policy.find_target(asked["target"])
        self._policy.require_options(options, is_new=lambda: not self._is_known(place))
        wanted: dict[str, Any] = {key: value for key, value in options.items() if value}
        if wanted.pop("no_undo", False):
            wanted["undo"] = False
        if "snapback" in wanted:
            wanted["snapback"] = Path(wanted["snapback"])
        receipt = receive(
            self._voice.receive_some,
            ReceiveOptions(target=place.path, state=self._state, **wanted),
            self._report,
            lambda: self._voice.say(READY),
            line_goes_on=True,
        )
        self._voice.say(RECEIPT, asdict(receipt))

    def _is_known(self, place: Place) -> bool:
        """Tell whether a target holds a copy that was committed."""
        from lvmsync.jobs.standing import standing

        return standing(place.path, self._state).point is not None

    def _leaves(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.leaves import answer

        asked = _take(request, target=_is_word, size=_is_size, seed=_is_seed)
        place = self._policy.find_target(asked["target"])
        if not self._policy.may_compare:
            raise UsageError("this server tells no digests of its targets: it was started with --no-compare")
        answer(place.path, asked["size"], asked["seed"], self._voice.send_all, self._voice.receive_some)
        return {}

    def _create(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.create import create_file, create_volume

        asked = _take(request, target=_is_word, size=_is_size, pool=_is_word)
        place = self._policy.find_target(asked["target"])
        self._policy.require(self._policy.may_create, "makes no targets", "--allow-create")
        pool = _find_pool(place, asked["pool"]) if asked["pool"] else None
        if place.is_volume:
            create_volume(place.name, asked["size"], pool, self._state)
        else:
            create_file(place.path, asked["size"], self._state)
        return {}

    def _recover(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.recover import recover

        asked = _take(request, target=_is_word, back=_is_flag, accept=_is_flag, give_up=_is_flag)
        place = self._policy.find_target(asked["target"])
        if asked["accept"]:
            self._policy.require_risk("accept")
        receipt = recover(
            place.path,
            self._state,
            self._report,
            accept=bool(asked["accept"]),
            back=bool(asked["back"]),
            give_up=bool(asked["give_up"]),
            alone=True,  # the others of its group may be none that this side may touch
        )
        return asdict(receipt)

    def _snapshot(self, request: Request) -> dict[str, Any]:
        asked = _take(request, target=_is_word, replica=is_group, drop=_is_flag)
        place = self._policy.find_target(asked["target"])
        self._policy.require(self._policy.may_snapshot, "makes no snapshots", "--allow-snapshot")
        if not place.is_volume:
            raise UsageError(f"{place.name} is no volume of LVM: there are no snapshots of it")
        if not asked["replica"]:
            raise UsageError("request 'snapshot' lacks 'replica'")
        from lvmsync.jobs.replica import snapshots
        from lvmsync.system import lvm
        from lvmsync.system.lvm_commands import replica_tag, role_tag, take_snapshot

        told = lvm.list_volumes(place.name.split("/")[0])
        volume = snapshots.find_source(place.name, told)
        if asked["drop"]:
            old = [
                one for one in snapshots.list_kept(volume, asked["replica"], told) if snapshots.role_of(one) == "back"
            ]
            if left := snapshots.remove(old):
                raise ConflictError("; ".join(left), device=volume.full_name)
            return {}
        made = take_snapshot(
            volume,
            f"{volume.name[:_LONGEST_PREFIX]}-lvmsync-back-{asked['replica'][:8]}",
            tags=[replica_tag(asked["replica"]), role_tag("back")],
            told=told,
        )
        return {"name": made.full_name, "id": made.id}

    def _commit_group(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.prepared import commit_group

        paths, group = self._take_group(request)
        commit_group(paths, self._state, group)
        return {}

    def _abort_group(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.prepared import abort_group

        paths, group = self._take_group(request)
        abort_group(paths, self._state, group, self._report)
        return {}

    def _take_group(self, request: Request) -> tuple[list[str], str]:
        """Return the paths of a group's targets, and its id."""
        asked = _take(request, group=is_group, targets=_is_words)
        if not asked["group"] or not asked["targets"]:
            raise UsageError(f"request '{request['verb']}' lacks 'group' or 'targets'")
        return [self._policy.find_target(word).path for word in asked["targets"]], asked["group"]

    def _push(self, request: Request) -> None:
        """Copy a volume of this machine to a target of the other side, which serves us until we are done."""
        asked = _take(request, source=_is_word, target=_is_word, options=_is_object)
        options = _take({"verb": "push", **asked["options"]}, **PUSH_OPTIONS)
        source = self._policy.find_source(asked["source"])
        if self._policy.sources is not None and (options["store"] or options["chunk"]):
            raise UsageError("this server chooses the size and chunks of its snapshots itself")
        from lvmsync.jobs.agent.pushing import push

        self._voice.say(TURN)
        self._voice.rest()
        receipt = push(
            self._line,
            source.name,
            asked["target"],
            self._state,
            options,
            self._report,
            most_copies=self._policy.most_copies,
        )
        self._voice.say(DONE, asdict(receipt))

    def _stripe(self, request: Request) -> None:
        count = _take(request, count=_is_count)["count"]
        striped = accept(self._line, self._voice.say, count, self._state)
        self._voice.hand_over(ANSWER, {"lines": count}, striped)

    def _join(self, request: Request) -> None:
        asked = _take(request, id=_is_word, secret=_is_word)
        join(self._line, self._voice.hand_over, asked["id"] or "", asked["secret"] or "", self._state)


def _find_verb(verb: str) -> Callable[[Session, Request], dict[str, Any] | None]:
    if verb not in _VERBS:
        raise UsageError(f"no such request: '{show(verb)}'; is one of the two an older lvmsync?")
    return _VERBS[verb]


_VERBS: dict[str, Callable[[Session, Request], dict[str, Any] | None]] = {
    "standing": Session._standing,
    "receive": Session._receive,
    "leaves": Session._leaves,
    "create": Session._create,
    "recover": Session._recover,
    "snapshot": Session._snapshot,
    "commit_group": Session._commit_group,
    "abort_group": Session._abort_group,
    "push": Session._push,
    "stripe": Session._stripe,
    "join": Session._join,
}

_STREAMS = ("receive", "leaves", "push")
"""Verbs that more than an answer belongs to: when they fail, some of it may still be on the line."""


class _Voice:
    """What the side that serves says: a line at a time, and signs of life while it works.

    There is no such sign while it waits for bytes or has just got some: the other side does not read in
    mid-stream, and what it leaves must not fill the line. And a wait that we ourselves break would never end.
    """

    def __init__(self, line: Line, beat: float, on_lost: Callable[[], None]) -> None:
        self._line = line
        self._beat = beat
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_receiving = False
        self._moved_at = time.monotonic()
        self._patience = STALL_TIMEOUT  # the other side's
        # From here on: under the lock
        self._is_working = False
        self._hears_end = False  # who reads the line knows that it has ended, and needs no signal
        self.is_silent = False

    def say(self, word: str, values: Mapping[str, Any] | None = None) -> None:
        """Say a line."""
        with self._lock:
            self._line.say(word, values)

    def hand_over(self, word: str, values: Mapping[str, Any], transport: Transport | None = None) -> None:
        """Say a line, and from then on nothing else on this transport: another one takes its place, or raw bytes."""
        with self._lock:
            self._line.say(word, values)
            if transport:
                self._line.transport = transport
            else:
                self.is_silent = True

    def rest(self) -> None:
        """Give no signs of life for the rest of this request."""
        with self._lock:
            self._is_working = False

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send lines and what belongs to them, at once."""
        with self._lock:
            self._line.send_all(buffers)
            self._moved_at = time.monotonic()

    def receive_some(self, buffer: memoryview) -> int:
        """Receive raw bytes, and take note of the end."""
        count = 0
        self._is_receiving = True
        try:
            count = self._line.receive_some(buffer)
        finally:
            self._moved_at = time.monotonic()
            self._is_receiving = False
            if not count:
                with self._lock:
                    self._hears_end = True
        return count

    @contextmanager
    def working(self, stall_timeout: float) -> Iterator[None]:
        """Give signs of life in the ``with``, and wait no longer than so many seconds for those of the other side."""
        self._patience, self._moved_at = stall_timeout, time.monotonic()
        with self._lock:
            self._is_working, self.is_silent = True, False
        self._line.transport.stall_timeout = stall_timeout
        try:
            yield
        finally:
            self._line.transport.stall_timeout = None  # who has no question may take any time
            with self._lock:
                self._is_working = False

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Run the thread that gives them."""
        self._ended.clear()
        thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(min(self._beat, _TICK)):
            with self._lock:
                if self._ended.is_set() or self.is_silent or not self._is_working or self._is_receiving:
                    continue
                if time.monotonic() - self._moved_at < min(self._beat, self._patience / 3):
                    continue
                self._moved_at = time.monotonic()
                try:
                    self._line.say(WAIT)
                except LvmsyncError:
                    if not self._hears_end:
                        self._on_lost()
                    return


def _bound_stall(seconds: object) -> float:
    """Return how long to wait for a byte of the other side, which may ask for more or less than the usual."""
    if seconds is None:
        return _LONGEST_STALL
    if not isinstance(seconds, int | float):
        return STALL_TIMEOUT
    return float(min(max(seconds, SHORTEST_STALL), _LONGEST_STALL))  # before it is made a float: it may be a huge one


def _find_pool(place: Place, word: str) -> str:
    """Return the name of the pool that a target is to be made in: VG/POOL, of the target's own group."""
    if not place.is_volume:
        raise UsageError(f"{place.path} is a file, and a thin pool is for volumes")
    group = place.name.split("/")[0]
    pool = parse_volume(word if "/" in word else f"{group}/{word}")
    if not pool.is_lvm_name or pool.word.split("/")[0] != group:
        raise UsageError(f"'{word}' is no pool of volume group {group}, which {place.name} is to be in")
    return pool.word


# What may be in a request


def _take(request: Request, **checks: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the values of a request, those that are not given as None; what it must not have is refused."""
    for key, value in request.items():
        if key in ("verb", "stall"):
            continue
        if key not in checks:
            raise UsageError(f"request '{request['verb']}' has no '{show(key)}': is one of the two an older lvmsync?")
        if value is not None and not checks[key](value):
            raise UsageError(f"request '{request['verb']}': what '{key}' says makes no sense")
    for key in ("target", "source", "size", "seed", "count", "options"):
        if key in checks and request.get(key) is None:
            raise UsageError(f"request '{request['verb']}' lacks '{key}'")
    return {key: request.get(key) for key in checks}


def _is_word(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or _CONTROL.search(value):
        return False
    try:
        return bool(os.fsencode(value))
    except UnicodeEncodeError:  # half a letter
        return False


def _is_words(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= _MOST_TARGETS and all(map(_is_word, value))


def _is_percent(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and 0 < value <= 100


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 256


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _is_level(value: object) -> bool:
    return type(value) is int and 0 <= value <= 19


_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "snapback": _is_word,
    "group": is_group,
    "pool_limit": _is_percent,
    **dict.fromkeys(
        (
            "no_undo", "create", "atomic", "allow_smaller", "ignore_base", "require_base", "dry_run", "resumable",
            "restart", "prepare",
        ),
        _is_flag,
    ),
}  # fmt: skip
"""Options of a receive, as they may stand in a request."""

PUSH_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "level": _is_level,
    "thin_pool": _is_word,
    "store": _is_size,
    "chunk": _is_size,
    "create": _is_flag,
    "full": _is_flag,
    "minimal": _is_flag,
    "dry_run": _is_flag,
    "place": _is_word,
    "no_undo": _is_flag,
    "snapback": _is_word,
    "pool_limit": _is_percent,
}
"""What the side that pulls may say of how its copy is made: never a command.

"place" is what names its target in our records, the same for every run; the last three are for its own receive.
"""
