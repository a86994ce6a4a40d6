"""``sync`` of a volume: one pass, and after a broken line as many more as it takes to finish it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import LvmsyncError, PeerError, StreamError, TransportError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.progress import Progress, Receipt, Report
from lvmsync.jobs.replica.choose import POINT, Kind, TargetBusy
from lvmsync.jobs.replica.copy import PassOptions, open_replica, plan_pass, run_pass
from lvmsync.jobs.replica.snapshots import HEAD, role_of
from lvmsync.names import Volume
from lvmsync.sources import Reading, open_source
from lvmsync.system.lvm import LogicalVolume

RETRIES = 3
"""How often a run whose line has failed begins again by itself."""

_OF_THE_LINE = (StreamError.exit_code, TransportError.exit_code)

WAIT = 2.0
"""Seconds before the first of these; each further one waits twice as long."""


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

    Raises:
        LvmsyncError: the last failure, with how often it was tried.
    """
    old: set[str] | None = None  # points of heads that an earlier run has left

    def work(agent: Agent) -> Receipt:
        nonlocal old
        with open_replica(agent, volume, target, place, state) as replica:
            if old is None:
                old = {f"{POINT}{one.id}" for one in replica.list_snapshots() if role_of(one) == HEAD}
            receipt = run_pass(replica, agent, options, report).receipt
            if receipt.kind == Kind.RESUME.value and receipt.point in old:
                return _join(receipt, run_pass(replica, agent, replace(options, full=False), report).receipt)
            return receipt

    return retried(connect, work, report, retries=retries, wait=wait)


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


def foresee(agent: Agent, volume: LogicalVolume, target: str, place: str, state: Path, options: PassOptions) -> Receipt:
    """Return what `sync_volume` would do, as the receipt of a dry run; nothing is changed by that.

    Raises:
        LvmsyncError: it would refuse.
    """
    with open_replica(agent, volume, target, place, state, is_dry=True) as replica:
        plan, standing = plan_pass(replica, agent, options)
    notes = list(plan.notes)
    changed, extents = volume.size, 1
    if plan.kind in (Kind.DELTA, Kind.COMMITTED):
        known = plan.base or plan.head
        assert known is not None
        with open_source(Volume(known.name), Reading(with_data=False, frozen=True)) as source:
            changed, extents = source.changes.total_bytes, len(source.changes)
    elif plan.kind is Kind.RESUME and standing.transaction:
        changed = max(volume.size - standing.transaction.offset, 0)
        notes.append(f"{place} is in the middle of a copy, which would be gone on with where it was")
    return Receipt(
        job="sync", source=volume.full_name, target=place, bytes=changed, extents=extents, size=volume.size,
        kind=plan.kind.value, dry_run=True, notes=notes,
    )  # fmt: skip


def retried(
    connect: Callable[[], Agent],
    work: Callable[[Agent], Receipt],
    report: Report,
    *,
    retries: int = RETRIES,
    wait: float = WAIT,
) -> Receipt:
    """Do some work with an agent; when its line fails, open another one and do it again."""
    tries = 0
    was_connected = False
    notes: list[str] = []
    while True:
        try:
            agent = connect()
            was_connected = True
            receipt = work(agent)
            receipt.notes[:0] = notes
            return receipt
        except LvmsyncError as error:
            if not was_connected or not _may_pass(error, tries) or tries >= retries:
                if tries:
                    error.add_note(f"it was tried {tries + 1} times; run it again to go on where it was")
                raise
            notes.append(f"the line failed and was opened again: {error}")
        report(Progress(f"trying again ({tries + 1} of {retries})", 0, None))
        time.sleep(wait * 2**tries)
        tries += 1


def _may_pass(error: LvmsyncError, tries: int) -> bool:
    """Tell whether trying again may help: the line failed, or the far side has not noticed yet that it did."""
    if isinstance(error, TargetBusy):
        return error.transient or tries > 0
    # The far side sees a line that was cut as a stream that was, and may be the first to tell.
    return error.transient or (isinstance(error, PeerError) and error.exit_code in _OF_THE_LINE)
