"""``sync`` of a volume: one pass, and after a broken line as many more as it takes to finish it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lvmsync.errors import LvmsyncError, PeerError, StreamError, TransportError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.doctor.volumes import check_before
from lvmsync.jobs.plan import plan_volume
from lvmsync.jobs.progress import GroupReceipt, Progress, Receipt, Report
from lvmsync.jobs.replica.choose import POINT, Kind, TargetBusy
from lvmsync.jobs.replica.copy import PassOptions, run_pass
from lvmsync.jobs.replica.replica import open_replica
from lvmsync.jobs.replica.snapshots import HEAD, role_of
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume

RETRIES = 3
"""How often a run whose line has failed begins again by itself."""

_OF_THE_LINE = (StreamError.exit_code, TransportError.exit_code)

WAIT = 2.0
"""Seconds before the first of these; each further one waits twice as long, up to `LONGEST_WAIT`."""

LONGEST_WAIT = 30.0

_TOLD = 3  # failures of the line that are told one by one


R = TypeVar("R", Receipt, GroupReceipt)


def sync_volume(
    connect: Callable[[], Agent],
    volume: LogicalVolume,
    target: str,
    place: str,
    state: Path,
    options: PassOptions,
    report: Report,
    *,
    retries: int = RETRIES,
    wait: float = WAIT,
    told: Sequence[LogicalVolume] | None = None,
) -> Receipt:
    """Bring a target up to date with a volume; after a broken line, go on where it was.

    A copy that an earlier run has left unfinished is finished first; the receipt is of both then.

    Args:
        connect: returns an agent on the target's machine, another one if the last one's session is over.
        volume: the source.
        target: VG/LV or path there.
        place: the target as its user named it.
        state: the state folder of this machine.
        options: how.
        report: takes the progress.
        retries: how often a failed line is tried again.
        wait: seconds before the first of these.
        told: what LVM told of the volume's group just now; None: it is asked.

    Raises:
        LvmsyncError: the last failure, with how often it was tried.
    """
    told = lvm.list_volumes(volume.group) if told is None else told
    notes = check_before(volume, told)
    old: set[str] | None = None  # points of heads that an earlier run has left
    found: object = None

    def work(agent: Agent) -> Receipt:
        nonlocal old, found, told
        first, told = told, None  # after a failure of the line time has passed
        with open_replica(agent, volume, target, place, state, told=first) as replica:
            found = replica.found
            # Asked again: until the replica was locked another run may have taken and removed snapshots of it.
            here = lvm.list_volumes(volume.group)
            replica.require_alone(here)
            if old is None:
                old = {f"{POINT}{one.id}" for one in replica.list_snapshots(here) if role_of(one) == HEAD}
            is_own = replica.found is not None and replica.found.head not in old  # begun before the line failed
            receipt = run_pass(replica, agent, replace(options, goes_on=is_own), report, here).receipt
            if receipt.kind == Kind.RESUME.value and receipt.point in old:
                return _join(receipt, run_pass(replica, agent, replace(options, full=False), report).receipt)
            return receipt

    receipt = retried(connect, work, report, retries=retries, wait=wait, find_place=lambda: found)
    return replace(receipt, notes=[*notes, *receipt.notes])


def _join(first: Receipt, second: Receipt) -> Receipt:
    """Return the receipt of a run that has finished an earlier one, and then has brought the target up to date."""
    note = f"it finished the copy of {first.snapshot} that was cut off, and then sent what had changed since"
    return replace(
        second,
        kind=first.kind,
        bytes=first.bytes + second.bytes,
        extents=first.extents + second.extents,
        wire_bytes=(first.wire_bytes or 0) + (second.wire_bytes or 0),
        seconds=round(first.seconds + second.seconds, 3),
        notes=[*first.notes, note, *second.notes],
    )


def foresee(
    agent: Agent,
    volume: LogicalVolume,
    target: str,
    place: str,
    state: Path,
    options: PassOptions,
    told: Sequence[LogicalVolume] | None = None,
) -> Receipt:
    """Return what `sync_volume` would do, as the receipt of a dry run; nothing is changed by that. Arguments as there.

    Raises:
        LvmsyncError: it would refuse.
    """
    found = plan_volume(agent, volume, target, place, state, options, told)
    if found.error:
        raise found.error
    return Receipt(
        job="sync", source=volume.full_name, target=place, bytes=found.changed_bytes or 0, extents=found.extents,
        size=volume.size, kind=found.kind, dry_run=True, notes=[*found.notes, *found.problems],
    )  # fmt: skip


def retried(
    connect: Callable[[], Agent],
    work: Callable[[Agent], R],
    report: Report,
    *,
    retries: int = RETRIES,
    wait: float = WAIT,
    find_place: Callable[[], object] = lambda: None,
) -> R:
    """Do some work with an agent; when its line fails, open another one and do it again.

    Args:
        connect: returns an agent, another one if the last one's session is over.
        work: is done again from its beginning.
        report: takes the progress.
        retries: how often, as long as nothing gets across.
        wait: seconds before the first of these.
        find_place: returns how far the work was when it was last known; once that has changed, failures are counted
            from one again.

    Raises:
        LvmsyncError: the last failure, with how often it was tried.
    """
    tries = 0
    failures: list[LvmsyncError] = []
    was_connected = False
    place: object = None
    while True:
        try:
            agent = connect()
            was_connected = True
            receipt = work(agent)
            receipt.notes[:0] = _tell(failures)
            return receipt
        except LvmsyncError as error:
            if find_place() != place:
                place, tries = find_place(), 0
            if not was_connected or not _may_pass(error, len(failures)) or tries >= retries:
                if failures:
                    error.add_note(f"it was tried {len(failures) + 1} times; run it again to go on where it was")
                raise
            failures.append(error)
        report(Progress(f"trying again ({tries + 1} of {retries})", 0, None))
        time.sleep(min(wait * 2**tries, LONGEST_WAIT))
        tries += 1


def _tell(failures: list[LvmsyncError]) -> list[str]:
    """Return what the user should know of lines that failed."""
    if len(failures) <= _TOLD:
        return [f"the line failed and was opened again: {error}" for error in failures]
    return [f"the line failed {len(failures)} times and was opened again each time, last: {failures[-1]}"]


def _may_pass(error: LvmsyncError, failures: int) -> bool:
    """Tell whether trying again may help: the line failed, or the far side has not noticed yet that it did."""
    if isinstance(error, TargetBusy):
        return error.transient or failures > 0
    return is_of_line(error)


def is_of_line(error: LvmsyncError) -> bool:
    """Tell whether a line has failed, and nothing else."""
    # The far side sees a line that was cut as a stream that was, and may be the first to tell.
    return error.transient or (isinstance(error, PeerError) and error.exit_code in _OF_THE_LINE)
