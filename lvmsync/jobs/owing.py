"""What a commit leaves in the ledger for archives: which points are one state, and what an archive is to be given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lvmsync.system.record import Owed, Record

_MOST_NAMES = 16  # of one state: the oldest count, since an archive has those


def owe(
    record: Record, size: int, *, is_same: bool, is_needed: bool = True, known: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the fields of the record that change with the commit of its open transaction.

    Args:
        record: of the target, before that.
        size: bytes of the target.
        is_same: nothing was changed.
        is_needed: an archive is to have what leads back even then.
        known: other ids of the state that the target is brought to.
    """
    note = record.transaction
    assert note is not None
    assert note.point is not None
    names = [note.point.id, *known]
    if is_same and not record.dirty and not note.was_dirty:
        names += [*([note.before.id] if note.before else []), *record.names]
    owed = record.owed
    is_there = note.before is not None and (
        note.before.id == note.point.id or (note.before.id in names and not is_needed)
    )
    if note.archive is not None and not is_there:
        owed = (*owed, Owed(note.id, note.archive, note.point, note.before, size))
    same = tuple(dict.fromkeys(names))[:_MOST_NAMES]
    return {"owed": owed, "same": same if len(same) > 1 else ()}
