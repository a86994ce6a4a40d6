"""Take a stream and apply it to a target: checked before the first write, undone unless it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lvmsync.errors import DeviceError, LvmsyncError, StreamError, SyncFailed, UsageError
from lvmsync.jobs.background import in_background
from lvmsync.jobs.headroom import require_headroom
from lvmsync.jobs.keeping import Keeper, check_archive, open_keeper
from lvmsync.jobs.prepared import settle
from lvmsync.jobs.progress import Receipt, Report, Stopwatch
from lvmsync.jobs.receive_checks import Checks
from lvmsync.jobs.spool import read_spool
from lvmsync.jobs.transaction import Terms, Transaction, Undo
from lvmsync.jobs.way_back import can_go_back
from lvmsync.stream.frames import FULL, Abort, Data, End, Frame, Header, Hole, Zero, clip
from lvmsync.stream.session import Receiver
from lvmsync.system import seen
from lvmsync.system.fill_watch import LIMIT, Limits
from lvmsync.system.ledger import Ledger, open_ledger
from lvmsync.targets.block import BlockTarget, open_target, refuse_among_devices

_AHEAD = 6  # frames that are read and checked while others are written
_RESUMABLE_AHEAD = 1  # the same where a killed receiver would have to be sent them again


@dataclass(frozen=True)
class ReceiveOptions:
    """How a stream is to be applied.

    Attributes:
        target: path of the device or file.
        state: the state folder.
        snapback: keep what is overwritten in this file.
        archive: keep it in this archive, as a member that leads back.
        undo: keep it until the commit at least; without, a broken stream leaves the target dirty.
        create: make the target, an image file of the source's size.
        atomic: stage and verify the whole stream before the target is touched.
        allow_smaller: drop what is past the target's end, and list it.
        ignore_base: apply a snapback even if the target is not at the point that it starts from.
        require_base: refuse a delta unless the ledger knows the target to hold what it starts from: its sender
            remembers that it was, and the user said nothing.
        dry_run: read and check everything, and change nothing.
        resumable: a stream that is cut leaves the transaction open, to be gone on with; PROTO[4] only.
        restart: a first full copy that is unfinished, and has no undo, may be begun anew by another one.
        prepare: apply everything and make it durable, but leave the commit to `jobs.prepared`.
        group: id of the group that it is prepared for.
        pool_limit: percent of a thin pool, or of the store of a snapshot of the target, at which the receive stops;
            100: neither they nor an image's file system are looked at.
        extend_cmd: the user's command that makes more room in those; None: there is none.
        window: bytes of the stream that its sender lets be on their way before it waits for some to be applied; None:
            any number.
    """

    target: str
    state: Path
    snapback: Path | None = None
    archive: str | None = None
    undo: bool = True
    create: bool = False
    atomic: bool = False
    allow_smaller: bool = False
    ignore_base: bool = False
    require_base: bool = False
    dry_run: bool = False
    resumable: bool = False
    restart: bool = False
    prepare: bool = False
    group: str | None = None
    pool_limit: float = LIMIT
    extend_cmd: str | None = None
    window: int | None = None


def receive(
    receive_some: Callable[[memoryview], int],
    options: ReceiveOptions,
    report: Report,
    on_ready: Callable[[], None] = lambda: None,
    *,
    on_applied: Callable[[int], None] = lambda _: None,
    on_work: Callable[[bool], None] = lambda _: None,
    line_goes_on: bool = False,
) -> Receipt:
    """Apply the stream that ``receive_some`` gives to a target, whole or not at all.

    Args:
        receive_some: fills a buffer and returns how many bytes it put there; 0 at the end.
        options: what to apply it to, and how.
        report: takes the progress.
        on_ready: called when the target is claimed and fits, before any change is read.
        on_applied: told of how many bytes of changes the stream has been applied, or staged.
        on_work: told whether something of the stream is being worked on, or nothing is done but wait for more.
        line_goes_on: more follows on this line behind the END: nothing behind it is asked for.

    Raises:
        StreamError: the stream is damaged or cut; the target is as it was (or dirty, without an undo).
        DeviceError, ConflictError: the target cannot be used, or is not what the stream is for.
    """
    watch = Stopwatch()
    session = Receiver()
    ahead = _RESUMABLE_AHEAD if options.resumable else _AHEAD
    with in_background(read_stream(receive_some, session, line_goes_on=line_goes_on), ahead) as frames:
        header = next(frames)
        assert isinstance(header, Header)
        on_work(True)
        is_begun = header.resume is None  # else its target and its snapback are there
        if is_begun and options.snapback and options.snapback.exists():
            raise DeviceError(f"{options.snapback} is there already and is never overwritten; choose another name")
        if options.create and header.size is None:
            raise UsageError("--create needs a stream that tells its size, and PROTO[3] does not: make the file first")
        if options.archive is not None:
            options = replace(options, archive=check_archive(options.archive, options, session.version))
        create = options.create and not options.dry_run and is_begun
        if options.dry_run and options.create and is_begun:
            with open_keeper(options.archive):
                return _dry_run_create(frames, header, session, options, watch, on_ready)
        with open_keeper(options.archive) as keeper, _claim(options, report, create=create) as (target, ledger):
            job = _Job(options, session, header, target, ledger, report, watch, on_applied, on_work, keeper)
            return job.run(frames, on_ready)


@contextmanager
def _claim(options: ReceiveOptions, report: Report, *, create: bool) -> Iterator[tuple[BlockTarget, Ledger]]:
    """Claim a target and its ledger entry; one that was prepared for a group goes as its group went."""
    with ExitStack() as stack:
        target = stack.enter_context(open_target(options.target, create=create))
        try:
            ledger = stack.enter_context(open_ledger(options.state, target.canonical, target.identity, target.size))
            if not options.dry_run:
                settle(target, ledger, options.state, report)
        except BaseException:
            if target.created:
                target.remove()
            raise
        yield target, ledger


class _Job:
    """One receive, once the target is claimed and the ledger locked."""

    def __init__(
        self,
        options: ReceiveOptions,
        session: Receiver,
        header: Header,
        target: BlockTarget,
        ledger: Ledger,
        report: Report,
        watch: Stopwatch,
        on_applied: Callable[[int], None],
        on_work: Callable[[bool], None],
        keeper: Keeper,
    ) -> None:
        self._keeper = keeper
        self._options = options
        self._session = session
        self._header = header
        self._target = target
        self._ledger = ledger
        self._report = report
        self._watch = watch
        self._on_applied = on_applied
        self._on_work = on_work
        self._dropped: list[list[int]] = []
        self._notes: list[str] = []
        self._is_aborted = False
        # First of all: whatever we do to the target would show as well.
        self._look = None if target.created else seen.look_at_target(target.fd)
        # What a stream leads to must have a name, or another stream could not be known to go on with it.
        self._is_resumable = options.resumable and not options.atomic and session.version == 4 and bool(header.head)

    def run(self, frames: Iterator[Frame], on_ready: Callable[[], None]) -> Receipt:
        """Check, apply and commit; on any error bring the target back, or leave it to be gone on with."""
        if not self._options.dry_run:
            self._notes += self._keeper.pay(self._ledger, self._report)
        transaction = self._run(frames, on_ready)
        if transaction and transaction.archive:
            self._notes += self._keeper.finish(self._ledger, self._report, transaction.archive)
        return self._receipt(transaction)

    def _run(self, frames: Iterator[Frame], on_ready: Callable[[], None]) -> Transaction | None:
        options, target, header = self._options, self._target, self._header
        written = seen.was_written(self._ledger.record.seen, self._look)
        undo = Undo(options.undo and not self._holds_nothing(written), options.snapback)
        record = self._ledger.record
        target.is_blank = record.made and not record.dirty and written == "no" and record.transaction is None
        terms = Terms(self._is_resumable, options.group, written, options.window)
        transaction = Transaction(target, self._ledger, header, self._session.version, undo, terms)
        try:
            checks = Checks(options, header, self._session.version, target, self._ledger, written, self._look)
            self._notes += checks.run()
            extend_cmd = None if options.dry_run else options.extend_cmd
            self._keeper.prepare(transaction, target, self._ledger, header, written, is_kept=undo.wanted)
            self._notes += self._keeper.notes
            watch_room = require_headroom(target, header, Limits(extend_cmd, limit=options.pool_limit))
            self._ledger.sweep()
            if target.created and header.size is not None:
                transaction.make(header.size)
            frames = self._limited(self._awaited(frames, transaction))
            if options.dry_run:
                on_ready()
                for _ in frames:
                    pass
                return None
            if options.atomic:
                on_ready()
                transaction.stage(frames, self._report)
                transaction.start()
                frames = read_spool(self._ledger)
            elif header.resume is not None:
                transaction.go_on(self._report, checks.check_resumed)
                on_ready()
            else:
                transaction.start()
                on_ready()
            target.before_write = watch_room
            transaction.apply(frames, self._report)
            self._notes += watch_room.notes
            if options.prepare:
                transaction.prepare()
            else:
                transaction.commit()
        except SyncFailed:
            self._ledger.write(dirty=True)
            raise
        except BaseException as error:
            if not options.dry_run:
                self._end_badly(transaction, error)
            raise
        return transaction

    def _holds_nothing(self, written: seen.Written) -> bool:
        """Tell whether there is nothing on the target that an undo would be for."""
        if self._options.snapback:
            return False
        record = self._ledger.record
        if self._target.created or (record.transaction and not can_go_back(record.transaction)):
            return True
        # A copy that cannot be gone on with could only be thrown away: that one is taken back.
        return record.made and written != "yes" and self._header.intent == FULL and self._is_resumable

    def _awaited(self, frames: Iterator[Frame], transaction: Transaction) -> Iterator[Frame]:
        """Pass frames on, telling how much of them is applied, and when nothing is done but wait for one."""
        taken = 0
        while True:
            if not transaction.is_holding:
                self._on_applied(taken)
            self._on_work(False)
            frame = next(frames, None)
            self._on_work(True)
            if frame is None:
                return
            if isinstance(frame, (Data, Zero, Hole)):
                taken += frame.changed_bytes
            yield frame

    def _limited(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Pass frames on, holding changes to the target's size; an ABORT is an error."""
        size = self._target.size
        for frame in frames:
            if isinstance(frame, Abort):
                self._is_aborted = True
                raise StreamError(f"the sender gave up: {frame.reason}")
            if not isinstance(frame, (Data, Zero, Hole)):
                yield frame
                continue
            inside, past = clip(frame, size)
            if past and not self._options.allow_smaller:
                raise DeviceError(
                    f"the stream changes bytes at {past[0][0]}, and {self._target.name} ends at {size}: it is too small"
                    " (or the wrong one); extend it, or give --allow-smaller-target to drop what is past its end",
                    device=self._target.name,
                )
            for offset, length in past:
                if self._dropped and sum(self._dropped[-1]) == offset:
                    self._dropped[-1][1] += length
                else:
                    self._dropped.append([offset, length])
            if inside is not None:
                yield inside

    def _end_badly(self, transaction: Transaction, error: BaseException) -> None:
        """Leave the transaction to be gone on with, or bring the target back; an ABORT means: go back, if you can."""
        note = self._ledger.record.transaction
        can_undo = note is None or can_go_back(note)
        if transaction.is_ending:
            name = self._target.name
            error.add_note(f"everything has come; whether it stays is not known: 'lvmsync recover {name}' tells")
        elif transaction.is_running and self._is_resumable and not (self._is_aborted and can_undo):
            self._leave_open(transaction, error, can_undo=can_undo)
        elif transaction.is_running or self._header.resume is None:
            self._bring_back(transaction, error)

    def _leave_open(self, transaction: Transaction, error: BaseException, *, can_undo: bool) -> None:
        name = self._target.name
        try:
            transaction.stop()
        except LvmsyncError as failure:
            error.add_note(f"stopping failed as well: {failure}")
        back = f", or 'lvmsync recover {name}' to go back" if can_undo else "; until then it is of no use"
        error.add_note(f"what has come is kept: run the same sync again to go on with {name}{back}")

    def _bring_back(self, transaction: Transaction, error: BaseException) -> None:
        """Undo what was done; add to the error what the target is now."""
        name = self._target.name
        note = self._ledger.record.transaction
        began = note is not None and note.id == transaction.id
        try:
            if not transaction.roll_back(self._report):
                state = f"{name} is half changed and has no undo: do not use it; see 'lvmsync recover {name}'"
            elif began and note and note.created:
                state = f"{name} was removed again"
            else:
                state = f"{name} was rolled back: it is as it was"
        except LvmsyncError as failure:
            state = f"rolling back failed as well ({failure}): run 'lvmsync recover {name}' before anything uses it"
        if began:
            error.add_note(state)

    def _receipt(self, transaction: Transaction | None) -> Receipt:
        session, seconds = self._session, self._watch.seconds
        size = self._header.size or self._target.size
        return Receipt(
            job="receive",
            source=self._header.name,
            target=self._target.name,
            bytes=session.changed_bytes,
            extents=session.extents,
            wire_bytes=session.position or None,
            seconds=round(seconds, 3),
            rate=round(session.changed_bytes / seconds),
            ratio=round(size / session.changed_bytes, 2) if session.changed_bytes else None,
            size=size,
            format=session.version,
            digest=session.digest,
            durable=transaction is not None,
            dropped=self._dropped,
            snapback=str(self._options.snapback) if self._options.snapback else None,
            archive=self._keeper.kept,
            point=transaction.after.id if transaction else None,
            dry_run=self._options.dry_run,
            notes=self._notes,
        )


def read_stream(
    receive_some: Callable[[memoryview], int], session: Receiver, *, line_goes_on: bool = False
) -> Iterator[Frame]:
    """Yield the frames of a stream, up to its END or ABORT; nothing may come behind that.

    Args:
        receive_some: as of `receive`.
        session: takes the bytes.
        line_goes_on: what comes behind the END or ABORT is another's: it is not asked for. (PROTO[3] has no END.)

    Raises:
        StreamError: it is damaged, cut short, or no stream.
    """
    end: End | None = None
    while True:
        count = receive_some(session.get_buffer())
        if count:
            session.received(count)
        for frame in session.frames() if count else session.receive_eof():
            if isinstance(frame, End) and not line_goes_on:
                end = frame  # held back until the input ends: bytes behind an END are an error
                continue
            yield frame
            if line_goes_on and isinstance(frame, (End, Abort)):
                return
        if not count:
            if end:
                yield end
            return


def _dry_run_create(
    frames: Iterator[Frame],
    header: Header,
    session: Receiver,
    options: ReceiveOptions,
    watch: Stopwatch,
    on_ready: Callable[[], None],
) -> Receipt:
    """Check a stream for a target that is not made."""
    if Path(options.target).exists():
        raise DeviceError(f"{options.target} is there already; leave --create away to change it")
    if not Path(options.target).absolute().parent.is_dir():
        raise DeviceError(f"cannot create {options.target}: there is no such folder")
    refuse_among_devices(options.target)
    on_ready()
    for frame in frames:
        if isinstance(frame, Abort):
            raise StreamError(f"the sender gave up: {frame.reason}")
    return replace(
        Receipt(job="receive", source=header.name, target=options.target),
        bytes=session.changed_bytes,
        extents=session.extents,
        seconds=round(watch.seconds, 3),
        size=header.size,
        format=session.version,
        digest=session.digest,
        dry_run=True,
    )
