"""The side that serves: one request after the other, until its line ends.

What a request may name and ask for is the `Policy`'s to say. Nothing here runs a command of the other side.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvmsync import __version__
from lvmsync.errors import LvmsyncError, StreamError, TransportError, UsageError
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
from lvmsync.jobs.agent.requests import (
    PUSH_OPTIONS,
    RECEIVE_OPTIONS,
    Request,
    bound_stall,
    is_count,
    is_flag,
    is_object,
    is_seed,
    is_size,
    is_word,
    is_words,
    take,
)
from lvmsync.jobs.agent.streams import accept, finish, join
from lvmsync.jobs.agent.voice import Voice
from lvmsync.jobs.progress import Report
from lvmsync.names import Volume, parse_volume
from lvmsync.transport import STALL_TIMEOUT

if TYPE_CHECKING:
    from lvmsync.jobs.agent.keeping import Keeper
    from lvmsync.jobs.agent.pushing import Passes


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
        patience: float | None = None,
    ) -> None:
        """Prepare; nothing is said before `greet`.

        Args:
            patience: seconds that the other side may say nothing while it has no question, not even that it works;
                None: any time.

        The others are those of `serve`.
        """
        self._line = line if isinstance(line, Line) else Line(line)
        self._voice = Voice(self._line, beat, on_lost, patience)
        self._patience = patience
        self._policy = policy
        self._state = state
        self._report = report
        self._unmerged: set[str] = set()  # paths of targets that LVM has no merge with in mind
        self._keeper: Keeper | None = None
        self._passes: Passes | None = None

    def greet(self) -> None:
        """Say who we are, and from then on that we are there."""
        self._voice.beats_at_rest = True
        self._voice.say(AGENT, {"protocol": PROTOCOL, "version": __version__, "host": os.uname().nodename})

    def run(self, *ends: str) -> tuple[str, dict[str, Any]] | None:
        """Serve requests until the line ends, or until a line comes that begins with one of ``ends``: return that.

        Raises:
            LvmsyncError: a stream failed; the other side was told.
            StreamError: what came is no request.
        """
        with self._voice.beating():
            while (text := self._line.read_line(LONGEST_REQUEST)) is not None:
                if ends and text == WAIT:
                    continue
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
        """Let what was said last get out, and do what was put off until then."""
        try:
            finish(self._line)
        finally:
            if self._passes:
                self._passes.close()

    def _serve(self, request: Request) -> None:
        """Carry out one request, and answer it."""
        verb = request["verb"]
        stall = bound_stall(request.get("stall", STALL_TIMEOUT))
        # Where the other side serves us by our own request, it is our user who says how long to wait.
        with self._voice.working(stall if self._patience is None else min(stall, self._patience)):
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

        place = self._policy.find_target(take(request, target=is_word)["target"])
        found = standing(place.path, self._state, is_first=place.path not in self._unmerged)
        if found.exists and not found.in_use:
            self._unmerged.add(place.path)
        answer: dict[str, Any] = found.to_json()
        return answer

    def _receive(self, request: Request) -> None:
        from lvmsync.jobs.receive import ReceiveOptions, receive

        asked = take(request, target=is_word, options=is_object)
        options = take({"verb": "receive", **asked["options"]}, **RECEIVE_OPTIONS)
        place = self._policy.find_target(asked["target"])
        self._policy.require_options(options, is_new=lambda: not self._is_known(place))
        wanted: dict[str, Any] = {key: value for key, value in options.items() if value}
        if wanted.pop("no_undo", False):
            wanted["undo"] = False
        if "snapback" in wanted:
            wanted["snapback"] = Path(wanted["snapback"])
        self._voice.begin_stream(wanted.get("window"))
        receipt = receive(
            self._voice.receive_some,
            ReceiveOptions(target=place.path, state=self._state, extend_cmd=self._policy.extend_cmd, **wanted),
            self._report,
            lambda: self._voice.say(READY),
            on_applied=self._voice.applied,
            on_work=self._voice.is_applying,
            line_goes_on=True,
        )
        self._voice.say(RECEIPT, asdict(receipt))

    def _is_known(self, place: Place) -> bool:
        """Tell whether a target holds a copy that was committed."""
        from lvmsync.jobs.standing import standing

        return standing(place.path, self._state).point is not None

    def _leaves(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.leaves import answer

        asked = take(request, target=is_word, size=is_size, seed=is_seed)
        place = self._policy.find_target(asked["target"])
        if not self._policy.may_compare:
            raise UsageError("this server tells no digests of its targets: it was started with --no-compare")
        answer(place.path, asked["size"], asked["seed"], self._voice.send_all, self._voice.receive_some)
        return {}

    def _create(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.create import create_file, create_volume

        asked = take(request, target=is_word, size=is_size, pool=is_word)
        place = self._policy.find_target(asked["target"])
        self._policy.require(self._policy.may_create, "makes no targets", "--allow-create")
        name = Volume(place.name).lvm_name
        pool = _find_pool(place, name, asked["pool"], self._policy) if asked["pool"] else None
        if name:
            create_volume(name, asked["size"], pool, self._state)
        else:
            create_file(place.path, asked["size"], self._state)
        return {}

    def _recover(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.recover import recover

        asked = take(request, target=is_word, back=is_flag, accept=is_flag, give_up=is_flag)
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
            pays=self._policy.archives is None,
        )
        return asdict(receipt)

    def _snapshot(self, request: Request) -> dict[str, Any]:
        asked = take(request, target=is_word, replica=is_group, drop=is_flag, find=is_flag, room=is_flag)
        place = self._policy.find_target(asked["target"])
        self._policy.require(self._policy.may_snapshot, "makes no snapshots", "--allow-snapshot")
        name = Volume(place.name).lvm_name
        if name is None:
            raise UsageError(f"{place.name} is no volume of LVM: there are no snapshots of it")
        if not asked["replica"]:
            raise UsageError("request 'snapshot' lacks 'replica'")
        if self._keeper is None:
            from lvmsync.jobs.agent.keeping import Keeper

            self._keeper = Keeper()
        if asked["find"]:
            return self._keeper.find(name, asked["replica"])
        if asked["drop"]:
            self._keeper.drop(name, asked["replica"])
        if asked["room"]:
            self._keeper.require_room(name, asked["replica"])
        if asked["drop"] or asked["room"]:
            return {}
        return self._keeper.keep(name, asked["replica"])

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
        asked = take(request, group=is_group, targets=is_words)
        if not asked["group"] or not asked["targets"]:
            raise UsageError(f"request '{request['verb']}' lacks 'group' or 'targets'")
        return [self._policy.find_target(word).path for word in asked["targets"]], asked["group"]

    def _push(self, request: Request) -> None:
        """Copy a volume of this machine to a target of the other side, which serves us until we are done."""
        asked = take(request, source=is_word, target=is_word, options=is_object)
        options = take({"verb": "push", **asked["options"]}, **PUSH_OPTIONS)
        source = self._policy.find_source(asked["source"])
        if self._policy.sources is not None and (options["store"] or options["chunk"]):
            raise UsageError("this server chooses the size and chunks of its snapshots itself")
        from lvmsync.jobs.agent.pushing import Passes, Push

        self._voice.say(TURN)
        push = Push(
            self._line, self._voice.lock, source.name, asked["target"], self._state, options, self._report,
            most_copies=self._policy.most_copies, stall=bound_stall(request.get("stall", STALL_TIMEOUT)),
        )  # fmt: skip
        if options["passes"] and not options["dry_run"]:
            self._passes = self._passes or Passes()
            receipt = self._passes.make(push)
        else:
            receipt = push.run()
        self._voice.say(DONE, asdict(receipt))

    def _distrust(self, request: Request) -> dict[str, Any]:
        from lvmsync.jobs.distrust import distrust

        distrust(self._policy.find_target(take(request, target=is_word)["target"]).path, self._state)
        return {}

    def _settle(self, request: Request) -> dict[str, Any]:
        take(request)
        if self._passes:
            self._passes.settle()
        return {}

    def _stripe(self, request: Request) -> None:
        count = take(request, count=is_count)["count"]
        striped = accept(self._line, self._voice.say, count, self._state)
        self._voice.hand_over(ANSWER, {"lines": count}, striped)

    def _join(self, request: Request) -> None:
        asked = take(request, id=is_word, secret=is_word)
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
    "distrust": Session._distrust,
    "settle": Session._settle,
    "stripe": Session._stripe,
    "join": Session._join,
}

_STREAMS = ("receive", "leaves", "push")
"""Verbs that more than an answer belongs to: when they fail, some of it may still be on the line."""


def _find_pool(place: Place, name: str | None, word: str, policy: Policy) -> str:
    """Return the name of the pool that a target is to be made in: VG/POOL, of the target's own group."""
    if policy.pools is not None and word not in policy.pools:
        raise UsageError(f"this server makes no volumes in '{word}'")
    if name is None:
        raise UsageError(f"{place.path} is a file, and a thin pool is for volumes")
    group = name.split("/")[0]
    pool = parse_volume(word if "/" in word else f"{group}/{word}")
    if not pool.is_lvm_name or pool.word.split("/")[0] != group:
        raise UsageError(f"'{word}' is no pool of volume group {group}, which {place.name} is to be in")
    return pool.word
