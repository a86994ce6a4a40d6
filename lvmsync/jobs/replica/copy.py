"""One run of a replica: the snapshot, the map, the stream, and the new base; cut off anywhere, the next run goes on.

The order is what makes it safe. The head is taken first and tagged, then the old map is read, then data from the
head. The target commits, and only then the head becomes the base and the old base is removed. Whatever a crash
leaves, the tags of the snapshots and the target's ledger tell the next run where it was (`choose`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, PeerError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.progress import Progress, Receipt, Report
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.choose import Kind, Plan, Wish, choose
from lvmsync.jobs.replica.opening import Activity, open_delta, open_first, prepare_delta
from lvmsync.jobs.replica.proof import prove_unchanged
from lvmsync.jobs.replica.replica import Replica
from lvmsync.jobs.replica.watch import looked_at, once_each, watch_fill, watching
from lvmsync.jobs.send import Resume, StreamOptions
from lvmsync.jobs.standing import Standing
from lvmsync.sources.source import Source
from lvmsync.stream.frames import Sample
from lvmsync.system import lvm, seen
from lvmsync.system.device import open_device
from lvmsync.system.fill_watch import FillWatch, Limits
from lvmsync.system.lvm import LogicalVolume

_MOST_STEPS = 4  # that set a replica right before anything is sent: commit, roll back, ...
_RATE_WORTH = 8 << 20  # bytes of changes from which on a pass tells a rate


@dataclass(frozen=True)
class PassOptions:
    """How a volume is to be copied.

    Attributes:
        stream: how the stream is written.
        create: the target is made if it is not there.
        thin_pool: VG/POOL of the target that is made; None: a linear volume, or an image file.
        full: everything is copied, whatever the target holds.
        minimal: compare changed chunks with the base and send only the blocks that differ; None: where that is quick.
        store: bytes of a classic snapshot's store; None: advised.
        chunk: bytes of its chunks; None: advised.
        freeze: file systems on the volume are frozen while the snapshot is taken.
        limits: of stores and pools on this side.
        later: takes what makes the head the base, and needs the replica's lock; None: that is done right away. If it
            is never done, the next run does it.
        is_still: nothing is written to the source, so nobody need watch its stores.
        orders: further options of the receive (see `Agent.receive`).
        cuts: ids of the cuts of a group that this run may go on with (see `jobs.replica.group`).
        goes_on: of ``full``: a copy of everything that was not finished is gone on with.
        hold: the snapshots stay active until this ends, for the next pass; None: they need not.
    """

    stream: StreamOptions = field(default_factory=StreamOptions)
    create: bool = False
    thin_pool: str | None = None
    full: bool = False
    minimal: bool | None = None
    store: int | None = None
    chunk: int | None = None
    freeze: bool = False
    limits: Limits = field(default_factory=Limits)
    later: list[Callable[[], None]] | None = None
    is_still: bool = False
    orders: Mapping[str, Any] = field(default_factory=dict)
    cuts: frozenset[str] = frozenset()
    goes_on: bool = False
    hold: ExitStack | None = None


@dataclass(frozen=True)
class PassResult:
    """What one pass did.

    Attributes:
        receipt: of both sides.
        kind: "first", "delta", "resume" or "nothing".
        changed_bytes: bytes of changes that were sent.
        wire_bytes: bytes of the stream.
        seconds: of each phase: "look" (at what LVM tells), "snapshot", "map", "open" (until the target's side takes
            data), "send", "confirm" (that it was one state of the source), "commit", "promote".
        head_time: when the snapshot that was sent had been taken, on the clock of `time.monotonic`; None of one
            that an earlier run has taken.
        snapshot: that snapshot, VG/LV: the base now.
        changes: what was sent; of what an earlier run has begun, all of it.
    """

    receipt: Receipt
    kind: str
    changed_bytes: int
    wire_bytes: int
    seconds: dict[str, float]
    head_time: float | None
    snapshot: str
    changes: ChangeMap = field(default_factory=ChangeMap.empty)


def run_pass(
    replica: Replica,
    agent: Agent,
    options: PassOptions,
    report: Report,
    told: Sequence[LogicalVolume] | None = None,
) -> PassResult:
    """Bring the target to the state of the volume now, or finish what an earlier run has begun ("resume").

    Args:
        replica: which, locked.
        agent: on the target's machine.
        options: how.
        report: takes the progress.
        told: what LVM told of all volumes just now, where nothing has changed since; None: it is asked.

    Raises:
        LvmsyncError: nothing is lost by that: the next run goes on.
    """
    notes: list[str] = []
    for _ in range(_MOST_STEPS):
        job = Pass(replica, agent, options, report, notes, told)
        if job.is_ready():
            return job.run()
        told = None
    raise ConflictError(f"{replica.notebook.record.target} does not come to rest: does something else work on it?")


def plan_pass(
    replica: Replica, agent: Agent, options: PassOptions, told: Sequence[LogicalVolume] | None = None
) -> tuple[Plan, Standing]:
    """Return what `run_pass` would do first, and what the target's side says; nothing is changed by that.

    Raises:
        LvmsyncError: it would refuse.
    """
    job = Pass(replica, agent, options, lambda _: None, [], told)
    return job.plan, job.standing


class Pass:
    """One look at how things are, and what follows from it.

    Attributes:
        replica: which.
        volume: its source, as it is now.
        kept: its snapshots, by LVM id.
        standing: of its target.
        plan: what is to be done.
        notes: what the user should know, a sentence each; grows.
    """

    def __init__(
        self,
        replica: Replica,
        agent: Agent,
        options: PassOptions,
        report: Report,
        notes: list[str],
        told: Sequence[LogicalVolume] | None = None,
    ) -> None:
        """Look, and decide; nothing is changed.

        Raises:
            LvmsyncError: it cannot be done; see `choose`.
        """
        self.replica = replica
        self._agent = agent
        self._options = options
        self._report = report
        self.notes = notes
        self._seconds: dict[str, float] = {}
        if told is None:
            began = time.monotonic()
            told = lvm.list_volumes()
            self._seconds["look"] = time.monotonic() - began
        self.volume = replica.find_volume(told)
        # What changes in its group from now on is done here, and noted here.
        self._told = [one for one in told if one.group == self.volume.group]
        self.kept = {one.id: one for one in snapshots.list_kept(self.volume, replica.id, self._told)}
        self.standing = agent.standing(replica.target)
        self.plan = choose(
            replica.notebook.record,
            [snapshots.describe(one) for one in self.kept.values()],
            self.standing,
            self.volume.size,
            Wish(options.create, options.full, options.cuts, options.goes_on),
        )
        self._changes = ChangeMap.empty()
        self._fresh: set[str] = set()  # ids of snapshots that were made active here
        self._since = time.monotonic()  # when the phase began that is going on
        self._is_begun = False
        self._is_read = False
        self._is_asked = False
        self._watch: FillWatch | None = None

    def is_ready(self) -> bool:
        """Set right what must be before anything is sent; tell whether it was right already."""
        plan, record = self.plan, self.replica.notebook.record
        self.notes.extend(plan.notes)
        if plan.kind is Kind.COMMITTED:
            assert plan.head is not None
            self.notes.append(f"{record.target} was at {plan.head.name} already: only its receipt had been lost")
            self.promote(self.kept[plan.head.id])
            return False
        if plan.kind is Kind.ROLL_BACK:
            self._report(Progress("bringing the target back", 0, None))
            self._agent.recover(self.replica.target, back=True)
            return False
        return True

    def run(self) -> PassResult:
        """Carry out the plan."""
        plan, options = self.plan, self._options
        self.make_room()
        head, head_time = self._find_head()
        try:
            receipt = self.carry(head)
        except BaseException as error:
            self._let_go(head, error)
            raise
        began = time.monotonic()
        if options.later is None:
            self.promote(head)
        else:
            options.later.append(lambda: self.promote(head))
        self._seconds["promote"] = time.monotonic() - began
        receipt = self.tell(receipt, head)
        wire_bytes = receipt.wire_bytes or 0
        return PassResult(
            receipt,
            receipt.kind or plan.kind.value,
            receipt.bytes,
            wire_bytes,
            self._seconds,
            head_time,
            head.full_name,
            self._changes,
        )

    def make_room(self) -> None:
        """Remove what the plan has no use for, and make the target where it is to be made."""
        if self.plan.drop:
            self.notes += snapshots.remove(self.kept.pop(one.id) for one in self.plan.drop)
            # What they took is free now, which is told by none of these.
            gone = {one.id for one in self.plan.drop}
            self._told = [replace(one, room=None) for one in self._told if one.id not in gone]
            self.volume = replace(self.volume, room=None)
        if not self.standing.exists or self.standing.is_blank:
            self._agent.create(self.replica.target, self.volume.size, pool=self._options.thin_pool)
            self.standing = self._agent.standing(self.replica.target)  # what it is now

    def adopt(self, head: LogicalVolume, look: dict[str, str] | None) -> None:
        """Remember a snapshot that was taken just now as the one that is being sent.

        Args:
            head: the snapshot.
            look: what the kernel had counted on the volume right before.
        """
        self.kept[head.id] = head
        self._told.append(head)
        self.replica.notebook.write(head=head.id, head_look=look, cuts=0)

    def tell(self, receipt: Receipt, head: LogicalVolume) -> Receipt:
        """Return a receipt with what is known here: of which volume, by which snapshot, what kind of copy."""
        kind = self.plan.kind.value
        if self.plan.kind is Kind.DELTA and not receipt.bytes:
            kind = "nothing"
        return replace(
            receipt, source=self.volume.full_name, kind=kind, snapshot=head.full_name,
            notes=[*self.notes, *receipt.notes],
        )  # fmt: skip

    def _find_head(self) -> tuple[LogicalVolume, float | None]:
        """Return the snapshot to be sent, and when it was taken if that was now."""
        if self.plan.head:
            return self.kept[self.plan.head.id], None
        self._report(Progress("making the snapshot", 0, None))
        began = time.monotonic()
        look = look_at(self.volume)
        head: LogicalVolume | None = None
        try:
            with ExitStack() as stack:
                if self._options.freeze:
                    self.notes.extend(stack.enter_context(snapshots.quiet([self.volume])).values())
                head = snapshots.take_head(
                    self.volume,
                    self.replica.id,
                    store=self._options.store,
                    chunk=self._options.chunk,
                    told=self._told,
                    active=True,
                )
            taken = time.monotonic()
            self._fresh.add(head.id)
            self.adopt(head, look)
        except BaseException as error:
            if head:
                self._let_go(head, error)
            raise
        self._seconds["snapshot"] = taken - began
        return head, taken

    def carry(self, head: LogicalVolume, *, beside: Iterable[FillWatch] = (), **orders: Any) -> Receipt:
        """Send a head as the plan says, and return the receipt.

        Args:
            head: the snapshot.
            beside: what watches more than what this volume's snapshots fill.
            orders: more options of the receive.

        Raises:
            LvmsyncError: the target is as it was, or in the middle of it, to be gone on with.
        """
        plan, options = self.plan, self._options
        base = self.kept[plan.base.id] if plan.base else None
        needed = [one for one in (base, head) if one]
        watch = watch_fill(self.volume, [] if options.is_still else needed, options.limits)
        watches = once_each([watch, *beside])
        report = watching(self._report, *watches)
        self._watch = watch
        began = self._since = time.monotonic()
        report(Progress("reading the map", 0, None))
        activity = Activity(self._fresh, options.hold)
        opened = (
            open_delta(self.volume, base, head, self._told, activity)
            if base
            else open_first(self.volume, head, activity)
        )
        with looked_at(*watches), watch.explaining(), opened as source:
            samples: list[Sample] = []
            if base:
                base_look = self.replica.notebook.record.base_look
                # Of one that goes on, too: its map is read again, and may have been lost since.
                source = prove_unchanged(source, base_look, look_at(self.volume), report)
                is_new, written = plan.kind is Kind.DELTA, self.standing.written
                source, samples, notes = prepare_delta(source, options.minimal, written, report, is_new=is_new)
                self.notes.extend(notes)
            source = replace(source, confirm=self._confirming(source))
            self._changes = source.changes
            self._mark("map")
            self._is_asked = True
            receipt = self._agent.receive(
                self.replica.target,
                source,
                replace(options.stream, resumable=True),
                lambda progress: self._note_progress(progress, report),
                orders={
                    **options.orders,
                    **orders,
                    "resumable": True,
                    "require_base": base is not None,
                    "restart": plan.restart,
                },
                resume=self._resume(),
                samples=samples,
            )
        self._mark("commit")
        if receipt.bytes >= _RATE_WORTH:
            sending = self._since - began - self._seconds["map"]
            self.replica.notebook.write(rate=round(receipt.bytes / max(sending, 1e-3)))
        self.notes.extend(watch.notes)
        return receipt

    def _resume(self) -> Resume | None:
        open_one = self.standing.transaction
        if self.plan.kind is not Kind.RESUME or open_one is None:
            return None
        notebook = self.replica.notebook
        notebook.write(cuts=notebook.record.cuts + 1)
        return Resume(open_one.offset, open_one.id, notebook.record.cuts)

    def _confirming(self, source: Source) -> Any:
        def confirm() -> None:
            self._mark("send")
            source.confirm()
            self._mark("confirm")
            self._is_read = True  # the end of the stream is sent next
            self._report(Progress("committing", source.changes.total_bytes, source.changes.total_bytes))

        return confirm

    def _note_progress(self, progress: Progress, report: Report) -> None:
        if progress.phase == "sending" and not self._is_begun:
            self._is_begun = True
            self._mark("open")
        report(progress)

    def _mark(self, phase: str) -> None:
        """Note how long a phase took, which ends now."""
        now = time.monotonic()
        self._seconds[phase] = now - self._since
        self._since = now

    def promote(self, head: LogicalVolume) -> None:
        """Make a head that the target holds the base."""
        self.notes += self.replica.promote(head, self.kept.values(), self.standing.identity)
        if self.plan.base and self.plan.base.role == "back":
            self.notes += snapshots.remove([self.kept[self.plan.base.id]])  # this was the way back

    def _let_go(self, head: LogicalVolume, error: BaseException) -> None:
        """Remove a head that nothing will go on with; add to the error if it cannot be.

        Once its stream may have ended, the target may hold it: then only the next run can tell. While the target may
        be in the middle of it, it is what the next run goes on with. But of a pool that becomes full it takes what the
        volume itself needs: whoever uses that comes first.
        """
        is_ours = isinstance(error, LvmsyncError) and not error.transient and not isinstance(error, PeerError)
        is_kept = bool(self.plan.head) or (self._is_begun and not (is_ours and self.plan.base))
        is_over = self._watch is not None and self._watch.failure is error and isinstance(error, DeviceError)
        is_crowded = is_kept and is_over and self.volume.is_thin
        if self._is_read or (is_kept and not is_crowded):
            return
        for note in snapshots.remove([head]):
            error.add_note(note)
        if is_crowded:
            error.add_note(f"{head.full_name} was removed, so that its pool has the room; the next run takes another")
        if not self._is_asked:  # else the target may be in the middle of it, and this tells that it is of ours
            self.replica.notebook.write(head=None, head_look=None)


def look_at(volume: LogicalVolume) -> dict[str, str] | None:
    """Return what the kernel has counted on a volume."""
    with open_device(f"/dev/{volume.full_name}") as device:
        return seen.look(device.fd)
