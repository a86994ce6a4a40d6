"""What is done about a migration that was cut off in its downtime, once somebody has looked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lvmsync.errors import ConflictError, LvmsyncError
from lvmsync.jobs.migrate.back import remember_way_back
from lvmsync.jobs.migrate.state import Journal, describe
from lvmsync.jobs.migrate.users import Users
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.record import find_record, open_record
from lvmsync.system.lvm import LogicalVolume


def abort(
    journal: Journal,
    unfence: Callable[[], None],
    users: Users,
    drop_way_back: Callable[[], None] | None = None,
    *,
    is_forced: bool,
) -> str:
    """Let the source be used again: writable, and its user started; return what was done.

    Args:
        journal: of the pair, locked; it was left by a migration that was cut off.
        unfence: makes the source usable.
        users: how its user is started again.
        drop_way_back: removes the snapshot of the target for a way back, if there is one; None: there cannot be.
        is_forced: somebody has looked, and nothing runs on the target.

    Raises:
        ConflictError: the target may be in use.
        LvmsyncError: a step failed; the journal stays.
    """
    note = journal.before
    assert note
    if note.may_run_there and not is_forced:
        raise ConflictError(describe(note), device=note.source)
    done = []
    if note.is_fenced:
        unfence()
        done.append("is writable again")
    if note.has_stopped and users.restart:
        try:
            users.restart()
        except LvmsyncError as error:
            error.add_note(f"{note.source} {' and '.join(done) or 'was never made read-only'}; run this again")
            raise
        done.append(f"its user was started again ({users.how_to_restart})")
    elif note.has_stopped:
        done.append("its user has to be started by you")
    journal.close()
    kept = f"what {note.target} got so far is kept"
    if note.may_have_way_back and drop_way_back:
        try:
            drop_way_back()  # what it holds, the source does
        except LvmsyncError as error:
            kept += (
                f", perhaps with a snapshot for a way back ({error}), which the next run removes; see 'lvmsync cleanup'"
                " there"
            )
    return f"{note.source}: {' and '.join(done) or 'it was never stopped'}; {kept}"


def finish(journal: Journal, take_leave: Callable[[], list[str]] | None = None) -> str:
    """Leave it where it runs now, on the target; return what was done.

    Args:
        journal: of the pair, locked; it was left by a migration that was cut off.
        take_leave: does what the end of the migration would have done with the source; returns what is left to do.

    Raises:
        ConflictError: the start command did not run, or failed, so nothing runs there.
    """
    note = journal.before
    assert note
    if not note.may_run_there:
        raise ConflictError(describe(note), device=note.source)
    left = take_leave() if take_leave and note.is_fenced else ["'lvmsync cleanup' tells of its snapshots"]
    journal.close()
    kept = "read-only" if note.is_fenced else "as it is"
    return "; ".join([f"{note.target} is in use now, and {note.source} stays {kept}", *left])


def take_leave(volume: LogicalVolume, place: str, state: Path, find_kept: Callable[[str], str]) -> list[str]:
    """Remember what the way back of a volume starts from, and remove our snapshots of it: nothing will change there.

    Args:
        volume: the source; it is fenced.
        place: the target as its user named it.
        state: the state folder of this machine.
        find_kept: returns the LVM id of the snapshot of the target that was kept for a replica (its id).

    Returns:
        What is left to do, a sentence each.
    """
    record = find_record(state, volume.id, place)
    if record is None:  # all was done
        return []
    left = []
    if volume.attr[1:2] != "r":
        left.append(f"{volume.full_name} was made writable since, so nothing is prepared for a way back")
    elif volume.number is not None:  # else it was remembered before it was taken away
        try:
            remember_way_back(volume, find_kept(record.id), state)
        except LvmsyncError as error:
            left.append(f"nothing is prepared for a way back ({error})")
    with open_record(state, record.source_id, record.source, record.target, record.id) as notebook:
        stuck = snapshots.remove(snapshots.list_kept(volume, record.id))
        if not stuck:
            notebook.forget()
    return left + stuck
