"""How the devices of dattobd and elastio-snap are: what the drivers say, and what is recorded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import DeviceError, LvmsyncError
from lvmsync.jobs.dattobd_place import require_active
from lvmsync.jobs.dattobd_record import Series, find_mount, find_recorded, list_series
from lvmsync.system.dattobd import Tracking, list_tracked


@dataclass(frozen=True)
class State:
    """One device: what the driver says of it now, and what is recorded.

    Attributes:
        driver: name of the module.
        block_device: path of the device.
        minor: of the driver's device.
        state: its state, in words; "not tracked" where only a record tells of it.
        state_bits: as the driver prints them; None if it is not tracked.
        error: negative errno of a driver that gave up; None: none.
        uuid: of the series.
        seqid: of the last snapshot.
        snapshot: path of the snapshot device; None if there is none now.
        mount_point: where it is mounted; None: nowhere.
        cow_file: absolute path of the COW file, or relative to the root of its file system if that is not mounted.
        cow_size: bytes of it that are said.
        changed_blocks: blocks of 4 KiB that changed since the snapshot was taken.
        cow_files: older COW files that are kept: ``seqid``, ``path`` and whether it was ``taken`` over.
        gaps: why changes of this period are missing.
        copies: what is recorded: ``target``, ``seqid`` and ``time`` of each.
        notes: what the user should know, or do next, a sentence each.
    """

    driver: str
    block_device: str
    minor: int
    state: str
    state_bits: int | None
    error: int | None
    uuid: str | None
    seqid: int | None
    snapshot: str | None
    mount_point: str | None
    cow_file: str
    cow_size: int | None
    changed_blocks: int | None
    cow_files: list[dict[str, str | int | bool]]
    gaps: list[str]
    copies: list[dict[str, str | int]]
    notes: list[str]


def show(state: Path) -> list[State]:
    """Return all devices that are tracked, and those that are recorded and are not."""
    recorded = list_series(state)
    found = []
    for tracking in list_tracked():
        series = find_recorded(state, tracking)
        recorded = [one for one in recorded if series is None or one.uuid != series.uuid]
        found.append(_describe(tracking, series))
    return [*found, *(_describe_lost(one) for one in recorded if not one.ended)]


def _describe(tracking: Tracking, series: Series | None) -> State:
    device = tracking.device
    mount = None
    with suppress(DeviceError):
        mount = find_mount(device.block_device)
    cow = mount.point.rstrip("/") + "/" + device.cow_file.lstrip("/") if mount else device.cow_file
    notes = []
    try:
        require_active(tracking)
    except LvmsyncError as error:
        notes.append(str(error))
    if series is None:
        notes.append(f"{device.block_device} was set up by another program; lvmsync has recorded nothing of it yet")
    current = series.find_period(device.seqid) if series and device.seqid is not None else None
    return State(
        driver=tracking.driver.name,
        block_device=device.block_device,
        minor=device.minor,
        state=device.words,
        state_bits=device.state,
        error=device.error,
        uuid=device.uuid,
        seqid=device.seqid,
        snapshot=tracking.snapshot_path if device.is_snapshot and device.is_active and not device.has_failed else None,
        mount_point=mount.point if mount else None,
        cow_file=cow,
        cow_size=device.cow_size_current if device.cow_size_current is not None else device.fallocate,
        changed_blocks=device.nr_changed_blocks,
        gaps=current.gaps if current else [],
        notes=notes,
        **_recorded(series),
    )


def _describe_lost(series: Series) -> State:
    return State(
        driver=series.driver,
        block_device=series.block_device,
        minor=series.minor,
        state="not tracked",
        state_bits=None,
        error=None,
        uuid=series.uuid,
        seqid=series.current.seqid,
        snapshot=None,
        mount_point=None,
        cow_file=series.current.path,
        cow_size=None,
        changed_blocks=None,
        gaps=series.current.gaps,
        notes=[
            f"{series.block_device} was tracked and is not now: if it is not mounted, run 'lvmsync dattobd reload'; if"
            " it is, 'lvmsync dattobd cycle' begins anew and compares"
        ],
        **_recorded(series),
    )


def _recorded(series: Series | None) -> dict[str, list[dict[str, str | int | bool]]]:
    if series is None:
        return {"cow_files": [], "copies": []}
    return {
        "cow_files": [{"seqid": one.seqid, "path": one.path, "taken": one.taken} for one in series.periods[:-1]],
        "copies": [{"target": one.target, "seqid": one.seqid, "time": one.time} for one in series.copies],
    }
