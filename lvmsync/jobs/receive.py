"""Take a stream and apply it to a target: checked before the first write, undone unless it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, StreamError, SyncFailed, UsageError
from lvmsync.history import UNNAMED, Point
from lvmsync.jobs.background import in_background
from lvmsync.jobs.progress import Receipt, Report, Stopwatch
from lvmsync.jobs.transaction import Transaction, Undo, read_spool
from lvmsync.stream.frames import DELTA, SNAPBACK, Abort, Data, End, Frame, Header, Hole, Zero, clip
from lvmsync.stream.session import Receiver
from lvmsync.system.ledger import Ledger, open_ledger
from lvmsync.targets.block import BlockTarget, open_target

_AHEAD = 6  # frames that are read and checked while others are written


@dataclass(frozen=True)
class ReceiveOptions:
    """How a stream is to be applied.

    Attributes:
        target: path of the device or file.
        state: the state folder.
        snapback: keep what is overwritten in this file.
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
        pool_limit: percent of a thin pool, or of an image's file system, at which the receive stops; 100: it is not
            looked at.
    """

    target: str
    state: Path
    snapback: Path | None = None
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
    pool_limit: float = 95.0


def receive(
    receive_some: Callable[[memoryview], int],
    options: ReceiveOptions,
    report: Report,
    on_ready: Callable[[], None] = lambda: None,
    *,
    line_goes_on: bool = False,
) -> Receipt:
    """Apply the stream that ``receive_some`` gives to a target, whole or not at all.

    Args:
        receive_some: fills a buffer and returns how many bytes it put there; 0 at the end.
        options: what to apply it to, and how.
        report: takes the progress.
        on_ready: called when the target is claimed and fits, before any change is read.
        line_goes_on: more follows on this line behind the END: nothing behind it is asked for.

    Raises:
        StreamError: the stream is damaged or cut; the target is as it was (or dirty, without an undo).
        DeviceError, ConflictError: the target cannot be used, or is not what the stream is for.
    """
    watch = Stopwatch()
    session = Receiver()
    if options.snapback and options.snapback.exists():
        raise DeviceError(f"{options.snapback} is there already and is never overwritten; choose another name")
    with in_background(read_stream(receive_some, session, line_goes_on=line_goes_on), _AHEAD) as frames:
        header = next(frames)
        assert isinstance(header, Header)
        if options.create and header.size is None:
            raise UsageError("--create needs a stream that tells its size, and PROTO[3] does not: make the file first")
        create = options.create and not options.dry_run
        if options.dry_run and options.create:
            return _dry_run_create(frames, header, session, options, watch, on_ready)
        with _claim(options, create=create) as (target, ledger):
            job = _Job(options, session, header, target, ledger, report, watch)
            return job.run(frames, on_ready)


@contextmanager
def _claim(options: ReceiveOptions, *, create: bool) -> Iterator[tuple[BlockTarget, Ledger]]:
    """Claim a target and its ledger entry, in which no transaction may be open: that is not ours to undo."""
    with ExitStack() as stack:
        target = stack.enter_context(open_target(options.target, create=create))
        try:
            ledger = stack.enter_context(open_ledger(options.state, target.canonical, target.identity, target.size))
            if ledger.record.transaction:
                raise ConflictError(
                    f"{target.name} has an unfinished transaction of {ledger.record.transaction.began}: run 'lvmsync"
                    f" recover {target.name}' first",
                    device=target.name,
                )
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
    ) -> None:
        self._options = options
        self._session = session
        self._header = header
        self._target = target
        self._ledger = ledger
        self._report = report
        self._watch = watch
        self._dropped: list[list[int]] = []
        self._notes: list[str] = []

    def run(self, frames: Iterator[Frame], on_ready: Callable[[], None]) -> Receipt:
        """Check, apply and commit; on any error bring the target back."""
        options, target = self._options, self._target
        undo = Undo(options.undo and not (target.created and not options.snapback), options.snapback)
        transaction = Transaction(target, self._ledger, self._header, self._session.version, undo)
        try:
            self._check()
            if target.created and self._header.size is not None:
                transaction.make(self._header.size)
            frames = self._limited(frames)
            if options.dry_run:
                on_ready()
                for _ in frames:
                    pass
                return self._receipt(None)
            if options.atomic:
                on_ready()
                transaction.stage(frames, self._report)
                transaction.start()
                frames = read_spool(transaction.spool, transaction.spool_check)
            else:
                transaction.start()
                on_ready()
            transaction.apply(frames, self._report)
            transaction.commit()
        except SyncFailed:
            self._ledger.write(dirty=True)
            raise
        except BaseException as error:
            if not options.dry_run:
                self._bring_back(transaction, error)
            raise
        return self._receipt(transaction)

    def _check(self) -> None:
        """Refuse, before anything is written, a target that is not fit for this stream."""
        header, target = self._header, self._target
        self._ledger.sweep()
        if header.size is not None and not target.created and target.size < header.size:
            if not self._options.allow_smaller:
                raise DeviceError(
                    f"{target.name} has {target.size} bytes and the source has {header.size}: too small (or the wrong"
                    " one); extend it, or give --allow-smaller-target to drop what is past its end",
                    device=target.name,
                )
        elif header.size is not None and target.size > header.size:
            self._notes.append(f"{target.name} is larger than the source; what is past {header.size} is left alone")
        if target.created and header.intent == DELTA:
            self._notes.append(f"{target.name} is new: it holds the changes alone, and zeros elsewhere")
        if self._session.version == 3:
            self._notes.append(
                "a PROTO[3] stream has no size, checksums or end mark: whether it is whole cannot be known"
            )
        self._check_base()

    def _check_base(self) -> None:
        """Compare the point that the target is at with the one that the stream starts from."""
        header, point = self._header, self._ledger.record.point
        self._require_held()
        if header.base is None:
            # A comparison starts from what the target holds, whatever that is.
            if header.intent == DELTA and header.source not in (None, "compare") and point is not None:
                self._notes.append(
                    f"{self._target.name} is at point {point.id}, and the stream does not say what it starts from: that"
                    " it holds the base is your word"
                )
            return
        if point is None:
            if self._options.require_base and not self._options.ignore_base:
                raise self._conflict("no point that is known", header.base)
            self._notes.append(f"nothing is known of {self._target.name} yet: that it holds the base is your word")
        elif not _can_take(point, header, header.base):
            # Where nothing says that it is wrong, the user may know better: it is noted.
            is_word = header.intent == DELTA and _is_unknown(point, header, header.base)
            if self._options.ignore_base or (is_word and not self._options.require_base):
                self._notes.append(
                    f"{self._target.name} is at point {point.id}, and the stream starts from {header.base.id}: that it"
                    " holds the base is your word"
                )
            else:
                raise self._conflict(f"point {point.id}", header.base)

    def _require_held(self) -> None:
        """Refuse a delta for a target that has grown since it was too small for its source."""
        header, held = self._header, self._ledger.record.held
        if held is None or self._target.size <= held or header.intent != DELTA or header.source == "compare":
            return
        if self._options.ignore_base:
            self._notes.append(f"{self._target.name}: that it holds the base behind byte {held} is your word")
            return
        raise ConflictError(
            f"{self._target.name} had {held} bytes when what lay behind them was dropped, and has {self._target.size}"
            " now: its new part was never copied; bring it up to date with 'compare:'",
            device=self._target.name,
        )

    def _conflict(self, found: str, base: Point) -> ConflictError:
        name = self._target.name
        if self._header.intent == SNAPBACK:
            step = "this snapback undoes another change; apply the newer snapbacks first"
        elif self._header.source == "era":
            step = "it was made anew, brought back, or written from elsewhere; send all of it with since=0"
        else:
            step = "bring it up to date with 'compare:', and start the next delta from a snapshot of that state"
        return ConflictError(
            f"{name} is at {found}, and the stream starts from {base.id}: {step}, or give --ignore-base if it surely"
            " holds that base",
            device=name,
        )

    def _limited(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Pass frames on, holding changes to the target's size; an ABORT is an error."""
        size = self._target.size
        for frame in frames:
            if isinstance(frame, Abort):
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

    def _bring_back(self, transaction: Transaction, error: BaseException) -> None:
        """Undo what was done; add to the error what the target is now."""
        name = self._target.name
        began = self._ledger.record.transaction is not None
        try:
            if not transaction.roll_back(self._report):
                state = f"{name} is half changed and has no undo: do not use it; see 'lvmsync recover {name}'"
            elif self._target.created:
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


def _can_take(point: Point, header: Header, base: Point) -> bool:
    """Tell whether a target at ``point`` becomes the head by a delta that starts from ``base``.

    At that very point it does. Behind it, only if the delta holds all that came since the base as well. A
    classic snapshot's does: its exceptions only grow. So do changes that are counted, at a later point of
    the same history, up to the head. That of a thin snapshot does not: what was mapped since, and is
    unmapped again, is not in it. Neither does what was held against the base, for what came and went since
    is not in it. At the very head already it stays that, if the head is a snapshot that nobody writes to: a run
    that was cut short after the target was done is repeated so.
    """
    if base.id == point.id:
        return True
    if header.intent != DELTA or header.minimal:
        return False
    if header.head and point.id == header.head.id and point.id.startswith(_FROZEN):
        return True
    if header.source == "snapshot":
        return base.id == point.parent
    since, now, head = _counted(base), _counted(point), _counted(header.head)
    if since is None or now is None or head is None or not since[0] == now[0] == head[0]:
        return False
    return since[1] <= now[1] <= head[1]


def _is_unknown(point: Point, header: Header, base: Point) -> bool:
    """Tell whether nothing says that a target at ``point`` does *not* hold ``base``.

    A full copy and a comparison leave a point that only says that nobody named it.
    """
    if point.id.startswith(UNNAMED):
        return True
    if header.source == "era":
        since, now = _counted(base), _counted(point)
        return since is None or now is None or since[0] != now[0]
    return header.source == "snapshot" and not header.minimal


_FROZEN = "dattobd/"
"""What the ids of points begin with that are one very snapshot, which does not change."""

_COUNTED = ("era:", "dattobd:", "blksnap:")
"""What the ids of points begin with that end in the number of an era or a snapshot, which only grows."""


def _counted(point: Point | None) -> tuple[str, int] | None:
    """Return history and number of a point that has them; None if it has not."""
    life, _, number = point.id.rpartition(":") if point else ("", "", "")
    return (life, int(number)) if life.startswith(_COUNTED) and number.isdecimal() else None
