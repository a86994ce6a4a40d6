"""Combining members and letting points go. What is kept can be restored at every moment, whatever cuts this off.

Each combination is a member of its own before the catalogue that names it is made; what it replaces is removed after
that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lvmsync.chain.catalogue import REVERSE, Catalogue, Member
from lvmsync.chain.pruning import Merge, Plan
from lvmsync.chain.routes import list_restorable
from lvmsync.errors import ConflictError, DeviceError, FormatError, StreamError
from lvmsync.jobs.archive.members import Written, write_source
from lvmsync.jobs.archive.restore import open_merged
from lvmsync.jobs.archive.shelf import Shelf, new_commit
from lvmsync.jobs.archive.take import remove
from lvmsync.jobs.progress import Report, Stopwatch
from lvmsync.jobs.send import StreamOptions
from lvmsync.stream import frames


@dataclass
class Pruned:
    """What was done.

    Attributes:
        dropped: numbers of the points that went.
        combined: how many members became how many: a pair for each combination.
        read_bytes: bytes of the members that were combined.
        written_bytes: bytes of what they became.
        freed_bytes: bytes of all objects that were removed.
        seconds: it took.
        notes: what the user should know.
    """

    dropped: list[int] = field(default_factory=list)
    combined: list[int] = field(default_factory=list)
    read_bytes: int = 0
    written_bytes: int = 0
    freed_bytes: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def prune(shelf: Shelf, plan: Plan, options: StreamOptions, report: Report) -> Pruned:
    """Carry out a plan.

    Args:
        shelf: the archive.
        plan: of its catalogue, as it was read last.
        options: how combined members are written.
        report: takes the progress.

    Raises:
        ConflictError: somebody else changed what the plan is about; what was done until then holds.
        LvmsyncError: a member is damaged, or there is no room; what was done until then holds.
    """
    watch, done = Stopwatch(), Pruned()
    before = {one.id: one.number for one in shelf.catalogue.points}
    done.notes += shelf.remove_doomed()
    for merge in plan.merges:
        written = combine(shelf, merge, options, report)
        done.combined.append(len(merge.members))
        done.read_bytes += sum(one.stored for one in merge.members)
        done.written_bytes += written.member.stored
        _replace(shelf, merge.members, written, plan.dropped)
        done.freed_bytes += _stored(merge.members)
        done.notes += shelf.remove_doomed()
    if plan.removed or any(shelf.catalogue.find(point) for point in plan.dropped):
        _replace(shelf, plan.removed, None, plan.dropped)
        done.freed_bytes += _stored(plan.removed)
        done.notes += shelf.remove_doomed()
    done.dropped = [before[point] for point in plan.dropped if point in before]
    done.seconds = round(watch.seconds, 3)
    return done


def combine(shelf: Shelf, merge: Merge, options: StreamOptions, report: Report) -> Written:
    """Write what several members come to as one, which no catalogue names yet.

    Applying it is the same as applying them one after the other: the last that has a byte wins.
    """
    intent = frames.SNAPBACK if merge.way == REVERSE else None
    with _told_of_others(shelf, merge), open_merged(shelf, merge.members) as source:
        head = shelf.catalogue.find(merge.head)
        named = replace(source, name=(head and head.name) or source.name)
        return write_source(shelf.store, named, options, report, intent=intent)[0]


@contextmanager
def _told_of_others(shelf: Shelf, merge: Merge) -> Iterator[None]:
    """Let a failure that comes of members which somebody else has removed meanwhile be one of order.

    Raises:
        ConflictError: so it is.
    """
    try:
        yield
    except (DeviceError, StreamError, FormatError) as error:
        if set(merge.members) <= set(Shelf.open(shelf.store).catalogue.members):
            raise
        raise ConflictError(
            f"{shelf.store.name} was changed by somebody else just now, who has combined or pruned the same members;"
            " nothing was lost. Run it again",
            device=shelf.store.name,
        ) from error


def _replace(shelf: Shelf, old: Collection[Member], new: Written | None, dropped: Collection[str]) -> None:
    """Make the catalogue that has a new member in the place of others, and none of the points that only they led to."""
    names = {one.name for one in old}

    def edit(now: Catalogue) -> Catalogue:
        if new and any(one.name == new.member.name for one in now.members):
            return now  # an earlier try was not in vain
        if not names <= {one.name for one in now.members}:
            raise ConflictError(
                f"{shelf.store.name}: somebody else combined or removed members just now; run it again",
                device=shelf.store.name,
            )
        members = [one for one in now.members if one.name not in names]
        if new:
            members.append(new.member)
        changed = replace(now, members=tuple(members))
        # Until all is done, what is not kept stays as long as it can be restored.
        there = list_restorable(changed)
        is_last = new is None
        gone = {one for one in dropped if is_last or one not in there}
        could = list_restorable(now)
        lost = [one.number for one in now.points if one.id in could - there - gone]
        if lost:
            raise ConflictError(
                f"{shelf.store.name}: point #{lost[0]} could not be restored any more: was it taken just now? Run it"
                " again",
                device=shelf.store.name,
            )
        ends = {end for one in members for end in (one.base, one.head)}
        return now.successor(
            new_commit(),
            members=tuple(members),
            points=tuple(one for one in now.points if one.id not in gone or one.id in ends),
            doomed=(*now.doomed, *(name for one in old for name in one.objects)),
        )

    try:
        shelf.change(edit)
    except ConflictError:
        if new:
            remove(shelf, new)
        raise


def _stored(members: Collection[Member]) -> int:
    return sum(one.stored + one.index_stored for one in members)
