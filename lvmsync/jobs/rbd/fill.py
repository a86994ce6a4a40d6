"""Filling an image: back to the base, a mark, the diff, and the snapshot that ``import-diff`` makes as its last act.

What is left if a run is cut off after each step, and what the next one does:

    the image was made       it is empty: a full copy, as before
    the mark was set         nothing else has changed
    some of the diff came    the mark tells that it is ours: back to the base; without one, all is sent again
    the snapshot was made    it is at the new point; the mark goes
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lvmsync.errors import CommandError, ConflictError, LvmsyncError, TransportError
from lvmsync.history import UNNAMED, Point
from lvmsync.images import RbdImage
from lvmsync.interfaces import Transport
from lvmsync.jobs.progress import Progress, Receipt, Report, Stopwatch
from lvmsync.jobs.rbd.choose import MADE, MARK, Found, Plan, choose, look, made_value
from lvmsync.jobs.rbd.diff import Sent, write_diff
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.sources.source import Source
from lvmsync.system import rbd
from lvmsync.system.ledger import file_name, open_lock
from lvmsync.system.rbd_pipe import STALL, open_import

KEPT = 2
"""Snapshots of ours that an image keeps: the point that it is at, and the one before."""
WATCH_ENDS = 40.0
"""Seconds after which the cluster has noticed that a client died (osd_client_watch_timeout is 30)."""


@dataclass(frozen=True)
class Filling:
    """How an image is to be filled.

    Attributes:
        state: the state folder of this machine.
        create: an image that is not there is made.
        ignore_base: what somebody else wrote to it may be lost.
        dry_run: nothing is changed.
        stall: seconds without a byte after which the cluster is given up; None: never.
        around: what the line to ``rbd`` is put in: a limit of its rate.
    """

    state: Path
    create: bool = False
    ignore_base: bool = False
    dry_run: bool = False
    stall: float | None = STALL
    around: Callable[[Transport], Transport] = lambda line: line


def fill(image: RbdImage, source: Source, how: Filling, report: Report) -> Receipt:
    """Bring an image to a source's head, with a snapshot of it, and return a receipt.

    Raises:
        ConflictError: the image is not at the point that the changes start from, or somebody else wrote to it.
        LvmsyncError: it failed; the image is brought back, now or by the next run.
    """
    source = _named(source)
    with _locked(image, how.state):
        found = _look(image, report)
        plan = choose(image, found, source, may_create=how.create, ignore_base=how.ignore_base)
        if how.dry_run:
            return replace(Sender(source, lambda _: None, StreamOptions(), report).call_off(str(image)), job="sync")
        if plan.is_there:
            return _settle(image, source, plan, found)
        watch = Stopwatch()
        if plan.creates:
            rbd.create(image, source.size)
        rbd.set_mark(image, MARK, plan.name)  # before anything is changed
        if plan.rolls_back and plan.base:
            rbd.roll_back(image, plan.base.name)
        try:
            sent = _send(image, source, plan, how, report)
        except TransportError:
            raise  # the next run goes back
        except Exception:
            if plan.base:
                with suppress(LvmsyncError):
                    rbd.roll_back(image, plan.base.name)  # the mark stays: what was brought back counts as written
            raise
        return _commit(image, source, plan, sent, watch.seconds)


def _look(image: RbdImage, report: Report) -> Found:
    """Return what an image is; a client of ours that died seems to have it open for a while."""
    found = look(image)
    until = time.monotonic() + WATCH_ENDS
    while found.users and found.mark and time.monotonic() < until:
        report(Progress("waiting for the last run's client to be gone", 0, None))
        time.sleep(1)
        found = look(image)
    return found


def _send(image: RbdImage, source: Source, plan: Plan, how: Filling, report: Report) -> Sent:
    with open_import(image, how.stall) as pipe:
        line = how.around(pipe)
        base = plan.base.name if plan.base else None
        # Its end mark is the commit: `import-diff` makes the snapshot when it has that.
        sent = write_diff(source, base, plan.name, line.send_all, report, is_blank=plan.is_blank)
        line.send_eof()
        line.aclose()
    return sent


def _commit(image: RbdImage, source: Source, plan: Plan, sent: Sent, seconds: float) -> Receipt:
    """Make sure of the new snapshot, take the mark off, and remove snapshots of ours that are not kept."""
    state = rbd.look_up(image)
    snap = state.find(plan.name) if state else None
    if snap is None or snap.size != source.size:
        raise CommandError(
            f"{image}: 'rbd import-diff' said that all went well, but there is no snapshot {plan.name} of {source.size}"
            " bytes",
            device=str(image),
        )
    rbd.set_mark(image, MADE, made_value(snap))  # while the mark vouches for it
    rbd.remove_mark(image, MARK)
    notes = [*plan.notes, *_thin_out(image, Found(state))]
    return _receipt(image, source, plan, sent, seconds, notes)


def _settle(image: RbdImage, source: Source, plan: Plan, found: Found) -> Receipt:
    """Tidy up after a run that was cut off behind its commit, or that had nothing to do."""
    if found.mark and found.newest:
        rbd.set_mark(image, MADE, made_value(found.newest))
    if plan.rolls_back and plan.base:
        rbd.roll_back(image, plan.base.name)  # the mark stays: what was brought back counts as written
    elif found.mark:
        rbd.remove_mark(image, MARK)
    notes = [f"{image} is at that state already: nothing was sent", *_thin_out(image, found)]
    return replace(_receipt(image, source, plan, Sent(), 0.0, notes), kind="nothing", ratio=None)


def _thin_out(image: RbdImage, found: Found) -> list[str]:
    """Remove all of our snapshots but the newest; return what should be known of those that stay."""
    notes = []
    for snap in found.own[:-KEPT]:
        if snap.protected:
            notes.append(f"{snap.name} is protected, and stays")
            continue
        try:
            rbd.remove_snapshot(image, snap.name)
        except LvmsyncError as error:
            notes.append(f"an old snapshot stays: {error}")
    return notes


def _receipt(image: RbdImage, source: Source, plan: Plan, sent: Sent, seconds: float, notes: list[str]) -> Receipt:
    return Receipt(
        job="sync", source=source.name, target=str(image), bytes=sent.bytes, extents=sent.extents,
        wire_bytes=sent.wire_bytes, seconds=round(seconds, 3), rate=round(sent.bytes / seconds) if seconds else 0.0,
        ratio=round(source.size / sent.bytes, 2) if sent.bytes else None, size=source.size,
        durable=True, confirmed=True, point=source.head.id if source.head else None,
        kind="first" if source.is_full else "delta", snapshot=f"{image}@{plan.name}", notes=[*source.notes, *notes],
    )  # fmt: skip


def _named(source: Source) -> Source:
    """Return a source whose head has an id, if only one that nothing but the image knows."""
    return source if source.head else replace(source, head=Point(f"{UNNAMED}{uuid.uuid4().hex}"))


@contextmanager
def _locked(image: RbdImage, state: Path) -> Iterator[None]:
    """Let no other run of this machine fill the image meanwhile.

    Raises:
        ConflictError: one does.
    """
    lock = open_lock(state / "rbd" / file_name(str(image)), state)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"another lvmsync is working on {image}; wait for it to end") from error
        yield
    finally:
        os.close(lock)
