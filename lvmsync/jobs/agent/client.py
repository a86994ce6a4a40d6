"""The side that asks: one agent on the target's machine, and what can be had of it over its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvmsync.errors import LvmsyncError, PeerError, TransportError, VerifyError
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.protocol import (
    AGENT,
    ANSWER,
    DONE,
    PROTOCOL,
    READY,
    RECEIPT,
    REFUSAL,
    REQUEST,
    TURN,
    encode,
    error_of,
    tame,
)
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.send import Resume, Sender, StreamOptions
from lvmsync.jobs.window import Window, window_for
from lvmsync.names import Comparison
from lvmsync.sources.source import Reading, Source
from lvmsync.transport import STALL_TIMEOUT

if TYPE_CHECKING:
    from lvmsync.jobs.agent.policy import Policy
    from lvmsync.jobs.standing import Standing


_TOO_OLD = 2  # the status of an lvmsync that does not know the verb


class Agent:
    """The agent at the far end of a line, greeted. Made by `open_agent`.

    Each request raises PeerError with the agent's code and words if it is refused; the session goes on after
    that. After a stream that failed, was called off or was written as PROTO[3], it is over (`is_over`).

    Attributes:
        peer: the far side, for conversations of their own.
        version: of its lvmsync.
        host: what its machine calls itself.
        stall: seconds that it is to wait for a byte of ours in mid-stream; None: as long as it will.
    """

    def __init__(self, peer: Peer, version: str, host: str) -> None:
        self.stall: float | None = STALL_TIMEOUT
        self.peer = peer
        self.version = version
        self.host = host

    @property
    def place(self) -> str:
        """What messages call it."""
        return self.peer.place

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be asked: open another one."""
        return self.peer.is_over

    def standing(self, target: str) -> Standing:
        """Return what the agent knows of a target; nothing is changed by that.

        Args:
            target: VG/LV or a path, of its machine.
        """
        from lvmsync.jobs.standing import Standing

        return Standing.from_json(self.ask("standing", target=target))

    def receive(
        self,
        target: str,
        source: Source,
        stream: StreamOptions,
        report: Report,
        *,
        orders: Mapping[str, Any] | None = None,
        **sending: Any,
    ) -> Receipt:
        """Send ``source`` to a target, and return the receipt of both sides.

        Args:
            target: VG/LV or a path, of the agent's machine.
            source: what changed.
            stream: how the stream is written.
            report: takes the progress.
            orders: options of the receive, named as in `ReceiveOptions` ("no_undo" for ``undo=False``); those
                that are off may be left out. With ``dry_run`` the target is checked, and no change is sent.
            sending: further arguments of `Sender`: where to resume, samples of the base.

        Raises:
            PeerError: the receiver failed; its exit code is the error's.
            VerifyError: its receipt does not match what was sent: do not use the target.
            TransportError: the line failed.
        """
        wanted = {key: value for key, value in (orders or {}).items() if value}
        resume: Resume | None = sending.get("resume")
        window = None
        if stream.resumable:
            window = Window(window_for(source.changes.total_bytes, resume.cuts if resume else 0))
            wanted["window"] = window.size
        sender = Sender(source, self.peer.send, stream, report, window=window, **sending)
        with self.peer.talking:
            self._request("receive", target=target, options=wanted)
            try:
                sender.begin()
                self.peer.expect(READY)
                if wanted.get("dry_run"):
                    self.close()  # nobody sends what it waits for
                    return sender.call_off(self.place)
                if window:
                    self.peer.listen(window.applied, window.open)
                else:
                    self.peer.listen()
                receipt = sender.run()
                self._end_stream(stream)
                answer = self.peer.expect(RECEIPT)
            except BaseException as error:
                self._break_off(error)
                raise
            return self._confirm(receipt, answer)

    def compare(
        self, target: str, name: Comparison, reading: Reading, report: Report
    ) -> AbstractContextManager[Source]:
        """Open where a device differs from the target, as a source; only digests travel.

        Args:
            target: VG/LV or a path, of the agent's machine.
            name: of the comparison, without an old side.
            reading: how its new side is opened.
            report: takes the progress.
        """
        from lvmsync.jobs.leaves import open_far_comparison

        return open_far_comparison(name, reading, lambda size, seed: self.begin_leaves(target, size, seed), report)

    def begin_leaves(self, target: str, size: int, seed: int) -> Peer:
        """Let the agent hash a target, and return the other end of that conversation; see `jobs.leaves`."""
        self._request("leaves", target=target, size=size, seed=seed)
        return self.peer

    def create(self, target: str, size: int, *, pool: str | None = None) -> None:
        """Make a target of ``size`` bytes: a volume (VG/LV), thin if ``pool`` names its pool, or an image file."""
        self.ask("create", target=target, size=size, pool=pool)

    def recover(self, target: str, *, back: bool = False, accept: bool = False, give_up: bool = False) -> Receipt:
        """Bring a target out of a transaction that broke off; see `jobs.recover`."""
        answer = self.ask("recover", target=target, back=back, accept=accept, give_up=give_up)
        return _read_receipt(answer, self.place)

    def snapshot(self, target: str, replica: str) -> dict[str, Any]:
        """Make a snapshot of a target for the way back, tagged as the replica's; quicker right after `drop_snapshot`.

        Returns:
            Its "name", and its "id", which is None where that takes a question to LVM: see `find_snapshot`.
        """
        return self.ask("snapshot", target=target, replica=replica)

    def find_snapshot(self, target: str, replica: str) -> dict[str, Any]:
        """Return "name" and "id" of the snapshot that `snapshot` has made last."""
        return self.ask("snapshot", target=target, replica=replica, find=True)

    def drop_snapshot(self, target: str, replica: str, *, room: bool = False) -> None:
        """Remove the snapshots that `snapshot` has made of a target for a replica, if there are any.

        Args:
            target: that they are of.
            replica: its id.
            room: whether to refuse, as `require_snapshot_room` does, what leaves too little for another one.
        """
        self.ask("snapshot", target=target, replica=replica, drop=True, room=room or None)

    def require_snapshot_room(self, target: str, replica: str) -> None:
        """Refuse a target that `snapshot` could not be done of, as far as LVM tells, and make nothing."""
        self.ask("snapshot", target=target, replica=replica, room=True)

    def distrust(self, target: str) -> None:
        """Let it be known there that a target does not hold what it should: no delta is taken until it is mended."""
        self.ask("distrust", target=target)

    def settle(self) -> None:
        """Let the agent do what it has put off: see "passes" in `PUSH_OPTIONS` of `jobs.agent.requests`."""
        self.ask("settle")

    def pull(
        self, source: str, target: str, options: Mapping[str, Any], policy: Policy, state: Path, report: Report
    ) -> Receipt:
        """Let the agent copy a volume of its machine to a target of ours, and return its receipt.

        Args:
            source: VG/LV, of the agent's machine.
            target: VG/LV or path, of this machine: what the agent will name.
            options: of the copy; see `PUSH_OPTIONS` in `jobs.agent.requests`. Those that are None are not told.
            policy: what the agent may ask of us meanwhile: see `Policy.of_word`.
            state: the state folder of this machine.
            report: takes the progress of what is received.

        Raises:
            PeerError: it failed there.
            LvmsyncError: it failed here.
        """
        from lvmsync.jobs.agent.server import Session

        wanted = {key: value for key, value in options.items() if value is not None}
        self._request("push", source=source, target=target, options=wanted)
        self.peer.expect(TURN)
        try:
            ended = Session(self.peer.line, policy, state, report, patience=self.stall).run(DONE, REFUSAL)
        except BaseException:
            self.peer.is_over = True
            raise
        if ended is None:
            self.peer.fail("it ended before it was done")
        word, values = ended
        if word == REFUSAL:
            self.close()
            raise error_of(values, self.place)
        return _read_receipt(values, self.place)

    def commit_group(self, group: str, targets: Sequence[str]) -> None:
        """Commit all prepared receives of a group, at one point."""
        self.ask("commit_group", group=group, targets=list(targets))

    def abort_group(self, group: str, targets: Sequence[str]) -> None:
        """Bring back all targets that a group has prepared."""
        self.ask("abort_group", group=group, targets=list(targets))

    def close(self) -> None:
        """End the session, and wait for the agent's end; how that was is of no interest any more."""
        if not self.peer.is_over:
            self.peer.is_over = True
            with suppress(TransportError):
                self.peer.line.transport.send_eof()
                self.peer.line.transport.aclose()

    def ask(self, verb: str, **values: Any) -> dict[str, Any]:
        """Send a request that has one answer, and return that; values that are None are not given."""
        with self.peer.talking:
            self._request(verb, **values)
            return self.peer.expect(ANSWER)

    def _request(self, verb: str, **values: Any) -> None:
        if self.is_over:
            raise TransportError(f"{self.place}: its session is over; start again")
        self.peer.send([encode(REQUEST, {"verb": verb, "stall": self.stall, **values})])

    def _end_stream(self, stream: StreamOptions) -> None:
        """Say that the stream is whole, in a format that has no word for it."""
        if stream.format == 3:
            self.peer.is_over = True
            self.peer.line.transport.send_eof()

    def _break_off(self, error: BaseException) -> None:
        """End the session; wait until a receiver that failed, or was told of a failure, has brought its target back."""
        if isinstance(error, PeerError):
            self.close()
        elif isinstance(error, LvmsyncError) and not isinstance(error, TransportError) and not self.is_over:
            try:
                self.peer.expect(RECEIPT)
            except PeerError as refused:
                for note in getattr(refused, "__notes__", ()):
                    error.add_note(f"{self.place}: {note}")
            except TransportError as lost:
                error.add_note(str(lost))
            self.close()
        self.peer.is_over = True

    def _confirm(self, receipt: Receipt, answer: dict[str, Any]) -> Receipt:
        """Return the receipt of both sides, if the far one's says what ours does."""
        for key in ("bytes", "extents", "digest"):
            if answer.get(key) != getattr(receipt, key):
                self.peer.is_over = True
                raise VerifyError(
                    f"{self.place} confirms {key} {tame(str(answer.get(key)))}, and {getattr(receipt, key)} were sent:"
                    " do not use the target"
                )
        far = _read_receipt(answer, self.place)
        if not far.durable:
            self.peer.is_over = True
            raise VerifyError(f"{self.place} does not say that what was sent is durable there: do not use the target")
        return replace(
            receipt,
            job="sync",
            target=self.place,
            durable=far.durable,
            confirmed=True,
            dropped=far.dropped,
            snapback=far.snapback,
            archive=far.archive,
            point=far.point,
            dry_run=far.dry_run,
            notes=[*receipt.notes, *far.notes],
        )


def open_agent(peer: Peer) -> Agent:
    """Wait for the greeting of an agent whose line is connected.

    Raises:
        PeerError: it ended: lvmsync was not found there (127), is too old, or its machine does not let us.
        TransportError: something else talks on its line, or it speaks another protocol.
    """
    try:
        greeting = peer.expect(AGENT)
    except PeerError as error:
        if error.exit_code == _TOO_OLD:
            raise PeerError(f"{error}: lvmsync there is too old or is no lvmsync", error.exit_code) from error
        raise
    version = tame(str(greeting.get("version")))
    if greeting.get("protocol") != PROTOCOL:
        peer.is_over = True
        raise TransportError(
            f"{peer.place}: lvmsync {version} there speaks protocol {tame(str(greeting.get('protocol')))}, and this one"
            f" speaks {PROTOCOL}: install the same version on both machines"
        )
    return Agent(peer, version, tame(str(greeting.get("host"))))


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "None": (type(None),),
    "list[list[int]]": (list,), "list[str]": (list,),
}  # fmt: skip


def _read_receipt(values: Mapping[str, Any], place: str) -> Receipt:
    """Return a receipt as the far side told it; what is unknown is dropped.

    Raises:
        TransportError: something in it is not of its kind.
    """
    found: dict[str, Any] = {"job": "sync"}
    for field in fields(Receipt):
        value = values.get(field.name)
        if value is None:
            continue
        if type(value) not in [one for name in str(field.type).split(" | ") for one in _KINDS[name]]:
            raise TransportError(f"{place}: its receipt is not readable: {field.name} is {tame(str(value))[:80]}")
        found[field.name] = tame(value) if isinstance(value, str) else value
    found["notes"] = [tame(str(note)) for note in found.get("notes", ())]
    dropped = found.setdefault("dropped", [])
    if not all(isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair) for pair in dropped):
        raise TransportError(f"{place}: its receipt is not readable: what was dropped is no list of ranges")
    return Receipt(**found)
