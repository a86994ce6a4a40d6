"""Bring a copy up to date with what dattobd or elastio-snap tracked: one period by hand, or the whole cycle.

The order of a cycle: take the next snapshot (which completes the COW file of the period before), send what that
tells from the snapshot, note that the target is there, give the snapshot up, remove the old COW file. A run that
was cut short leaves an active snapshot, from which the next one goes on. Where the record knows of a gap in the
period, snapshot and target are compared instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, LvmsyncError, VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.dattobd import begin, give_up_snapshot, remove_cow, require_fit, take_snapshot
from lvmsync.jobs.dattobd_follow import reconcile
from lvmsync.jobs.dattobd_place import (
    find_again,
    look_up,
    require_active,
    series_of,
)
from lvmsync.jobs.dattobd_points import find_gaps, label, look_at, lost
from lvmsync.jobs.dattobd_record import Series, hold_records, others_of, write_series
from lvmsync.jobs.outlet import Outlet
from lvmsync.jobs.progress import Receipt
from lvmsync.names import Comparison, CowFile, Volume, WholeDevice, parse_volume
from lvmsync.sources import Reading, Source, open_source
from lvmsync.sources.dattobd import confirm_snapshot, open_incremental, require_size
from lvmsync.sources.source import Unread
from lvmsync.system.dattobd import Tracking, list_tracked
from lvmsync.system.device import open_device


@dataclass(frozen=True)
class Done:
    """What a cycle did.

    Attributes:
        device: path of the device.
        uuid: of the series; None if it is yet to begin.
        seqid: of the snapshot that the target holds now; None in a dry run.
        how: "full", "delta" or "compare".
        why: why it was not a delta; None: it was.
        receipt: of what was sent; None in a dry run.
        steps: what was done, or would be.
        notes: what the user should know, a sentence each.
    """

    device: str
    uuid: str | None
    seqid: int | None
    how: str
    why: str | None
    receipt: Receipt | None
    steps: list[str]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class Beginning:
    """How tracking begins where there is none; as of `dattobd.setup`."""

    cow: str | None = None
    space_mib: int = 0
    cache_size: int = 0
    driver: str | None = None
    units: Path | None = None
    take_over: bool = False
    """Although another program tracks the device, or took its snapshot."""


@dataclass(frozen=True)
class _Way:
    """How a target gets to the snapshot, and why not by a delta."""

    how: str
    why: str | None = None


def update(
    state: Path, snapshot: str, cow: str, outlet: Outlet, *, force: bool = False, dry_run: bool = False
) -> Receipt:
    """Send what a complete incremental COW file tells, with data from the snapshot that follows it.

    Args:
        state: the state folder.
        snapshot: path of the snapshot device, or of a file that holds what that held.
        cow: path of the COW file.
        outlet: the way to the target, which holds the snapshot that the COW file begins with.
        force: although the record knows of changes that are not in it: the next cycle compares then.
        dry_run: note nothing.

    Raises:
        ChangesLost: it does; or the file was not closed in order.
        FormatError: it is damaged, or of snapshot mode.
        ConflictError: it does not belong to that snapshot.
    """
    with hold_records(state, dry_run=dry_run):
        name = CowFile(parse_volume(cow))
        path = name.file.path
        series, seqid = look_at(state, name, dry_run=dry_run)
        gaps = find_gaps(series, seqid, outlet.target) if series else []
        if gaps and not force:
            raise lost(path, snapshot, gaps)
        own = series.own_blocks(seqid) if series else None
        with open_incremental(name, Reading(data_source=snapshot), own) as source:
            if series:
                source = label(source, series, seqid)
            if gaps:  # whatever the target holds then, it is no snapshot
                note = f"Forced, though changes are missing: {' '.join(gaps)} The next cycle compares."
                source = replace(source, head=None, notes=(*source.notes, note))
            receipt = outlet.send(source, False)
        period = series.find_period(seqid) if series else None
        if series and period and _is_done(receipt):
            series = series.with_period(replace(period, taken=True))
            doubt = f"it was brought up to it by force. {' '.join(gaps)}" if gaps else None
            write_series(state, series.with_copy(outlet.target, seqid + 1, 0, doubt))
        return receipt


def cycle(state: Path, outlet: Outlet, beginning: Beginning, *, compare: bool = False, dry_run: bool = False) -> Done:
    """Bring a target up to a new snapshot of a device, and go on tracking; begin to track where nothing does.

    Args:
        state: the state folder.
        outlet: the device, and the way to its copy.
        beginning: how to begin.
        compare: compare all of it with the target, whatever is recorded.
        dry_run: say what would be done.

    Raises:
        ChangesLost: the driver gave up, or did so meanwhile: the target is as it was.
        DeviceError: the device is not mounted, or a snapshot cannot be taken.
        ConflictError: the target was changed by someone else meanwhile.
    """
    with hold_records(state, dry_run=dry_run):
        tracking = look_up(outlet.word)
        if tracking is None and outlet.word.isdecimal():
            raise DeviceError(f"minor {outlet.word} is not tracked; name the device, and tracking begins")
        steps: list[str] = []
        notes: list[str] = []
        if tracking is None:
            device = str(Path(parse_volume(outlet.word).path).absolute())
            steps.append(f"{device} is not tracked: tracking begins, with snapshot 1")
            require_fit(device, beginning.cow, beginning.driver)
            way = _choose_first(series_of(state, device), outlet, compare=compare)
            _check_target(outlet, device, way)  # before anything is begun that would be left behind
            if dry_run:
                return _dry(device, None, way, steps)
            series, notes = begin(
                state, device, beginning.cow, space_mib=beginning.space_mib, cache_size=beginning.cache_size,
                minor=None, driver=beginning.driver, units=beginning.units,
            )  # fmt: skip
            tracking = _require_tracked(series)
        else:
            require_active(tracking)
            device = tracking.device.block_device
            series = reconcile(state, tracking, take_over=beginning.take_over, dry_run=dry_run)
            foreign = ["another program took it."] if series.current.foreign else []
            is_new_snapshot = not tracking.device.is_snapshot or bool(series.current.gaps or foreign)
            seqid, older = series.current.seqid + is_new_snapshot, others_of(state, series)
            way = _choose(series, seqid, older, outlet, compare=compare)
            _check_target(outlet, device, way, series, seqid)
            if not is_new_snapshot:
                steps.append(f"snapshot {series.current.seqid} is there already: an earlier run did not end")
            elif tracking.device.is_snapshot:
                steps.append(
                    f"snapshot {series.current.seqid} is given up, for it is no one state of the device any more:"
                    f" {' '.join([*series.current.gaps, *foreign])}"
                )
                if not dry_run:
                    series = give_up_snapshot(state, tracking, series)
                    tracking = find_again(tracking)
            if is_new_snapshot:
                steps.append(f"snapshot {series.current.seqid + 1} is taken")
                if not dry_run:
                    series = take_snapshot(state, tracking, series, beginning.cow, space_mib=beginning.space_mib)
                    tracking = find_again(tracking)
            if dry_run:
                return _dry(device, series, way, steps)
        require_size(tracking)
        seqid, older = series.current.seqid, others_of(state, series)
        way = _choose(series, seqid, older, outlet, compare=compare)
        # A copy of all of it holds what the period has missed before it was made; a delta does not.
        gaps = 0 if way.how == "delta" else len(series.current.gaps)
        receipt = _deliver(series, tracking, outlet, way)
        series = _go_on(state, tracking, series.with_copy(outlet.target, seqid, gaps))
        steps += [_step(way), f"snapshot {seqid} is given up: what changes from here on is recorded"]
        notes += _drop_old(state, series, older)
        return Done(device, series.uuid, seqid, way.how, way.why, receipt, steps, notes)


def _go_on(state: Path, tracking: Tracking, series: Series) -> Series:
    """Note that a copy holds the snapshot, and give that up; return the record as it is then."""
    before = series.find_period(series.current.seqid - 1)
    if before:
        series = series.with_period(replace(before, taken=True))
    write_series(state, series)  # from here on the target counts as being at this snapshot
    return give_up_snapshot(state, tracking, series)


def _check_target(outlet: Outlet, device: str, way: _Way, series: Series | None = None, seqid: int = 0) -> None:
    """Refuse a target that is not there, does not fit, or does not hold what a delta starts from."""
    with open_device(device) as opened:
        size = opened.size
    is_delta = way.how == "delta" and series is not None
    empty = Source(
        kind="dattobd" if is_delta else way.how,
        name=outlet.word,
        size=size,
        granularity=1,
        base=series.point(seqid - 1) if series and is_delta else None,
        head=series.point(seqid) if series and is_delta else None,
        changes=ChangeMap.empty(),
        holes=ChangeMap.empty(),
        data=Unread(outlet.word, size),
        confirm=lambda: None,
        is_full=way.how == "full",
        origin=device,
    )
    try:
        outlet.check(empty, is_delta)
    except LvmsyncError as error:
        _advise(error)
        raise


def _advise(error: LvmsyncError) -> None:
    if error.exit_code == ConflictError.exit_code:  # ours, or the far side's
        error.add_note("if the target may be overwritten, run 'lvmsync dattobd cycle' with --compare")


def _require_tracked(series: Series) -> Tracking:
    for one in list_tracked():
        if one.device.uuid == series.uuid:
            return one
    raise ChangesLost(f"{series.block_device} is not tracked any more: another program ended that")


def _choose_first(older: list[Series], outlet: Outlet, *, compare: bool) -> _Way:
    """Choose how a target gets to the first snapshot of a series."""
    if outlet.is_new:
        return _Way("full", "the target is new")
    if compare:
        return _Way("compare", "--compare")
    for one in older:
        copy = one.find_copy(outlet.target)
        if copy:
            return _Way("compare", f"{outlet.target} is of {copy.time}, and what was tracked since is lost")
    return _Way("full", f"nothing is recorded of {outlet.target}")


def _choose(series: Series, seqid: int, older: list[Series], outlet: Outlet, *, compare: bool) -> _Way:
    """Choose how a target gets to a snapshot of a series."""
    copy = series.find_copy(outlet.target)
    if outlet.is_new or compare or copy is None:
        return _choose_first(older, outlet, compare=compare)
    if copy.doubt:
        return _Way("compare", f"{outlet.target} may not hold snapshot {copy.seqid}: {copy.doubt}")
    now, before = series.find_period(seqid), series.find_period(seqid - 1)
    if now and (copy.seqid, copy.gaps) == (seqid, len(now.gaps)):
        # A run was cut short after this was written down. Whether the target is there still, only its ledger knows,
        # which is asked with a delta: that does no harm to a target that is at its head.
        if before and not before.gaps and Path(before.path).exists():
            return _Way("delta")
        return _Way("compare", f"{outlet.target} was at this snapshot when a run was cut short")
    if before is None or copy.seqid != seqid - 1:
        return _Way("compare", f"{outlet.target} is at snapshot {copy.seqid}, and no COW file leads from there")
    if copy.gaps != len(before.gaps):
        return _Way("compare", f"not all changes are known. {' '.join(before.gaps[copy.gaps :])}")
    if not Path(before.path).exists():
        return _Way("compare", f"{before.path} is gone")
    return _Way("delta")


def _deliver(series: Series, tracking: Tracking, outlet: Outlet, way: _Way) -> Receipt:
    """Bring the target to the snapshot."""
    try:
        with _open(series, tracking, outlet, way) as source:
            receipt = outlet.send(source, way.how == "delta")
    except LvmsyncError as error:
        _advise(error)
        with suppress(LvmsyncError):
            confirm_snapshot(tracking)
            what = f"snapshot {series.current.seqid} of {series.block_device}"
            error.add_note(f"{what} is kept, and the next run goes on from it")
        raise
    if not _is_done(receipt):
        raise VerifyError(f"{outlet.target} did not confirm that its copy is durable: do not use it")
    return receipt


def _open(series: Series, tracking: Tracking, outlet: Outlet, way: _Way) -> AbstractContextManager[Source]:
    seqid = series.current.seqid
    snapshot = Volume(tracking.snapshot_path)
    match way.how:
        case "delta":
            before = series.find_period(seqid - 1)
            assert before
            name = CowFile(Volume(before.path), uuid=series.uuid, seqid=seqid)
            return _labelled(open_incremental(name, Reading(), series.own_blocks(seqid - 1)), series)
        case "compare":
            return _named(outlet.compare(Comparison(snapshot), Reading()), series, tracking, way)
        case _:
            return _named(open_source(WholeDevice(snapshot)), series, tracking, way)


@contextmanager
def _labelled(opened: AbstractContextManager[Source], series: Series) -> Iterator[Source]:
    with opened as source:
        yield label(source, series, series.current.seqid - 1)


@contextmanager
def _named(opened: AbstractContextManager[Source], series: Series, tracking: Tracking, way: _Way) -> Iterator[Source]:
    """Open a source of the whole snapshot that leads to the point that the snapshot is."""
    with opened as source:

        def confirm() -> None:
            source.confirm()
            confirm_snapshot(tracking)

        note = f"Not a delta: {way.why}."
        yield replace(
            source,
            head=series.point(series.current.seqid),
            origin=tracking.device.block_device,
            confirm=confirm,
            notes=(*source.notes, note.replace("..", ".")),
        )


def _drop_old(state: Path, series: Series, older: list[Series]) -> list[str]:
    """Remove the COW files of earlier periods and series: the snapshots that they lead to are gone."""
    notes = [note for period in series.periods[:-1] if (note := remove_cow(series, period))]
    write_series(state, replace(series, periods=series.periods[-1:]))
    for old in older:
        notes += [note for period in old.periods if (note := remove_cow(old, period))]
    return notes


def _is_done(receipt: Receipt) -> bool:
    return receipt.confirmed and receipt.durable and not receipt.dry_run


def _step(way: _Way) -> str:
    why = f" ({way.why})" if way.why else ""
    return {
        "full": f"everything is sent{why}",
        "compare": f"snapshot and target are compared, and what differs is sent{why}",
        "delta": "what changed is sent",
    }[way.how]


def _dry(device: str, series: Series | None, way: _Way, steps: list[str]) -> Done:
    last = "the snapshot is given up: what changes from then on is recorded"
    return Done(device, series.uuid if series else None, None, way.how, way.why, None, [*steps, _step(way), last], [])
