"""What is done about a migration that was cut off in its downtime, once somebody has looked."""

from __future__ import annotations

from collections.abc import Callable

from lvmsync.errors import ConflictError, LvmsyncError
from lvmsync.jobs.migrate.state import Journal, describe
from lvmsync.jobs.migrate.users import Users


def abort(journal: Journal, unfence: Callable[[], None], users: Users, *, is_forced: bool) -> str:
    """Let the source be used again: writable, and its user started; return what was done.

    Args:
        journal: of the pair, locked; it was left by a migration that was cut off.
        unfence: makes the source usable.
        users: how its user is started again.
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
    if note.may_have_way_back:
        kept += ", perhaps with a snapshot for a way back, which the next run removes; see 'lvmsync cleanup' there"
    return f"{note.source}: {' and '.join(done) or 'it was never stopped'}; {kept}"


def finish(journal: Journal) -> str:
    """Leave it where it runs now, on the target; return what was done.

    Raises:
        ConflictError: the start command did not run, or failed, so nothing runs there.
    """
    note = journal.before
    assert note
    if not note.may_run_there:
        raise ConflictError(describe(note), device=note.source)
    journal.close()
    kept = "read-only" if note.is_fenced else "as it is"
    return f"{note.target} is in use now; {note.source} stays {kept}, and 'lvmsync cleanup' tells of its snapshots"
