"""Devices tracked by dattobd or elastio-snap: the steps of their cycle, each of them recorded before and after.

setup          active snapshot 1        the first copy is made from the snapshot device
to-incremental active incremental       the snapshot is given up; what changes is recorded
to-snapshot    active snapshot 2        with a new COW file; the old one is whole now, and tells what changed
...
(umount: dormant; reload before the mount at boot: unverified; mount: active)
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, LvmsyncError
from lvmsync.jobs import dattobd_unit
from lvmsync.jobs.dattobd_follow import note_blocks, reconcile
from lvmsync.jobs.dattobd_place import (
    choose_driver,
    find_again,
    find_tracking,
    is_device,
    look_up,
    new_cow,
    recorded_under,
    require_active,
    require_mount,
    series_of,
)
from lvmsync.jobs.dattobd_record import (
    Period,
    Series,
    find_mount,
    find_recorded,
    hold_records,
    note_beginning,
    now,
    read_series,
    require_identity,
    write_series,
)
from lvmsync.names import parse_volume
from lvmsync.sources.dattobd_blocks import warn_of_zeroes
from lvmsync.sources.dattobd_map import read_header
from lvmsync.system.dattobd import Control, Driver, Tracking, list_tracked
from lvmsync.system.device import open_device
from lvmsync.system.identity import identify, is_same_device
from lvmsync.system.ledger import remove_file


def setup(
    state: Path,
    word: str,
    cow: str | None = None,
    *,
    space_mib: int = 0,
    cache_size: int = 0,
    minor: int | None = None,
    driver: str | None = None,
    units: Path | None = None,
    dry_run: bool = False,
) -> tuple[Series | None, list[str]]:
    """Begin to track a mounted device: it is an active snapshot then.

    Args:
        state: the state folder.
        word: the device.
        cow: path of the new COW file, on the device's file system; None: one in its root.
        space_mib: MiB for the COW file; 0: 10 % of the device.
        cache_size: bytes of memory for the index; 0: 300 MiB.
        minor: for the driver's device; None: one that is free.
        driver: name of the module; None: the one that is loaded.
        units: folder for the unit file; None: none is written.
        dry_run: check only.

    Returns:
        The new series (None in a dry run), and what is left to do, a sentence each.
    """
    with hold_records(state, dry_run=dry_run):
        if dry_run:
            device, chosen, path = require_fit(word, cow, driver)
            series_of(state, device)
            return None, [f"{device} would be tracked by {chosen.name}, with {path}", *warn_of_zeroes(chosen, device)]
        return begin(
            state, word, cow, space_mib=space_mib, cache_size=cache_size, minor=minor, driver=driver, units=units
        )


def require_fit(word: str, cow: str | None, driver: str | None) -> tuple[str, Driver, str]:
    """Return device, driver and COW file with which tracking can begin.

    Raises:
        ConflictError: the device is tracked already.
        DeviceError: it is not mounted, no driver is loaded, or the COW file cannot be there.
    """
    device = str(Path(parse_volume(word).path).absolute())
    chosen = choose_driver(driver)
    tracked = next((one for one in list_tracked() if is_same_device(one.device.block_device, device)), None)
    if tracked:
        raise ConflictError(
            f"{device} is tracked already, by {tracked.driver.name} as minor {tracked.device.minor}"
            f" ({tracked.device.words}); see 'lvmsync dattobd status'",
            device=device,
        )
    mount = require_mount(device)
    path = new_cow(mount, cow, 1)
    return device, chosen, path


def begin(
    state: Path,
    word: str,
    cow: str | None,
    *,
    space_mib: int,
    cache_size: int,
    minor: int | None,
    driver: str | None,
    units: Path | None,
) -> tuple[Series, list[str]]:
    """Do what `setup` says, with the records held."""
    device, chosen, path = require_fit(word, cow, driver)
    series_of(state, device)  # refuses another device under its path; older records are ended with the new one
    note_beginning(state, path)
    with Control(chosen) as control:
        number = control.find_free_minor() if minor is None else minor
        control.setup(device, path, number, space_mib=space_mib, cache_size=cache_size)
        found = control.read_info(number)
    series = _fresh(state, chosen, number, found.uuid)
    steps = warn_of_zeroes(chosen, device)
    if units:
        unit, more = dattobd_unit.install_unit(state, series, units)
        steps += more
        series = replace(series, unit=unit)
        write_series(state, series)
    return series, steps


def _fresh(state: Path, driver: Driver, minor: int, uuid: str) -> Series:
    """Record a series that has just begun."""
    tracking = next(one for one in list_tracked((driver,)) if one.device.minor == minor)
    if tracking.device.uuid != uuid:
        raise ConflictError(f"minor {minor} of {driver.name} is not what was set up; is another program at work?")
    series = reconcile(state, tracking)
    series = series.with_period(replace(series.current, gaps=[]))  # nothing was missed: it began just now
    write_series(state, series)
    note_beginning(state, None)
    return series


def to_incremental(
    state: Path, word: str, *, force: bool = False, take_over: bool = False, dry_run: bool = False
) -> Series:
    """Give the snapshot up, and go on recording what changes.

    Args:
        state: the state folder.
        word: device or minor.
        force: although the changes that lead to the snapshot were not taken over.
        take_over: although another program took it.
        dry_run: check only.

    Raises:
        ConflictError: they were not.
    """
    with hold_records(state, dry_run=dry_run):
        tracking = find_tracking(word)
        require_active(tracking)
        if not tracking.device.is_snapshot:
            raise DeviceError(f"{word} is in incremental mode already ({tracking.device.words})", device=word)
        series = reconcile(state, tracking, take_over=take_over, dry_run=dry_run)
        _require_taken(series, series.current.seqid - 1, force=force)
        return series if dry_run else give_up_snapshot(state, tracking, series)


def give_up_snapshot(state: Path, tracking: Tracking, series: Series) -> Series:
    """Go on to incremental mode; the record is up to date before."""
    # The driver cuts the COW file short: what it gives back was never tracked, so it is noted where that was.
    series = series.with_period(note_blocks(series.current))
    write_series(state, series)
    with Control(tracking.driver) as control:
        control.to_incremental(tracking.device.minor)
    return reconcile(state, find_again(tracking), take_over=True)


def to_snapshot(
    state: Path,
    word: str,
    cow: str | None = None,
    *,
    space_mib: int = 0,
    force: bool = False,
    take_over: bool = False,
    dry_run: bool = False,
) -> Series:
    """Take the next snapshot, with a new COW file; the old one is whole then.

    Args:
        state: the state folder.
        word: device or minor.
        cow: path of the new COW file; None: the next name in the folder of the old one.
        space_mib: MiB for it; 0: as before.
        force: although the COW file before this one was not taken over.
        take_over: although another program tracks the device.
        dry_run: check only.
    """
    with hold_records(state, dry_run=dry_run):
        tracking = find_tracking(word)
        require_active(tracking)
        if tracking.device.is_snapshot:
            raise DeviceError(
                f"{word} is in snapshot mode already, at snapshot {tracking.device.seqid}; see 'lvmsync dattobd"
                " to-incremental'",
                device=word,
            )
        series = reconcile(state, tracking, take_over=take_over, dry_run=dry_run)
        _require_taken(series, series.current.seqid - 1, force=force)
        if dry_run:
            new_cow(require_mount(series.block_device), cow, series.current.seqid + 1)
            return series
        return take_snapshot(state, tracking, series, cow, space_mib=space_mib)


def take_snapshot(
    state: Path, tracking: Tracking, series: Series, cow: str | None = None, *, space_mib: int = 0
) -> Series:
    """Go on to snapshot mode; the record is up to date before."""
    folder = None if series.current.foreign else str(Path(series.current.path).parent)
    path = new_cow(require_mount(series.block_device), cow, series.current.seqid + 1, folder)
    series = replace(series.with_period(note_blocks(series.current)), pending=path)
    write_series(state, series)
    try:
        with Control(tracking.driver) as control:
            control.to_snapshot(tracking.device.minor, path, space_mib=space_mib)
    except DeviceError:
        now_tracked = find_again(tracking).device
        if now_tracked.seqid == tracking.device.seqid and now_tracked.state == tracking.device.state:
            with suppress(LvmsyncError):
                remove_file(Path(path))  # what the driver has begun of it; it was not there before
            write_series(state, replace(series, pending=None))
        raise
    return reconcile(state, find_again(tracking))


def reload(state: Path, word: str | None = None, *, dry_run: bool = False) -> list[str]:
    """Go on with devices after a reboot, before they are mounted, as they are recorded.

    Args:
        state: the state folder.
        word: one device; None: all that are recorded.
        dry_run: check only.

    Returns:
        What was done, a sentence for each device.
    """
    with hold_records(state, wait=True, dry_run=dry_run):  # the units of several devices run at a time
        path = parse_volume(word).path if word else None
        recorded, unread = read_series(state)
        wanted = [one for one in recorded if not one.ended and (path is None or is_device(path, one.block_device))]
        if not wanted and word and not unread:
            raise DeviceError(f"nothing is recorded of {word}; see 'lvmsync dattobd status'", device=word)
        said: list[str] = []
        errors: list[LvmsyncError] = [*unread]  # the other devices are to be reloaded all the same
        for series in wanted:
            try:
                said.append(_reload_one(state, series, dry_run=dry_run))
            except LvmsyncError as error:
                errors.append(error)
        if errors:
            for other in [*map(str, errors[1:]), *said]:
                errors[0].add_note(other)
            raise errors[0]
        return said


def _reload_one(state: Path, series: Series, *, dry_run: bool) -> str:
    device = series.block_device
    for one in list_tracked():
        if one.device.uuid == series.uuid or is_same_device(one.device.block_device, device):
            return f"{device} is there already: minor {one.device.minor}, {one.device.words}"
    if series.pending:
        raise ChangesLost(
            f"{device}: a snapshot was being taken when the machine stopped, so which COW file is the current one is"
            " not known; run 'lvmsync dattobd cycle' once it is mounted, which begins anew and compares",
            device=device,
        )
    mount = find_mount(device)
    if mount:
        raise DeviceError(
            f"{device} is mounted at {mount.point}, and what was written since is not known: a reload comes before the"
            f" mount; run 'lvmsync dattobd cycle {device} TARGET', which begins anew and compares",
            device=device,
        )
    with open_device(device) as opened:
        identity = identify(opened.fd)
    require_identity(series, identity)
    chosen = choose_driver(series.driver)
    if dry_run:
        return f"{device} would be reloaded with {series.cow_path}"
    # Noted first: from here on, writes of the shutdown and of the mount are known to be missing.
    series = series.with_period(series.current.with_gap(f"It was reloaded at {now()}."))
    write_series(state, series)
    with Control(chosen) as control:
        taken = {one.device.minor for one in list_tracked((chosen,))}
        minor = control.find_free_minor() if series.minor in taken else series.minor
        control.reload(device, series.cow_path, minor, snapshot=series.is_snapshot, cache_size=series.max_cache)
    write_series(state, replace(series, minor=minor))
    return f"{device} was reloaded as minor {minor}; it is active when it is mounted"


def destroy(state: Path, word: str, *, dry_run: bool = False) -> list[str]:
    """Stop tracking a device; remove its unit, and the COW files that are ours.

    Returns:
        What was done, and what stays, a sentence each.
    """
    with hold_records(state, dry_run=dry_run):
        notes: list[str] = []
        tracking = look_up(word)
        if tracking is None:
            series = next((one for one in recorded_under(state, parse_volume(word).path) if not one.ended), None)
            if series is None:
                find_tracking(word)  # says what is tracked
            notes.append(f"{word} is not tracked; its record is closed")
        else:
            series = find_recorded(state, tracking)
            if series is None:
                notes.append("COW files of earlier periods, if there are any, are not known: they stay")
        if dry_run:
            return notes or [f"{word} would not be tracked any more"]
        if tracking:
            with Control(tracking.driver) as control:
                control.destroy(tracking.device.minor)
            notes.append(f"{tracking.device.block_device} is not tracked any more")
        if series:
            write_series(state, replace(series, ended=now(), pending=None))
            notes += [note for period in series.periods if (note := remove_cow(series, period))]
            if series.unit:
                notes += dattobd_unit.remove_unit(series.unit)
                write_series(state, replace(series, ended=now(), pending=None, unit=None))
        return notes


def remove_cow(series: Series, period: Period) -> str | None:
    """Remove a COW file of a series; return a sentence if it stays."""
    path = Path(period.path)
    try:
        if find_mount(series.block_device) is None:
            return f"{path} stays, if it is there: {series.block_device} is not mounted"
        with open_device(series.block_device) as device:
            if not series.is_of(identify(device.fd)):
                return f"{path} stays, if it is there: another device is {series.block_device} now"
        if not path.exists():
            return None
        if period.foreign:
            return f"{path} stays: another program made it"
        with open_device(period.path) as file:
            header = read_header(file)
        if (header.uuid, header.seqid) != (series.uuid, period.seqid):
            return f"{path} stays: it is the COW file of snapshot {header.seqid} of series {header.uuid}, not ours"
        remove_file(path)
    except LvmsyncError as error:
        return f"{path} stays: {error}"
    return None


def _require_taken(series: Series, seqid: int, *, force: bool) -> None:
    """Refuse to go on while changes wait for the snapshot that is there, or was."""
    period = series.find_period(seqid)
    if period is None or period.taken or force:
        return
    raise ConflictError(
        f"{period.path} was not taken over yet: what it tells leads to snapshot {seqid + 1}, and to no other; run"
        f" 'lvmsync dattobd update' with it, or give --force and compare the whole device later",
        device=period.path,
    )
