"""One run of a group: its targets are brought to rest, its volumes are cut and sent, and all are committed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import ConflictError, LvmsyncError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.itself import refuse_itself
from lvmsync.jobs.progress import GroupReceipt, Progress, Receipt, Report, Stopwatch
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.choose import POINT, Kind
from lvmsync.jobs.replica.copy import Pass, PassOptions, look_at, run_pass
from lvmsync.jobs.replica.record import list_records
from lvmsync.jobs.replica.replica import Replica
from lvmsync.jobs.replica.run import is_of_line
from lvmsync.jobs.replica.together import Stillness, Wanted, take_together
from lvmsync.jobs.replica.watch import watch_fill
from lvmsync.jobs.standing import Standing
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.cut import PENDING_TAG
from lvmsync.system.fill_watch import FillWatch
from lvmsync.system.lvm import LogicalVolume

_MOST_STEPS = 6  # that set a group right before anything is sent


class Run:
    """One run, with all replicas of the group locked."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Agent],
        agent: Agent,
        replicas: Sequence[Replica],
        state: Path,
        stillness: Stillness,
        report: Report,
        told: Sequence[LogicalVolume] | None = None,
    ) -> None:
        """Take them.

        Args:
            name: of the group.
            connect: returns an agent on the targets' machine, another one if the last one's session is over.
            agent: such a one.
            replicas: of its members, locked.
            state: the state folder of this machine.
            stillness: what stands still while they are cut.
            report: takes the progress.
            told: what LVM told of all volumes just now, and not before they were locked; None: it is asked.
        """
        self._name = name
        self._at_first = told  # good until this run, or another program, changes anything
        self._connect = connect
        self._agent = agent
        self._replicas = {one.id: one for one in replicas}
        self._state = state
        self._options = PassOptions()
        self._stillness = stillness
        self._report = report
        self._notes: dict[str, list[str]] = {}
        self._step = ""
        self._still_seconds = 0.0

    def list_cuts(self) -> set[str]:
        """Return the cuts that heads of this group's replicas are of."""
        heads = (one for replica in self._replicas.values() for one in replica.list_snapshots(self._at_first))
        return {cut for one in heads if snapshots.role_of(one) == snapshots.HEAD and (cut := snapshots.cut_of(one))}

    def go(self, options: PassOptions) -> GroupReceipt:
        """Finish the cut that an earlier run has begun, or make one; and commit it.

        Args:
            options: how each volume is copied.
        """
        watch = Stopwatch()
        self._options = options
        self._notes = {replica: [] for replica in self._replicas}
        passes, cut = self._settle()
        if cut is None:
            cut = secrets.token_hex(8)
            pairs = self._cut(cut, passes)
        else:
            pairs = [(one, one.kept[one.plan.head.id]) for one in passes if one.plan.head]
            for one, _ in pairs:
                one.make_room()
        receipts = self._carry(cut, pairs)
        return GroupReceipt(
            "sync group",
            self._name,
            cut,
            find_kind(receipts),
            receipts,
            bytes=sum(one.bytes for one in receipts),
            wire_bytes=sum(one.wire_bytes or 0 for one in receipts),
            seconds=round(watch.seconds, 3),
            still_seconds=round(self._still_seconds, 3),
            confirmed=True,
        )

    def let_go_of_others(self) -> list[str]:
        """Take volumes that are no members any more out of the group; return what the user should know about them."""
        ours = [replica.notebook.record for replica in self._replicas.values()]
        folders = {record.target.rpartition("/")[0] for record in ours}
        others = {one.id: one for one in list_records(self._state) if one.id not in self._replicas}
        notes: list[str] = []
        if not others:
            return notes
        for one in lvm_commands.list_ours():
            record = others.get(snapshots.replica_of(one) or "")
            if snapshots.group_of(one) != self._name or not record:
                continue
            if record.target.rpartition("/")[0] in folders:
                lvm_commands.change_tags(one, (), [f"{snapshots.GROUP_TAG}{self._name}"])
                notes.append(
                    f"{record.source} is no member of the group any more: its copy {record.target} stays as it was at"
                    f" {record.committed or 'its last run'}; sync it by itself, or give it up with 'lvmsync cleanup"
                    f" --replica {record.id}'"
                )
        return notes

    # Before anything is sent

    def _settle(self) -> tuple[list[Pass], str | None]:
        """Bring all targets to rest, or find that all which are not are in the middle of one cut that can be finished.

        Returns:
            What is to be done for each member, and None; or for each member of that cut, and its id.
        """
        for _ in range(_MOST_STEPS):
            stands = {replica.target: self._agent.standing(replica.target) for replica in self._replicas.values()}
            self._refuse_itself(stands)
            begun = frozenset(
                stand.transaction.group for stand in stands.values() if stand.transaction and stand.transaction.group
            )
            if self._go_forward(stands):
                continue
            options = replace(self._options, cuts=begun)
            # Only in the first step of the first run nothing was done, or waited for, since it was asked.
            told, self._at_first = self._at_first, None
            told = lvm.list_volumes() if told is None or begun else told
            passes = [
                Pass(replica, self._agent, options, self._tell, self._notes[replica.id], told)
                for replica in self._replicas.values()
            ]
            cut = next(iter(begun)) if len(begun) == 1 else None
            chosen = self._choose_cut(cut, passes) if cut else None
            if chosen:
                return chosen, cut
            if begun and self._go_back(passes):
                continue
            ready = [self._is_ready(one, options) for one in passes]
            if all(ready):
                return passes, None
        raise ConflictError(f"group '{self._name}' does not come to rest: does something else work on its targets?")

    def _refuse_itself(self, stands: dict[str, Standing]) -> None:
        """Refuse a target that is one of the members."""
        records = [replica.notebook.record for replica in self._replicas.values()]
        sources = [(record.source_id, record.source) for record in records]
        for replica in self._replicas.values():
            refuse_itself(sources, stands[replica.target], replica.notebook.record.target)

    def _go_forward(self, stands: dict[str, Standing]) -> bool:
        """Bring the rest of a cut forward of which one target is at its head already: its commit point was passed."""
        points = {stand.point.id for stand in stands.values() if stand.point}
        waiting: dict[str, list[str]] = {}
        for target, stand in stands.items():
            # Any other was let go of when the cut was committed: it is in the middle of a first copy.
            if stand.transaction and stand.transaction.group and stand.transaction.phase == "prepared":
                waiting.setdefault(stand.transaction.group, []).append(target)
        went = False
        for cut, targets in waiting.items():
            if any(f"{POINT}{one.id}" in points for one in _list_cut(cut)):
                self._agent.commit_group(cut, targets)
                went = True
        return went

    def _choose_cut(self, cut: str, passes: Sequence[Pass]) -> list[Pass] | None:
        """Return what is left to do for each member of a cut, if all of it can be done; else None.

        Raises:
            ConflictError: a volume that is not among the members was cut with them.
        """
        heads = {snapshots.replica_of(one) or "": one for one in _list_cut(cut)}
        others = [one for replica, one in heads.items() if replica not in self._replicas]
        if others:
            names = ", ".join(f"{one.group}/{one.origin}" for one in others)
            raise ConflictError(
                f"the last copy of group '{self._name}' was not finished, and was of {names} as well: name that, too,"
                " this once; or run 'lvmsync recover' on one of the targets, which brings all back"
            )
        chosen = []
        for one in passes:
            head = heads.get(one.replica.id)
            if head is None:
                if one.standing.transaction:
                    return None
                continue
            plan, open_one = one.plan, one.standing.transaction
            if open_one and plan.kind in (Kind.PREPARED, Kind.RESUME):
                if open_one.group != cut or plan.head is None or plan.head.id != head.id:
                    return None
            else:
                kept = next((kept for kept in plan.drop if kept.id == head.id), None)
                if plan.kind not in (Kind.DELTA, Kind.FIRST) or kept is None or kept.trouble or plan.restart:
                    return None
                one.plan = replace(plan, head=kept, drop=tuple(other for other in plan.drop if other is not kept))
            chosen.append(one)
        return chosen or None

    def _go_back(self, passes: Sequence[Pass]) -> bool:
        """Bring back what can be, of cuts that cannot be finished; first copies go on by themselves.

        Returns:
            Whether anything was done, so that all has to be looked at again.
        """
        stuck: dict[str, list[tuple[Pass, LogicalVolume]]] = {}
        went = False
        for one in passes:
            open_one = one.standing.transaction
            if not open_one or not open_one.group:
                continue
            if open_one.can_go_back:
                self._step = ""
                self._tell(Progress("bringing the target back", 0, None))
                self._agent.abort_group(open_one.group, [one.replica.target])
                one.notes.append("what was sent to it before cannot be gone on with, so it was brought back first")
                went = True
            elif one.plan.kind in (Kind.PREPARED, Kind.RESUME) and one.plan.head:
                stuck.setdefault(open_one.group, []).append((one, one.kept[one.plan.head.id]))
            elif open_one.phase == "prepared":  # to be begun anew: no commit is to wait for it, or take it along
                self._agent.abort_group(open_one.group, [one.replica.target])
                went = True
        if went:
            return True
        for cut, pairs in stuck.items():
            for one, _ in pairs:
                one.notes.append("its first copy was finished by itself: what was cut with it is lost")
            self._carry(cut, pairs)
        return bool(stuck)

    def _is_ready(self, one: Pass, options: PassOptions) -> bool:
        """Set right what an earlier run of this volume alone has left; tell whether there was nothing."""
        if one.plan.kind is Kind.RESUME:
            self._step = f" {one.volume.full_name}"
            run_pass(one.replica, self._agent, options, self._tell)
            one.notes.append("a copy of it alone that was cut off was finished first")
            return False
        return one.is_ready()

    # The cut

    def _cut(self, cut: str, passes: Sequence[Pass]) -> list[tuple[Pass, LogicalVolume]]:
        """Take the snapshots of all members at one instant."""
        for one in passes:
            one.make_room()
        self._step = ""
        self._tell(Progress("making the snapshots", 0, None))
        looks = [look_at(one.volume) for one in passes]
        wanted = [Wanted(one.volume, one.replica.id, self._options.store, self._options.chunk) for one in passes]
        taken = take_together(self._name, cut, wanted, self._stillness)
        self._still_seconds = taken.still_seconds
        for one, head, look in zip(passes, taken.heads, looks, strict=True):
            one.notes += [taken.notes[one.volume.id]] if one.volume.id in taken.notes else []
            one.adopt(head, look)
        return list(zip(passes, taken.heads, strict=True))

    # The copies

    def _carry(self, cut: str, pairs: Sequence[tuple[Pass, LogicalVolume]]) -> list[Receipt]:
        """Send the heads of a cut, commit them together, and make them the bases."""
        watches = {one.replica.id: self._watch(one, head) for one, head in pairs}
        receipts = []
        try:
            for number, (one, head) in enumerate(pairs, 1):
                self._step = f" {one.volume.full_name} ({number} of {len(pairs)})"
                others = [watch for replica, watch in watches.items() if replica != one.replica.id]
                receipts.append(one.tell(self._send(cut, one, head, others), head))
            self._require_untouched(pairs)
        except LvmsyncError as error:
            if not is_of_line(error):
                self._give_up(cut, pairs, error)
            raise
        self._step = ""
        self._tell(Progress("committing", 0, None))
        try:
            # One rename there is the commit point of all.
            self._agent.commit_group(cut, [one.replica.target for one, _ in pairs])
        except LvmsyncError as error:
            error.add_note("everything was sent; the next run commits it, or finds that it was")
            raise
        for one, head in pairs:
            one.promote(head)
        seen = [watches[one.replica.id].notes for one, _ in pairs]
        return [
            replace(receipt, notes=[*dict.fromkeys([*receipt.notes, *notes])])
            for receipt, notes in zip(receipts, seen, strict=True)
        ]

    def _send(self, cut: str, one: Pass, head: LogicalVolume, others: Sequence[FillWatch]) -> Receipt:
        """Send one head, unless its target has it already, and leave it prepared."""
        if one.plan.kind is not Kind.PREPARED:
            return one.carry(head, beside=others, prepare=True, group=cut)
        return Receipt(
            "sync",
            target=one.replica.notebook.record.target,
            size=one.volume.size,
            durable=True,
            confirmed=True,
            point=f"{POINT}{head.id}",
            notes=["all of it was sent by an earlier run"],
        )

    def _require_untouched(self, pairs: Sequence[tuple[Pass, LogicalVolume]]) -> None:
        """Refuse to commit what something else has written to while it waited for the others."""
        for one, _ in pairs:
            if self._agent.standing(one.replica.target).written == "yes":
                place = one.replica.notebook.record.target
                raise ConflictError(
                    f"{place} was written to by something else while it waited for the others of its group, so nothing"
                    " was committed; find out what writes to it",
                    device=place,
                )

    def _give_up(self, cut: str, pairs: Sequence[tuple[Pass, LogicalVolume]], error: LvmsyncError) -> None:
        """Bring all members back, since one of them has failed; add to the error what is left."""
        if any(one.plan.base is None for one, _ in pairs):  # has no way back
            error.add_note("what has come of the group is kept: the next run goes on with it")
            return
        try:
            self._connect().abort_group(cut, [one.replica.target for one, _ in pairs])
        except LvmsyncError as failure:
            error.add_note(f"bringing the others of the group back failed as well ({failure}): the next run does that")
            return
        error.add_note("nothing of the group was committed: all of its copies are as they were")
        for note in snapshots.remove(head for _, head in pairs):
            error.add_note(note)

    def _watch(self, one: Pass, head: LogicalVolume) -> FillWatch:
        base = [one.kept[one.plan.base.id]] if one.plan.base else []
        return watch_fill(one.volume, [*base, head], self._options.limits)

    def _tell(self, progress: Progress) -> None:
        self._report(replace(progress, phase=f"{progress.phase}{self._step}"))


def _list_cut(cut: str) -> list[LogicalVolume]:
    """Return the snapshots of a cut that is whole."""
    found = [one for one in lvm_commands.list_ours() if snapshots.cut_of(one) == cut]
    return [] if any(PENDING_TAG in one.tags for one in found) else found


def find_kind(receipts: Sequence[Receipt]) -> str:
    """Return what was done, all in all."""
    kinds = {one.kind for one in receipts}
    if kinds & {Kind.RESUME.value, Kind.PREPARED.value}:
        return Kind.RESUME.value
    order = (Kind.FIRST.value, Kind.DELTA.value, Kind.COMMITTED.value, "nothing")
    return next((one for one in order if one in kinds), "nothing")
