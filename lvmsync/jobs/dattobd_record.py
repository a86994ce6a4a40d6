"""What is kept about a series of dattobd or elastio-snap snapshots: its COW files, its gaps, and its copies.

    STATE/dattobd/UUID.json   one record a series; replaced by rename, before anything that cannot be undone
    STATE/dattobd/lock        held by whoever works on one

A COW file tells what was written since its snapshot was taken, but not what was written while the driver was
not there: at umount, at mount, between a shutdown and the reload. Such a gap is noted, and a copy that is
older than the gap is compared as a whole.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, FormatError
from lvmsync.extents import ChangeMap
from lvmsync.formats.dattobd import COW_BLOCK_SIZE, Header, count_sections, data_offset
from lvmsync.sources.dattobd_map import read_header
from lvmsync.system import dattobd as driver
from lvmsync.system.dattobd import Tracking
from lvmsync.system.device import open_device
from lvmsync.system.fiemap import DEVICE_KINDS, find_file_extents
from lvmsync.system.identity import identify, is_same_device
from lvmsync.system.ledger import file_name, make_folders, replace_file
from lvmsync.system.mounts import Mount, device_of_file, find_mounts

_VERSION = 1


@dataclass(frozen=True)
class Period:
    """The time from one snapshot to the next, and the COW file that tells what was written in it.

    Attributes:
        seqid: of the snapshot that it begins with.
        path: of the COW file, absolute.
        blocks: ``[offset, length]`` of where that lay on the device; None: not known.
        gaps: why some writes are not in it, a sentence each.
        taken: its changes were carried over, so that the file is not needed any more.
    """

    seqid: int
    path: str
    blocks: list[list[int]] | None = None
    gaps: list[str] = field(default_factory=list)
    taken: bool = False

    def with_gap(self, gap: str) -> Period:
        """Return it with one more gap, unless that is known."""
        return self if gap in self.gaps else replace(self, gaps=[*self.gaps, gap])


@dataclass(frozen=True)
class Copy:
    """A target, and which snapshot it holds.

    Attributes:
        target: as its user names it.
        seqid: of the snapshot.
        gaps: how many gaps of that snapshot's period were known when the copy was begun: it has what those lack.
        time: UTC, ISO 8601.
    """

    target: str
    seqid: int
    gaps: int
    time: str


@dataclass(frozen=True)
class Series:
    """One series of snapshots of one device.

    Attributes:
        uuid: 32 hex digits.
        driver: name of the kernel module.
        block_device: path of the device.
        identity: what makes it this device and no other.
        mount_point: where it was mounted when last seen.
        minor: of the driver's device.
        is_snapshot: whether it was in snapshot mode when last seen.
        max_cache: bytes that the index may take in memory.
        boot: id of the boot that it was last seen in.
        periods: by sequence number; the last one is the current one. Those whose COW file was removed are not there.
        copies: by target.
        pending: path of the COW file that a snapshot was about to be taken with; None: at rest.
        unit: path of the unit file that reloads it at boot; None: there is none.
        ended: when tracking ended; None: it has not.
    """

    uuid: str
    driver: str
    block_device: str
    identity: dict[str, str]
    mount_point: str
    minor: int
    is_snapshot: bool
    max_cache: int
    boot: str
    periods: list[Period]
    copies: list[Copy] = field(default_factory=list)
    pending: str | None = None
    unit: str | None = None
    ended: str | None = None

    @property
    def current(self) -> Period:
        """The period that the driver is in."""
        return self.periods[-1]

    @property
    def cow_path(self) -> str:
        """The path of the current COW file, relative to the root of its file system."""
        relative = os.path.relpath(self.current.path, self.mount_point)
        return f"/{relative}"

    def find_period(self, seqid: int) -> Period | None:
        """Return a period that is recorded."""
        return next((one for one in self.periods if one.seqid == seqid), None)

    def find_copy(self, target: str) -> Copy | None:
        """Return what is recorded of a target."""
        return next((one for one in self.copies if one.target == target), None)

    def with_period(self, period: Period) -> Series:
        """Return it with a period added, or replaced."""
        others = [one for one in self.periods if one.seqid != period.seqid]
        return replace(self, periods=sorted([*others, period], key=lambda one: one.seqid))

    def with_copy(self, target: str, seqid: int, gaps: int) -> Series:
        """Return it with a target noted, now."""
        others = [one for one in self.copies if one.target != target]
        return replace(self, copies=sorted([*others, Copy(target, seqid, gaps, now())], key=lambda one: one.target))

    def own_blocks(self, seqid: int) -> ChangeMap | None:
        """Return where the COW files of a period and of the next one lay; None if that of the first is not known."""
        first, then = self.find_period(seqid), self.find_period(seqid + 1)
        if first is None or first.blocks is None:
            return None
        ranges = [*first.blocks, *((then.blocks or []) if then else [])]
        return ChangeMap.from_extents([(offset, length) for offset, length in ranges])


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def boot_id() -> str:
    """Return what names this boot of the machine.

    Raises:
        DeviceError: the kernel does not say.
    """
    path = driver.ROOT / "proc/sys/kernel/random/boot_id"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error


@contextmanager
def hold_records(state: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other runs from the records, and from the drivers.

    Args:
        state: the state folder.
        wait: until another run is done.

    Raises:
        ConflictError: another run has them.
    """
    folder = _folder(state)
    try:
        make_folders(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(
            f"cannot use the state folder {state}: {error.strerror}; choose another with --state", device=str(state)
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    except BlockingIOError as error:
        raise ConflictError("another 'lvmsync dattobd' is at work here; wait for it to end") from error
    finally:
        os.close(lock)


def list_series(state: Path) -> list[Series]:
    """Return all records.

    Raises:
        FormatError: one cannot be read.
    """
    return [_read(path) for path in sorted(_folder(state).glob("*.json"))]


def write_series(state: Path, series: Series) -> None:
    """Replace the record of a series, durably.

    Raises:
        DeviceError: it cannot be written.
    """
    path = _folder(state) / f"{file_name(series.uuid)}.json"
    try:
        make_folders(path.parent)
        replace_file(path, json.dumps({"version": _VERSION, **asdict(series)}, indent=1))
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}", device=str(path)) from error


def find_mount(device: str) -> Mount | None:
    """Return where a device is mounted; None: it is not.

    Raises:
        DeviceError: it is not there.
    """
    with open_device(device) as opened:
        found = find_mounts(opened.number) if opened.number else []
    return found[0] if found else None


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


def find_recorded(state: Path, tracking: Tracking) -> Series | None:
    """Return the record of what a driver tracks; None: there is none."""
    device = tracking.device
    for one in list_series(state):
        if device.uuid is not None:
            if one.uuid == device.uuid:
                return one
        elif (
            one.ended is None
            and (one.driver, one.minor, one.cow_path) == (tracking.driver.name, device.minor, device.cow_file)
            and is_same_device(one.block_device, device.block_device)
        ):
            return one
    return None


def reconcile(state: Path, tracking: Tracking) -> Series:
    """Bring the record of an active device up to what the driver says, write it, and return it.

    A step that was cut short is finished in the record; what another program did, and every gap, is noted.

    Raises:
        DeviceError: the device, or its COW file, cannot be looked at.
    """
    device = tracking.device
    assert device.uuid is not None
    assert device.seqid is not None
    mount = find_mount(device.block_device)
    if mount is None:
        raise DeviceError(f"{device.block_device} is not mounted; mount it first", device=device.block_device)
    path = mount.point.rstrip("/") + "/" + device.cow_file.lstrip("/")
    series = find_recorded(state, tracking) or _adopt(tracking, mount, path)
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
    )
    write_series(state, series)
    return series


def _adopt(tracking: Tracking, mount: Mount, path: str) -> Series:
    device = tracking.device
    with open_device(device.block_device) as opened:
        identity = identify(opened.fd)
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
        periods=[Period(device.seqid or 0, path, find_blocks(path), [gap])],
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
        was = series.find_period(seqid) or Period(seqid, path)
        copies = [one for one in series.copies if one.seqid <= seqid]
        return replace(series, periods=[*kept, replace(was, path=path).with_gap(gap)], copies=copies)
    if seqid > current.seqid + 1 or path != series.pending:
        # Only before the end of a period can it be seen whether its COW file was closed meanwhile.
        series = series.with_period(current.with_gap("Another program took the snapshot that ended it."))
    return series.with_period(Period(seqid, path, find_blocks(path)))


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


def _folder(state: Path) -> Path:
    return state / "dattobd"


def _read(path: Path) -> Series:
    try:
        values = json.loads(path.read_text())
        if values.pop("version") != _VERSION:
            raise ValueError("written by another version")
        values["periods"] = [Period(**one) for one in values["periods"]]
        values["copies"] = [Copy(**one) for one in values["copies"]]
        series = Series(**values)
        if not series.periods:
            raise ValueError("no period")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{path} cannot be read ({error}); move it away, and the next 'lvmsync dattobd cycle' compares everything"
        ) from error
    return series
