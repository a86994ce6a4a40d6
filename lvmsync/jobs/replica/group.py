"""``sync`` of a group: volumes that are cut at one instant, and whose copies are committed together or not at all.

Each member is a replica like any other, and its snapshots carry two tags more: the name of the group, and the id of the
cut, which is also what the receivers on the target's side know the cut by. So LVM's tags and the targets' ledgers tell
the next run everything: which heads belong together, and how far each target has come with its own.

All are looked at before anything is made. Then they are cut together (`system.cut`), each is sent and *prepared*: on
its target, durable, and not committed. The agent commits all at one point (`jobs.prepared`), and only then the heads
become bases. A line that is cut, or a kill on either side, leaves the cut unfinished: the next run goes on with that
very cut, or, if one of its heads is lost, brings all back. A member that fails brings all back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lvmsync.errors import ConflictError, PeerError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.doctor.volumes import check_before
from lvmsync.jobs.itself import refuse_itself
from lvmsync.jobs.progress import GroupReceipt, Report
from lvmsync.jobs.replica.choose import Kind
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.group_run import Run, find_kind
from lvmsync.jobs.replica.replica import open_replica
from lvmsync.jobs.replica.run import RETRIES, WAIT, foresee, retried
from lvmsync.jobs.replica.together import Stillness
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume


@dataclass(frozen=True)
class Member:
    """A volume of a group, and its target.

    Attributes:
        volume: the source.
        target: VG/LV or path, on the agent's machine.
        place: the target as its user named it.
    """

    volume: LogicalVolume
    target: str
    place: str


def sync_group(
    name: str,
    connect: Callable[[], Agent],
    members: Sequence[Member],
    state: Path,
    options: PassOptions,
    stillness: Stillness,
    report: Report,
    *,
    retries: int = RETRIES,
    wait: float = WAIT,
    told: Sequence[LogicalVolume] | None = None,
) -> GroupReceipt:
    """Bring the targets of a group up to date with their volumes, to one moment; after a broken line, go on.

    A cut that an earlier run has left unfinished is finished first; the receipt is of both then.

    Args:
        name: of the group.
        connect: returns an agent on the targets' machine, another one if the last one's session is over.
        members: the volumes; each once.
        state: the state folder of this machine.
        options: how each is copied.
        stillness: what stands still while they are cut.
        report: takes the progress.
        retries: how often a failed line is tried again.
        wait: seconds before the first of these.
        told: what LVM told of the volumes' groups just now; None: it is asked.

    Raises:
        LvmsyncError: the last failure. No copy is at another moment than the others: what came is committed for
            all, or brought back, or waits for the next run.
    """
    old: set[str] | None = None  # cuts that an earlier run has left

    told = lvm.list_volumes() if told is None else told
    checked = [f"{one.volume.full_name}: {note}" for one in members for note in check_before(one.volume, told)]

    def work(agent: Agent) -> GroupReceipt:
        nonlocal old, told
        first, told = told, None  # after a failure of the line time has passed
        with ExitStack() as stack:
            replicas = [
                stack.enter_context(open_replica(agent, one.volume, one.target, one.place, state, told=first))
                for one in members
            ]
            # Asked again: until all were locked other runs may have taken and removed snapshots of them.
            run = Run(name, connect, agent, replicas, state, stillness, report, lvm.list_volumes())
            if old is None:
                old = run.list_cuts()
            receipt = _go(run, options)
            if receipt.cut in old:
                receipt = _join(receipt, run.go(replace(options, full=False)))
            receipt.notes.extend(run.let_go_of_others())
            return receipt

    receipt = retried(connect, work, report, retries=retries, wait=wait)
    return replace(receipt, notes=[*dict.fromkeys(checked), *receipt.notes])


def _go(run: Run, options: PassOptions) -> GroupReceipt:
    """Make one run. Copies of everything that were not finished are gone on with, unless a target refuses that."""
    try:
        return run.go(replace(options, goes_on=True))
    except PeerError as error:
        if not options.full or error.exit_code != ConflictError.exit_code:
            raise
    return run.go(options)


def foresee_group(
    name: str, agent: Agent, members: Sequence[Member], state: Path, options: PassOptions
) -> GroupReceipt:
    """Return what `sync_group` would do, as the receipt of a dry run; nothing is changed by that.

    Raises:
        LvmsyncError: it would refuse.
    """
    stands = [agent.standing(one.target) for one in members]
    sources = [(one.volume.id, one.volume.full_name) for one in members]
    for one, stand in zip(members, stands, strict=True):
        refuse_itself(sources, stand, one.place)
    begun = {one.transaction.group for one in stands if one.transaction and one.transaction.group}
    options = replace(options, cuts=frozenset(begun | {""}), goes_on=True)
    found = [foresee(agent, one.volume, one.target, one.place, state, options) for one in members]
    notes = ["an unfinished cut of the group would be gone on with"] if begun else []
    return GroupReceipt(
        "sync group", name, None, find_kind(found), found, sum(one.bytes for one in found), dry_run=True, notes=notes
    )


def _join(first: GroupReceipt, second: GroupReceipt) -> GroupReceipt:
    """Return the receipt of a run that has finished an earlier cut, and then has brought all up to date."""
    return replace(
        second,
        kind=Kind.RESUME.value,
        bytes=first.bytes + second.bytes,
        wire_bytes=first.wire_bytes + second.wire_bytes,
        seconds=round(first.seconds + second.seconds, 3),
        notes=[
            *first.notes,
            *(f"{one.source}: {note}" for one in first.members for note in one.notes),
            "it finished the cut that an earlier run had left, and then sent what had changed since",
            *second.notes,
        ],
    )
