"""A change of a target that is whole or not at all. docs/crash-safety.md lists every durable write, in order.

`Transaction` is the way forward, `jobs.way_back` the way back: the same for an error, for Ctrl-C, and for ``recover``
after a power cut. The one commit point is the rename of the ledger's record in `commit` (of a group: that of its file).
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvmsync import __version__
from lvmsync.errors import DeviceError, LvmsyncError, SyncFailed
from lvmsync.history import UNNAMED, Point
from lvmsync.jobs.owing import owe
from lvmsync.jobs.progress import Progress, Report
from lvmsync.jobs.traces import Traces
from lvmsync.jobs.way_back import can_go_back, cut_back, find_place, go_back, remove_undo
from lvmsync.jobs.window import SMALLEST
from lvmsync.stream.frames import FULL, SNAPBACK, Changes, Data, End, Frame, Header, Hole, Mark, Sample, Zero
from lvmsync.system import record as records
from lvmsync.system import seen
from lvmsync.system.applied import AppliedNote, Place
from lvmsync.system.ledger import Ledger
from lvmsync.system.space import free_bytes
from lvmsync.system.traces import TraceNote, read_traces
from lvmsync.targets.block import BlockTarget
from lvmsync.targets.durable import DurableFile
from lvmsync.targets.snapback import Snapback

WINDOW = 32 << 20
"""Bytes that are saved, made durable and then overwritten together, at the most."""
_RESUMABLE_WINDOW = 1 << 20
_RESUMED_WINDOW = 64 << 10  # what was broken off once may be again, and more often than these are worth their syncs

_NEW_WAY = "nothing was written. Make room, or put it elsewhere with --snapback or --state, or go without: --no-undo"


@dataclass(frozen=True)
class Undo:
    """How a transaction can be undone.

    Attributes:
        wanted: save what is overwritten; else the target is dirty until the END.
        snapback: where to keep what is saved after the commit; None: it is dropped.
    """

    wanted: bool
    snapback: Path | None


@dataclass(frozen=True)
class Terms:
    """How a transaction may end.

    Attributes:
        resumable: a stream that is cut may be gone on with.
        group: id of the group that it is committed with; None: it is committed alone.
        written: whether the target was written to since its point was committed; see `system.seen`.
        window: bytes that the sender lets be on their way; None: any number.
    """

    resumable: bool = False
    group: str | None = None
    written: seen.Written = "unknown"
    window: int | None = None


class Transaction:
    """One receive's changes of one target, from the first durable note of it to its commit.

    Attributes:
        id: a random word.
        before: the point that going back leads to.
        after: the point that the target will be at.
        is_running: the target may be changed by now.
        is_ending: it may be committed, or prepared, by now: there is no way back but that of ``recover``.
    """

    def __init__(
        self,
        target: BlockTarget,
        ledger: Ledger,
        header: Header,
        version: int,
        undo: Undo,
        terms: Terms = Terms(),  # frozen
        *,
        is_open: bool = False,
    ) -> None:
        """Prepare in memory; nothing is written before `stage`, `start` or `go_on`.

        Args:
            is_open: it is the one that is open in the ledger, as it also is if ``header`` goes on with that. Any other
                takes the place of what is open, once it begins.

        The others are as their types have it.
        """
        self._target = target
        self._ledger = ledger
        self._header = header
        self._version = version
        self._undo = undo
        self._terms = terms
        self._file: DurableFile | None = None
        self._out: BlockTarget | Snapback = target
        self._applied: AppliedNote | None = None
        self._traces: Traces | None = Traces() if version == 4 else None  # PROTO[3] may name a place twice
        self._archive: str | None = None
        self._lead: Point | None = None
        self._is_lead_needed = True
        self._window: list[Changes] = []  # has come, and is not written yet
        self._is_writing = False
        self._place = Place(0, 0)  # up to where all changes are written
        self.is_running = False
        self.is_ending = False
        note = ledger.record.transaction
        self._replaces = None if is_open or header.resume is not None else note
        self._note_before = None if self._replaces else note  # that is taken up again
        self.id = self._note_before.id if self._note_before else uuid.uuid4().hex
        self.before = ledger.record.point or header.base or Point(f"{UNNAMED}{uuid.uuid4().hex}")
        self._names = ledger.record.names
        if self._note_before and self._note_before.before:
            self.before = self._note_before.before
        self.after = header.head or Point(f"{UNNAMED}{self.id}", parent=self.before.id, time=_now())

    @property
    def archive(self) -> str | None:
        """The archive that has what was overwritten, or is owed it; None: there is none."""
        return self._note_before.archive if self._note_before else self._archive

    @property
    def is_holding(self) -> bool:
        """Whether changes have come that are not written yet."""
        return bool(self._window)

    @property
    def spool(self) -> Path:
        """Where the stream is staged."""
        return self._ledger.path(self.id, "spool")

    @property
    def spool_check(self) -> Path:
        """How much of the spool counts."""
        return self._ledger.path(self.id, "spool-check")

    def keep_for(self, archive: str, before: Point | None, *, is_needed: bool) -> None:
        """Let an archive have what is overwritten, once it is committed.

        Args:
            archive: where it lies.
            before: the point of that archive which this leads back to; None: to none that is known.
            is_needed: the archive is to have it though nothing was changed.
        """
        self._archive, self._lead, self._is_lead_needed = archive, before, is_needed
        if before:
            self.before = before

    def make(self, size: int) -> None:
        """Give a target that was made for this its size, once a durable note says that it may be removed."""
        self._note(phase="staging")
        self._target.resize(size)

    def stage(self, frames: Iterator[Frame], report: Report) -> None:
        """Stage a whole stream in the spool, durably, before the target is touched."""
        need = self._header.changed_bytes or 0
        require_space(self._ledger.folder, need, "nothing was written. Make room, or go without --atomic")
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
        self._note(phase="staged", spool_size=spool.durable)

    def start(self) -> None:
        """Make the way back, then note durably that the target is being changed."""
        path = None
        if self._undo.wanted:
            path = (self._undo.snapback or self._ledger.path(self.id, "undo")).absolute()
            self._require_undo_space(path.parent)
            self._file = DurableFile(path, self._ledger.path(self.id, "undo-check"), self._way_back(), self._version)
            self._out = self._saving(self._file)
            self._place = Place(0, self._file.durable)
        self._open_applied()
        # If this fails the note may be there all the same, so the undo must be, too: `roll_back` removes what there is.
        self._note(phase="applying", undo=str(path) if path else None, undo_size=self._place.undo_size)
        self.is_running = True

    def go_on(self, report: Report, check: Callable[[], None] = lambda: None) -> None:
        """Take the open transaction up again, at the very place where it stands; the header names that.

        Args:
            report: takes the progress.
            check: called when nothing but the changes below that place is on the target; what it raises ends this,
                and leaves the transaction open.
        """
        note = self._ledger.record.transaction
        assert note is not None
        self._place = find_place(self._ledger.record, self._ledger.folder, seen.life(self._target.fd))
        assert self._place.offset == self._header.resume
        if note.undo:
            self._require_undo_space(Path(note.undo).parent, "make room, and run the same sync again to go on")
        self._open_applied()
        # A killed run may have written without a sync. From here on a crash finds the target changed up to that place;
        # what lies past it counts as old, though it is not before it was written back.
        self._target.sync()
        is_proved = note.is_proved and self._terms.written == "no"
        look = note.seen if is_proved or not note.is_proved else None
        note = replace(note, **self._place._asdict(), is_proved=is_proved, seen=look)
        self._ledger.write_ahead(transaction=note, seen=None)
        if note.undo:
            self._file = cut_back(self._target, self._ledger, self._place.offset, report)
            self._out = self._saving(self._file)
        try:
            check()
        except BaseException:
            self._close()
            raise
        self.is_running = True

    def apply(self, frames: Iterator[Frame], report: Report) -> End:
        """Apply frames up to the END, windows of them at a time, each saved before it is overwritten.

        Returns the END; nothing is committed yet.
        """
        size = done = flushed = 0
        report(Progress("receiving", 0, self._header.changed_bytes))
        limit = self._window_bytes()
        for frame in frames:
            if isinstance(frame, (Data, Zero, Hole)):
                self._window.append(frame)
                size += frame.changed_bytes
                if size < limit:
                    continue
            if self._window:
                self._write_window()
                done += size
                if done - flushed >= WINDOW:
                    flushed = done
                    self._target.start_writeback()
                size = 0
                report(Progress("receiving", done, self._header.changed_bytes))
            if isinstance(frame, Mark):
                self._mark(frame)
            elif isinstance(frame, End):
                return frame
        raise AssertionError("frames always end with an END or an error")

    def commit(self) -> None:
        """Make the target durable, finish the snapback, and commit."""
        is_same = self._file is not None and not self._file.changed_bytes and self._terms.written != "yes"
        known = self._header.names if self._header.intent == SNAPBACK else ()
        self._finish()
        self.is_ending = True
        # The commit point: before this rename a crash means going back, after it the change stands.
        self._ledger.write(
            transaction=None,
            dirty=False,
            point=self.after,
            size=self._target.size,
            held=self._held_bytes(),
            seen=seen.look_when_settled(self._target.fd),
            made=False,
            traces=self._find_traces(),
            group=None,
            **owe(self._ledger.record, self._target.size, is_same=is_same, is_needed=self._is_lead_needed, known=known),
        )
        self._ledger.sweep()

    def prepare(self) -> None:
        """Make the target and its way back durable, and leave the commit to `jobs.prepared`."""
        undo_size = self._finish()
        note = self._ledger.record.transaction
        assert note is not None
        self.is_ending = True
        self._ledger.write(
            transaction=replace(
                note,
                phase="prepared",
                group=self._terms.group,
                held=self._held_bytes(),
                offset=self._place.offset,
                undo_size=undo_size,
                traces=self._find_traces(),
            ),
            seen=seen.look_when_settled(self._target.fd),
        )

    def stop(self) -> None:
        """Leave the transaction open, to be gone on with where it stands now: everything that has come is kept.

        Raises:
            SyncFailed: what has come since the last mark cannot be made durable.
        """
        if self._window and not self._is_writing:
            with contextlib.suppress(LvmsyncError):  # what is written of it has been saved, and will be written back
                self._write_window()
        if self._traces:
            self._traces.sync()
        self._close()
        note = self._ledger.record.transaction
        assert note is not None
        try:
            self._target.sync()
        except SyncFailed:
            self._ledger.write(dirty=True)
            raise
        look = seen.look_when_settled(self._target.fd)
        self._ledger.write(transaction=replace(note, **self._place._asdict()), seen=look)

    def roll_back(self, report: Report) -> bool:
        """Bring the target back after an error; return whether that was possible.

        Raises:
            LvmsyncError: going back failed; the transaction stays open for ``recover``.
        """
        file = self._file
        self._close()
        self._target.before_write = lambda frame: None  # whatever there is room for: this only gives room back
        note = self._ledger.record.transaction
        if note is None or note.id != self.id:  # it had not begun
            if file:
                remove_undo(self._ledger, self.id, file.path)
            self._ledger.sweep()
            if self._target.created:
                self._target.remove()
            return True
        if not can_go_back(note):
            return False
        go_back(self._target, self._ledger, report, "no")
        return True

    def _window_bytes(self) -> int:
        """Return how many bytes are saved together: where a killed run would have to send them again, few."""
        if not self._file:
            return 0
        if not self._terms.resumable:
            return WINDOW
        least = _RESUMABLE_WINDOW if self._header.resume is None else _RESUMED_WINDOW
        usual = min(max((self._header.changed_bytes or 0) >> 10, least), WINDOW)
        # A sender that waits for us must not have to wait for what we wait for.
        return usual if self._terms.window is None else min(usual, max(self._terms.window, SMALLEST) // 2)

    def _saving(self, file: DurableFile) -> Snapback:
        return Snapback(self._target, file, self._version, self._trace)

    def _trace(self, frame: Changes, old: Changes | None = None) -> None:
        if self._traces:
            self._traces.take(frame, old)

    def _find_traces(self) -> tuple[Sample, ...]:
        """Return the traces of all that was changed; where nothing was, those of the last time are as good."""
        if self._traces is None:
            return ()
        return self._ledger.record.traces if self._traces.is_empty else self._traces.choose()

    def _write_window(self) -> None:
        self._is_writing = True
        if not self._file:
            for frame in self._window:
                self._trace(frame)
        self._out.write(self._window)
        self._place = Place(int(self._window[-1].table[-1].sum()), self._file.durable if self._file else 0)
        if self._applied:
            self._applied.write(self._place)
        self._window = []
        self._is_writing = False

    def _mark(self, mark: Mark) -> None:
        self._target.sync()
        if self._traces:
            self._traces.sync()
        self._note(extents=mark.extents, changed_bytes=mark.changed_bytes, **self._place._asdict())

    def _finish(self) -> int:
        """Make the target and the undo whole and durable; return the bytes of the undo."""
        self._target.sync()
        size = 0
        if self._file:
            self._file.finish()
            size = self._file.durable
        self._close()
        return size

    def _close(self) -> None:
        for file in (self._file, self._applied, self._traces):
            if file:
                file.close()
        self._file = self._applied = None

    def _open_applied(self) -> None:
        """Open the note of how far the target is changed, which is from now on where this transaction stands."""
        if self._terms.resumable:
            self._applied = AppliedNote(self._ledger.path(self.id, "progress"), seen.life(self._target.fd))
            self._applied.write(self._place)
            path = self._ledger.path(self.id, "traces")
            self._traces = Traces(TraceNote(path), read_traces(path, self._place.offset))

    def _require_undo_space(self, folder: Path, way: str = _NEW_WAY) -> None:
        # A sparse image has nothing to save where it has holes.
        need = min(self._header.changed_bytes or 0, self._target.allocated) + (self._header.extents or 0) * 16
        require_space(folder, need, way)

    def _held_bytes(self) -> int | None:
        """Return how much of the target its new point is about: of a larger source the rest was dropped."""
        header, size = self._header, self._target.size
        held = size if header.size is not None and header.size > size else None
        known = self._ledger.record.held
        if known is None or header.intent == FULL or header.source == "compare":
            return held
        return known if held is None else min(held, known)  # a delta does not bring what an earlier one has dropped

    def _note(self, **changes: Any) -> None:
        """Write the transaction into the ledger, durably, before it goes on."""
        note = self._ledger.record.transaction
        if note is not None and note.id == self.id:
            self._ledger.write_ahead(transaction=replace(note, **changes))
            return
        record, header, terms = self._ledger.record, self._header, self._terms
        # What cannot be undone leaves what nobody knows, and this one's way back leads there.
        is_spoilt = self._replaces is not None and not can_go_back(self._replaces)
        first = records.Transaction(
            self.id,
            snapback=str(self._undo.snapback.absolute()) if self._undo.snapback else None,
            created=self._target.created or (self._replaces is not None and self._replaces.created),
            began=_now(),
            point=self.after,
            base=header.base,
            intent=header.intent,
            size=header.size,
            resumable=terms.resumable,
            group=terms.group,
            is_proved=terms.written == "no",
            was_dirty=record.dirty or is_spoilt,
            archive=self._archive,
            before=self._lead,
            seen=None if terms.written == "unknown" else record.seen,
        )
        made = record.made and not is_spoilt
        self._ledger.write_ahead(transaction=replace(first, **changes), seen=None, made=made)

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
            names=tuple(one for one in self._names if one != self.before.id) if self.before.id in self._names else (),
        )


def require_space(folder: Path, need: int, way: str) -> None:
    """Raise DeviceError unless ``folder`` has room for ``need`` bytes; ``way`` says what was done and what to do."""
    free = free_bytes(folder)
    if need > free:
        raise DeviceError(f"{folder} has {free} bytes free, and up to {need} are needed; {way}", device=str(folder))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
