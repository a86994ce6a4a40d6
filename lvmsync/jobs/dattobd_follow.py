"""The record of a tracked device, brought up to what its driver says: what was cut short, other programs, gaps."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError
from lvmsync.extents import ChangeMap
from lvmsync.formats.dattobd import COW_BLOCK_SIZE, Header, count_sections, data_offset
from lvmsync.jobs.dattobd_record import (
    Period,
    Series,
    began,
    boot_id,
    find_mount,
    find_recorded,
    new_nonce,
    now,
    others_of,
    require_identity,
    write_series,
)
from lvmsync.sources.dattobd_map import read_header
from lvmsync.system.dattobd import Tracking
from lvmsync.system.device import open_device
from lvmsync.system.fiemap import DEVICE_KINDS, find_file_extents
from lvmsync.system.identity import identify
from lvmsync.system.mounts import Mount, device_of_file, find_mounts


def reconcile(state: Path, tracking: Tracking, *, take_over: bool = False, dry_run: bool = False) -> Series:
    """Bring the record of an active device up to what the driver says, write it, and return it.

    A step that was cut short is finished in the record; what another program did, and every gap, is noted.

    Args:
        state: the state folder.
        tracking: what the driver says.
        take_over: although another program set the device up, or took its snapshot.
        dry_run: write nothing.

    Raises:
        DeviceError: the device, or its COW file, cannot be looked at.
        ConflictError: it is another device than the one that is recorded, or another program's.
        ChangesLost: it was resized.
    """
    device = tracking.device
    assert device.uuid is not None
    assert device.seqid is not None
    mount = find_mount(device.block_device)
    if mount is None:
        raise DeviceError(f"{device.block_device} is not mounted; mount it first", device=device.block_device)
    path = mount.point.rstrip("/") + "/" + device.cow_file.lstrip("/")
    with open_device(device.block_device) as opened:
        identity, size = identify(opened.fd), opened.size
    series = find_recorded(state, tracking) or _adopt(tracking, mount, path, identity, is_ours=began(state, tracking))
    require_identity(series, identity)
    if series.size not in (None, size):
        raise ChangesLost(
            f"{device.block_device} was resized, from {series.size} to {size} bytes: {tracking.driver.name} does not"
            " follow that; run 'lvmsync dattobd destroy', make the target as large, and run 'lvmsync dattobd cycle'",
            device=device.block_device,
        )
    if series.ended:
        gap = "Tracking went on after it had been ended."
        series = replace(series, ended=None).with_period(series.current.with_gap(gap))
    series = _follow(series, device.seqid, path)
    current = series.current
    if series.boot != boot_id():
        current = current.with_gap(f"The machine was started anew before {now()}.")
    series = replace(
        series.with_period(_look_for_reopening(current, tracking)),
        driver=tracking.driver.name,
        block_device=device.block_device,
        mount_point=mount.point,
        minor=device.minor,
        is_snapshot=device.is_snapshot,
        max_cache=device.max_cache,
        boot=boot_id(),
        pending=None,
        size=size,
    )
    if series.current.foreign and not take_over:
        raise ConflictError(
            f"{device.block_device}: snapshot {device.seqid}, with the COW file {path}, was taken by another program,"
            f" which may need it; end that one's work, or give --take-over",
            device=device.block_device,
        )
    if not dry_run:
        write_series(state, series)
        for old in others_of(state, series):
            if not old.ended:  # there is one that the driver goes on with
                write_series(state, replace(old, ended=now()))
    return series


def _adopt(tracking: Tracking, mount: Mount, path: str, identity: dict[str, str], *, is_ours: bool) -> Series:
    device = tracking.device
    gap = f"What happened before lvmsync first saw it ({now()}) is not known."
    return Series(
        uuid=device.uuid or "",
        driver=tracking.driver.name,
        block_device=device.block_device,
        identity=identity,
        mount_point=mount.point,
        minor=device.minor,
        is_snapshot=device.is_snapshot,
        max_cache=device.max_cache,
        boot=boot_id(),
        periods=[Period(device.seqid or 0, path, find_blocks(path), [gap], nonce=new_nonce(), foreign=not is_ours)],
    )


def _follow(series: Series, seqid: int, path: str) -> Series:
    """Bring the periods of a record up to the driver's sequence number and COW file."""
    current = series.current
    if seqid == current.seqid:
        if path == current.path:
            return series
        return series.with_period(replace(current, path=path, blocks=None))
    if seqid < current.seqid:
        gap = f"The driver went back from snapshot {current.seqid} to {seqid}: an older COW file was reloaded."
        kept = [one for one in series.periods if one.seqid < seqid]
        was = replace(series.find_period(seqid) or Period(seqid, path, foreign=True), nonce=new_nonce())
        copies = [one for one in series.copies if one.seqid <= seqid]
        return replace(series, periods=[*kept, replace(was, path=path).with_gap(gap)], copies=copies)
    is_foreign = seqid > current.seqid + 1 or path != series.pending
    if is_foreign:
        # Only before the end of a period can it be seen whether its COW file was closed meanwhile.
        series = series.with_period(current.with_gap("Another program took the snapshot that ended it."))
    return series.with_period(Period(seqid, path, find_blocks(path), nonce=new_nonce(), foreign=is_foreign))


def _look_for_reopening(period: Period, tracking: Tracking) -> Period:
    """Note a gap if the COW file was closed in this period, and opened again: the device was unmounted.

    Nothing but a close writes the counters of the header, and the flag of incremental mode.
    """
    try:
        with open_device(period.path) as file:
            header = read_header(file)
            changed = os.fstat(file.fd).st_mtime_ns
        with open_device(tracking.device.block_device) as opened:
            first = data_offset(count_sections(opened.size)) // COW_BLOCK_SIZE
    except (DeviceError, FormatError) as error:
        return period.with_gap(f"Its COW file could not be looked at: {error}.")
    if is_fresh(header, first):
        return period
    return period.with_gap(
        f"The device was unmounted meanwhile, and what umount and mount wrote is missing (COW file of {changed})."
    )


def is_fresh(header: Header, first_block: int) -> bool:
    """Tell whether a COW file that is in use has never been closed.

    Args:
        header: of the file.
        first_block: where its datastore begins, in blocks of 4096 bytes.
    """
    return not header.flags & 3 and not header.nr_changed_blocks and header.fpos == first_block


def find_blocks(path: str) -> list[list[int]] | None:
    """Return ``[offset, length]`` of where a COW file lies on its device; None where its file system cannot tell."""
    try:
        number = device_of_file(path)
        if not any(mount.kind in DEVICE_KINDS for mount in find_mounts(number)):
            return None
        found = find_file_extents(path)
    except DeviceError:
        return None
    return None if found is None else [[one.offset, one.length] for one in found]


def note_blocks(period: Period) -> Period:
    """Return the period with the blocks that its COW file has now added to those that it had."""
    found = find_blocks(period.path)
    if found is None:
        return replace(period, blocks=None)
    known = ChangeMap.from_extents([(one[0], one[1]) for one in [*found, *(period.blocks or [])]])
    return replace(period, blocks=[[one.offset, one.length] for one in known])
