"""The way back: what a transaction has overwritten is written back, all of it, or what lies past a place.

The same for an error, for Ctrl-C, for ``recover`` after a power cut, and for a stream that goes on.
docs/crash-safety.md lists every durable write, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lvmsync.errors import VerifyError
from lvmsync.jobs.progress import Progress, Report
from lvmsync.stream.frames import Changes, Header, Sample
from lvmsync.system import record as records
from lvmsync.system import seen
from lvmsync.system.applied import Place, read_applied
from lvmsync.system.ledger import Ledger, remove_file
from lvmsync.targets.block import BlockTarget
from lvmsync.targets.durable import DurableFile, find_edge, read_durable, read_tables

_CHANGED = ("applying", "prepared", "undoing")
"""Phases in which the target may not be what it was."""
_UNTOUCHED = ("staging", "staged")


def can_go_back(note: records.Transaction) -> bool:
    """Tell whether an open transaction can be undone: it has an undo, made its target, or did not touch it yet."""
    return note.phase not in _CHANGED or note.created or note.undo is not None


def find_place(record: records.Record, folder: Path, life: str) -> Place:
    """Return up to where all changes of the open transaction have been applied to the target.

    Args:
        record: of the target.
        folder: of its ledger entry.
        life: of the target (see `system.seen.life`); empty where it is not there.
    """
    note = record.transaction
    assert note is not None
    durable = Place(note.offset, note.undo_size)
    if record.dirty:  # a sync failed: only what an earlier one has made durable counts
        return durable
    return max(durable, read_applied(folder / f"{note.id}.progress", life))


def go_back(target: BlockTarget, ledger: Ledger, report: Report, written: seen.Written = "unknown") -> None:
    """Bring the target back to before the open transaction. May be cut off at any moment and done again.

    Args:
        target: claimed.
        ledger: of the target.
        report: takes the progress.
        written: whether somebody else has written to the target since the transaction began. If so, what it holds
            where the transaction changed nothing is not known, and no point is any more.

    Raises:
        VerifyError: there is no way back, or the undo file is damaged.
    """
    note = ledger.record.transaction
    assert note is not None
    if not can_go_back(note):
        raise VerifyError(
            f"{target.name} was being changed without an undo when the transaction of {note.began} broke off: there"
            f" is no way back. Do not use it; run 'lvmsync recover --accept {target.name}' and send the same changes,"
            " or the whole, again",
            device=target.name,
        )
    restore(target, ledger, report, written)
    if note.created:
        target.remove()
    # Who else may have written meanwhile is not known. If somebody had before, that still shows.
    look = None if note.is_proved and note.phase not in _UNTOUCHED else note.seen
    if written == "no" and note.is_proved and not note.created:
        look = seen.look_when_settled(target.fd)
    # After this there is no transaction; a crash before it comes back to the lines above.
    known: dict[str, Any] = {"point": None, "traces": (), "group": None} if written == "yes" else {}
    ledger.write(transaction=None, dirty=note.was_dirty, seen=look, **known)
    ledger.sweep()


def restore(target: BlockTarget, ledger: Ledger, report: Report, written: seen.Written = "unknown") -> None:
    """Write everything that the open transaction has overwritten back, durably, and drop its undo file.

    Args:
        target, ledger, report, written: as of `go_back`.
    """
    note = ledger.record.transaction
    assert note is not None
    if note.phase in _CHANGED and note.undo:
        done = 0
        # No byte is in it twice, so the order does not matter, nor does a second time.
        for frame in _read_undo(target, ledger):
            if isinstance(frame, Header):  # all is proved
                _require_size(target, note, frame)
                # From here on it cannot be gone on with, and that we write to it ourselves is no sign of anybody else.
                look = ledger.record.seen if written == "yes" else None
                ledger.write(transaction=replace(note, phase="undoing"), seen=look)
            else:
                target.write([frame])
                done += frame.changed_bytes
                report(Progress("rolling back", done, None))
        target.sync()
    if note.undo:
        # First the note, then the file: without a file there must be no note that needs it.
        ledger.write(transaction=replace(note, phase="undone"))
        remove_undo(ledger, note.id, Path(note.undo))


def _require_size(target: BlockTarget, note: records.Transaction, header: Header) -> None:
    """Refuse to go back on a target that was made smaller meanwhile: what it has lost is not in the undo."""
    if header.size is not None and target.size < header.size and not note.created:
        raise VerifyError(
            f"{target.name} had {header.size} bytes when the transaction of {note.began} began, and has {target.size}"
            " now: what it has lost cannot be brought back; nothing was written. Give it its size back, if what was"
            f" there is known to be so, or run 'lvmsync recover --accept {target.name}' and copy it anew",
            device=target.name,
        )


def prove_undo(target: BlockTarget, ledger: Ledger) -> None:
    """Find out whether what the open transaction has overwritten can be written back.

    Raises:
        VerifyError: the undo file is damaged, or the target is smaller now.
        DeviceError: the undo file is gone, or cannot be read.
    """
    note = ledger.record.transaction
    if note and note.phase in _CHANGED and note.undo:
        header = next(_read_undo(target, ledger))
        assert isinstance(header, Header)
        _require_size(target, note, header)


def _read_undo(target: BlockTarget, ledger: Ledger) -> Iterator[Header | Changes]:
    """Yield header and changes of the open transaction's undo, all of it being proved."""
    note = ledger.record.transaction
    assert note is not None
    assert note.undo is not None
    # Also what was written behind a failed sync had been saved before.
    applied = read_applied(ledger.path(note.id, "progress"), seen.life(target.fd))
    least = max(note.undo_size, applied.undo_size)
    yield from read_durable(Path(note.undo), ledger.path(note.id, "undo-check"), least)


def cut_back(target: BlockTarget, ledger: Ledger, offset: int, report: Report) -> DurableFile:
    """Bring the target and the undo of the open transaction to exactly ``offset``, and return the undo, to go on with.

    What lies past it is old again, and is not in the undo any more. The ledger must say already that the target is
    changed up to there and no further. May be cut off at any moment and done again.

    Raises:
        VerifyError: the undo file is damaged.
    """
    note = ledger.record.transaction
    assert note is not None
    assert note.undo is not None
    undo, check = Path(note.undo), ledger.path(note.id, "undo-check")
    done = 0
    with find_edge(undo, check, offset, note.undo_size) as edge:
        for frame in edge.behind:
            if int(frame.table[0, 0]) < offset:  # they ascend, so this is the first, and nothing was written yet
                raise VerifyError(
                    f"{undo} has saved bytes on both sides of byte {offset} at once, where the transaction should"
                    f" stand: it cannot go on; run 'lvmsync recover {target.name}'",
                    device=target.name,
                )
            target.write([frame])
            done += frame.changed_bytes
            report(Progress("rolling back", done, None))
    target.sync()
    return DurableFile.reopen(undo, check, ledger.path(note.id, "undo-check-new"), edge)


def find_saved(note: records.Transaction, samples: Iterable[Sample]) -> set[Sample]:
    """Return those samples whose bytes, or some of them, are in the undo of an open transaction."""
    order = sorted(samples)
    offsets = np.array([one.offset for one in order], np.int64)
    ends = np.array([one.offset + one.length for one in order], np.int64)
    is_saved = np.zeros(len(order), bool)
    assert note.undo is not None
    for table in read_tables(Path(note.undo)):
        starts, stops = table[:, 0].astype(np.int64), table.sum(axis=1).astype(np.int64)
        # They ascend: the first extent that ends behind a sample's begin is the one that it could be in.
        at = np.searchsorted(stops, offsets, side="right")
        is_saved |= (at < len(starts)) & (starts[np.minimum(at, len(starts) - 1)] < ends)
    return {one for one, saved in zip(order, is_saved.tolist(), strict=True) if saved}


def forget_unnoted(ledger: Ledger) -> None:
    """Remove an undo file that a crash has left of a staged transaction before a note spoke of it: nothing needs it."""
    note = ledger.record.transaction
    assert note is not None
    path = ledger.path(note.id, "undo")
    if note.snapback and ledger.path(note.id, "undo-check").exists():  # made before the file that it is the check of
        path = Path(note.snapback)
    remove_undo(ledger, note.id, path)


def remove_undo(ledger: Ledger, transaction: str, path: Path) -> None:
    """Remove the undo file at ``path``, and then its check file, durably."""
    remove_file(path)  # durably: a snapback that is whole must not come back
    remove_file(ledger.path(transaction, "undo-check"))
