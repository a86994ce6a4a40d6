"""A change of a target that is whole or not at all. docs/crash-safety.md lists every durable write, in order.

`Transaction` is the way forward, `go_back` the way back: the same for an error, for Ctrl-C, and for
``recover`` after a power cut. The one commit point is the rename of the ledger's record in `commit`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvmsync import __version__
from lvmsync.errors import DeviceError, VerifyError
from lvmsync.history import UNNAMED, Point
from lvmsync.jobs.progress import Progress, Report
from lvmsync.stream.frames import FULL, SNAPBACK, Changes, Data, End, Frame, Header, Hole, Mark, Zero
from lvmsync.system import ledger as ledgers
from lvmsync.system.applied import read_applied
from lvmsync.system.ledger import Ledger, remove_file
from lvmsync.targets.block import BlockTarget
from lvmsync.targets.durable import DurableFile, read_durable
from lvmsync.targets.snapback import Snapback

WINDOW = 32 << 20
"""Bytes that are saved, made durable and then overwritten together."""


@dataclass(frozen=True)
class Undo:
    """How a transaction can be undone.

    Attributes:
        wanted: save what is overwritten; else the target is dirty until the END.
        snapback: where to keep what is saved after the commit; None: it is dropped.
    """

    wanted: bool
    snapback: Path | None


class Transaction:
    """One receive's changes of one target, from the first durable note of it to its commit."""

    def __init__(self, target: BlockTarget, ledger: Ledger, header: Header, version: int, undo: Undo) -> None:
        """Prepare in memory; nothing is written before `stage` or `start`."""
        self._target = target
        self._ledger = ledger
        self._header = header
        self._version = version
        self._undo = undo
        self._file: DurableFile | None = None
        self._out: BlockTarget | Snapback = target
        staged = ledger.record.transaction  # when a staged stream is taken up again
        self.id = staged.id if staged else uuid.uuid4().hex
        self.before = ledger.record.point or header.base or Point(f"{UNNAMED}{uuid.uuid4().hex}")
        self.after = header.head or Point(f"{UNNAMED}{self.id}", parent=self.before.id, time=_now())

    @property
    def spool(self) -> Path:
        """Where the stream is staged."""
        return self._ledger.path(self.id, "spool")

    @property
    def spool_check(self) -> Path:
        """How much of the spool counts."""
        return self._ledger.path(self.id, "spool-check")

    def make(self, size: int) -> None:
        """Give a target that was made for this its size, once a durable note says that it may be removed."""
        self._note(phase="staging")
        self._target.resize(size)

    def stage(self, frames: Iterator[Frame], report: Report) -> None:
        """Stage a whole stream in the spool, durably, before the target is touched."""
        require_space(self._ledger.folder, self._header.changed_bytes or 0, "go without --atomic")
        self._note(phase="staging", spool=str(self.spool))
        # What is past a smaller target's end is not staged, so the header's counts need not be those of the spool.
        header = replace(self._header, extents=None, changed_bytes=None)
        spool = DurableFile(self.spool, self.spool_check, header, self._version)
        try:
            for frame in frames:
                if isinstance(frame, (Data, Zero, Hole)):
                    spool.save(frame)
                    report(Progress("staging", spool.changed_bytes, self._header.changed_bytes))
                elif isinstance(frame, Mark):
                    spool.sync()
                elif isinstance(frame, End):
                    spool.finish()
        finally:
            spool.close()
        self._note(phase="staged")

    def start(self) -> None:
        """Make the way back, then note durably that the target is being changed."""
        path = None
        if self._undo.wanted:
            path = (self._undo.snapback or self._ledger.path(self.id, "undo")).absolute()
            # A sparse image has nothing to save where it has holes.
            need = min(self._header.changed_bytes or 0, self._target.allocated) + (self._header.extents or 0) * 16
            require_space(path.parent, need, "put it elsewhere with --snapback or --state, or go without: --no-undo")
            self._file = DurableFile(path, self._ledger.path(self.id, "undo-check"), self._way_back(), self._version)
            self._out = Snapback(self._target, self._file, self._version)
        # If this fails the note may be there all the same, so the undo must be, too: `roll_back` removes both.
        self._note(phase="applying", undo=str(path) if path else None)

    def apply(self, frames: Iterator[Frame], report: Report) -> End:
        """Apply frames up to the END, windows of them at a time, each saved before it is overwritten.

        Returns the END; nothing is committed yet.
        """
        window: list[Changes] = []
        size = done = flushed = 0
        limit = WINDOW if self._file else 0
        for frame in frames:
            if isinstance(frame, (Data, Zero, Hole)):
                window.append(frame)
                size += frame.changed_bytes
                if size < limit:
                    continue
            if window:
                self._out.write(window)
                done += size
                if done - flushed >= WINDOW:
                    flushed = done
                    self._target.start_writeback()
                window, size = [], 0
                report(Progress("receiving", done, self._header.changed_bytes))
            if isinstance(frame, Mark):
                self._mark(frame)
            elif isinstance(frame, End):
                return frame
        raise AssertionError("frames always end with an END or an error")

    def commit(self) -> None:
        """Make the target durable, finish the snapback, and commit."""
        self._target.sync()
        if self._file:
            self._file.finish()
            self._file.close()
            self._file = None
        # The commit point: before this rename a crash means going back, after it the change stands.
        self._ledger.write(
            transaction=None, dirty=False, point=self.after, size=self._target.size, held=self._held_bytes()
        )
        self._ledger.sweep()

    def _held_bytes(self) -> int | None:
        """Return how much of the target its new point is about: of a larger source the rest was dropped."""
        header, size = self._header, self._target.size
        held = size if header.size is not None and header.size > size else None
        known = self._ledger.record.held
        if known is None or header.intent == FULL or header.source == "compare":
            return held
        return known if held is None else min(held, known)  # a delta does not bring what an earlier one has dropped

    def roll_back(self, report: Report) -> bool:
        """Bring the target back after an error; return whether that was possible.

        Raises:
            LvmsyncError: going back failed; the transaction stays open for ``recover``.
        """
        if self._file:
            self._file.close()
            self._file = None
        note = self._ledger.record.transaction
        if note is None:
            if self._target.created:
                self._target.remove()
            return True
        if not can_go_back(note):
            return False
        go_back(self._target, self._ledger, report)
        return True

    def _mark(self, mark: Mark) -> None:
        self._target.sync()
        self._note(extents=mark.extents, changed_bytes=mark.changed_bytes)

    def _note(self, **changes: Any) -> None:
        """Write the transaction into the ledger, durably."""
        note = self._ledger.record.transaction or ledgers.Transaction(
            self.id,
            snapback=str(self._undo.snapback.absolute()) if self._undo.snapback else None,
            created=self._target.created,
            began=_now(),
            point=self.after,
        )
        self._ledger.write(transaction=replace(note, **changes))

    def _way_back(self) -> Header:
        return Header(
            size=self._target.size,
            source=self._header.source,
            name=self._target.name,
            base=self.after,
            head=self.before,
            host=os.uname().nodename,
            time=_now(),
            version=__version__,
            intent=SNAPBACK,
            stream=self.id,
        )


def can_go_back(note: ledgers.Transaction) -> bool:
    """Tell whether an open transaction can be undone: it has an undo, made its target, or did not touch it yet."""
    return note.phase != "applying" or note.created or note.undo is not None


def find_offset(record: ledgers.Record, folder: Path, life: str) -> int:
    """Return up to which byte of the device all changes of the open transaction have been applied to the target.

    Args:
        record: of the target.
        folder: of its ledger entry.
        life: of the target (see `system.seen.life`); empty where it is not there.
    """
    note = record.transaction
    assert note is not None
    if record.dirty:  # a sync failed: only what an earlier one has made durable counts
        return note.offset
    return max(note.offset, read_applied(folder / f"{note.id}.progress", life))


def go_back(target: BlockTarget, ledger: Ledger, report: Report) -> None:
    """Bring the target back to before the open transaction. May be cut off at any moment and done again.

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
    restore(target, ledger, report)
    if note.created:
        target.remove()
    # After this there is no transaction; a crash before it comes back to the lines above.
    ledger.write(transaction=None, dirty=False)
    ledger.sweep()


def restore(target: BlockTarget, ledger: Ledger, report: Report) -> None:
    """Write everything that the open transaction has overwritten back, durably, and drop its undo file."""
    note = ledger.record.transaction
    assert note is not None
    if note.phase == "applying" and note.undo:
        done = 0
        # No byte is in it twice, so the order does not matter, nor does a second time.
        for frame in read_durable(Path(note.undo), ledger.path(note.id, "undo-check")):
            if not isinstance(frame, Header):
                target.write([frame])
                done += frame.changed_bytes
                report(Progress("rolling back", done, None))
        target.sync()
    if note.undo:
        # First the note, then the file: without a file there must be no note that needs it.
        ledger.write(transaction=replace(note, phase="undone"))
        _remove_undo(ledger, note.id, Path(note.undo))


def forget_unnoted(ledger: Ledger) -> None:
    """Remove an undo file that a crash has left of a staged transaction before a note spoke of it: nothing needs it."""
    note = ledger.record.transaction
    assert note is not None
    path = ledger.path(note.id, "undo")
    if note.snapback and ledger.path(note.id, "undo-check").exists():  # made before the file that it is the check of
        path = Path(note.snapback)
    _remove_undo(ledger, note.id, path)


def _remove_undo(ledger: Ledger, transaction: str, path: Path) -> None:
    remove_file(path)  # durably: a snapback that is whole must not come back
    remove_file(ledger.path(transaction, "undo-check"))


def require_space(folder: Path, need: int, instead: str) -> None:
    """Raise DeviceError unless ``folder`` has room for ``need`` bytes."""
    try:
        state = os.statvfs(folder)
    except OSError as error:
        raise DeviceError(f"cannot use {folder}: {error.strerror}", device=str(folder)) from error
    free = state.f_bavail * state.f_frsize
    if need > free:
        raise DeviceError(
            f"{folder} has {free} bytes free, and up to {need} are needed; nothing was written. Make room, or"
            f" {instead}",
            device=str(folder),
        )


def read_spool(path: Path, check: Path) -> Iterator[Frame]:
    """Yield the changes of a staged stream, proved, and an END behind them."""
    extents = changed = 0
    for frame in read_durable(path, check):
        if not isinstance(frame, Header):
            extents += len(frame.table)
            changed += frame.changed_bytes
            yield frame
    yield End(extents, changed)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
