"""What the record knows of a COW file, for whoever sends what that tells: gaps, own blocks, very snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import ChangesLost, LvmsyncError
from lvmsync.jobs.dattobd_follow import reconcile
from lvmsync.jobs.dattobd_record import Series, read_series
from lvmsync.names import CowFile
from lvmsync.sources.dattobd import open_cow_file
from lvmsync.sources.dattobd_map import read_header
from lvmsync.sources.source import Reading, Source
from lvmsync.system.dattobd import list_tracked
from lvmsync.system.device import open_device


@contextmanager
def open_recorded(state: Path, name: CowFile, reading: Reading, target: str | None = None) -> Iterator[Source]:
    """Open what a COW file says, with what is recorded of it on this machine.

    Args:
        state: the state folder.
        name: of the file.
        reading: what is wanted.
        target: the copy, as its user names it; None: not known.

    Raises:
        ChangesLost: changes are known to be missing in it.
    """
    series, seqid = look_at(state, name, dry_run=True)
    if series is None:
        with open_cow_file(name, reading) as source:
            yield source
        return
    gaps = find_gaps(series, seqid, target)
    if gaps:
        raise lost(name.file.path, f"snapshot {seqid + 1}", gaps)
    with open_cow_file(name, reading, series.own_blocks(seqid)) as source:
        yield label(source, series, seqid) if source.head else source


def look_at(state: Path, name: CowFile, *, dry_run: bool = False) -> tuple[Series | None, int]:
    """Return the record of a COW file's series, brought up to date, and the number of its snapshot.

    Args:
        state: the state folder.
        name: of the file.
        dry_run: write nothing.

    Returns:
        None and 0 if nothing is recorded of it, or if it is no COW file.

    Raises:
        FormatError: a record cannot be read, and it may be this one.
    """
    recorded, errors = read_series(state)
    if not recorded and not errors:
        return None, 0
    try:
        with open_device(name.file.path) as file:
            header = read_header(file)
    except LvmsyncError:
        return None, 0  # whoever opens it says why
    series = next((one for one in recorded if one.uuid == header.uuid), None)
    if series is None:
        if errors:
            raise errors[0]
        return None, 0
    for tracking in list_tracked():
        if tracking.device.uuid == header.uuid and tracking.device.is_active and not tracking.device.has_failed:
            series = reconcile(state, tracking, take_over=True, dry_run=dry_run)
    return series, header.seqid


def find_gaps(series: Series, seqid: int, target: str | None) -> list[str]:
    """Return why a period lacks changes which the target does not have, or why what follows is no one state."""
    period, then = series.find_period(seqid), series.find_period(seqid + 1)
    copy = series.find_copy(target) if target else None
    known = copy.gaps if copy and copy.seqid == seqid else 0
    return [*(period.gaps[known:] if period else []), *(then.gaps if then else [])]


def lost(path: str, snapshot: str, gaps: list[str]) -> ChangesLost:
    """Return the error that refuses a COW file for its gaps."""
    return ChangesLost(
        f"{path} does not lead to {snapshot}: {' '.join(gaps)} Take a new snapshot, and run 'lvmsync sync compare:'"
        " with it and the target; or run 'lvmsync dattobd update' with --force, if you know better",
        device=path,
    )


def label(source: Source, series: Series, seqid: int) -> Source:
    """Return a source that leads from one snapshot to the next with the points of these very snapshots."""
    base = series.point(seqid)
    return replace(source, base=base, head=series.point(seqid + 1, base))
