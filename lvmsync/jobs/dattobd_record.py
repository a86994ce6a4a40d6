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
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, FormatError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.sources.dattobd import make_point
from lvmsync.system import dattobd as driver
from lvmsync.system.dattobd import Tracking
from lvmsync.system.device import open_device
from lvmsync.system.identity import boot_id as read_boot_id
from lvmsync.system.identity import is_same_device
from lvmsync.system.ledger import file_name, make_folders, open_lock, remove_file, replace_file
from lvmsync.system.mounts import Mount, find_mounts

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
        nonce: random, drawn for this very snapshot: after a rollback of the machine its number comes again.
        foreign: whether another program took the snapshot; its COW file is not ours.
    """

    seqid: int
    path: str
    blocks: list[list[int]] | None = None
    gaps: list[str] = field(default_factory=list)
    taken: bool = False
    nonce: str = ""
    foreign: bool = False

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
        doubt: why it may not hold that snapshot, though it was brought up to it; None: it does.
    """

    target: str
    seqid: int
    gaps: int
    time: str
    doubt: str | None = None


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
        size: bytes of the device when it was first seen; None: not known.
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
    size: int | None = None

    @property
    def current(self) -> Period:
        """The period that the driver is in."""
        return self.periods[-1]

    def is_of(self, identity: dict[str, str]) -> bool:
        """Tell whether it is of the device with this identity; numbers of devices change, and tell nothing."""
        return identity == self.identity or "device number" in self.identity

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

    def with_copy(self, target: str, seqid: int, gaps: int, doubt: str | None = None) -> Series:
        """Return it with a target noted, now."""
        others = [one for one in self.copies if one.target != target]
        copy = Copy(target, seqid, gaps, now(), doubt)
        return replace(self, copies=sorted([*others, copy], key=lambda one: one.target))

    def point(self, seqid: int, parent: Point | None = None) -> Point:
        """Return the point that a snapshot of it is: that very one, where its nonce is recorded."""
        point, period = make_point(self.uuid, seqid, parent), self.find_period(seqid)
        if period is None or not period.nonce:
            return point
        return replace(point, id=f"dattobd/{self.uuid}/{seqid}/{period.nonce}")

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
    """Return what names this boot of the machine."""
    return read_boot_id(driver.ROOT)


@contextmanager
def hold_records(state: Path, *, wait: bool = False, dry_run: bool = False) -> Iterator[None]:
    """Keep other runs from the records, and from the drivers.

    Args:
        state: the state folder.
        wait: until another run is done.
        dry_run: make no folder; where there is none, there is no other run.

    Raises:
        ConflictError: another run has them.
    """
    folder = _folder(state)
    if dry_run and not (folder / "lock").exists():
        yield
        return
    lock = open_lock(folder, state)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ConflictError("another 'lvmsync dattobd' is at work here; wait for it to end") from error
        yield
    finally:
        os.close(lock)


def list_series(state: Path) -> list[Series]:
    """Return all records.

    Raises:
        FormatError: one cannot be read.
    """
    found, errors = read_series(state)
    if errors:
        raise errors[0]
    return found


def read_series(state: Path) -> tuple[list[Series], list[FormatError]]:
    """Return all records that can be read, and why others cannot."""
    found: list[Series] = []
    errors = []
    for path in sorted(_folder(state).glob("*.json")):
        try:
            found.append(_read(path))
        except FormatError as error:
            errors.append(error)
    return found, errors


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


def others_of(state: Path, series: Series) -> list[Series]:
    """Return the records of earlier series of the same device: not of another one under the same path."""
    return [
        one
        for one in list_series(state)
        if one.uuid != series.uuid
        and (one.block_device == series.block_device or is_same_device(one.block_device, series.block_device))
        and one.is_of(series.identity)
    ]


def require_identity(series: Series, identity: dict[str, str]) -> None:
    """Refuse a device that is not the one that is recorded.

    Args:
        series: the record.
        identity: of the device that is there under the same path, or with the same series.
    """
    if not series.is_of(identity):
        raise ConflictError(
            f"{series.block_device} is not the device that was tracked: it is {identity}, not {series.identity}; bring"
            " that one back under this path, or close its record with 'lvmsync dattobd destroy'",
            device=series.block_device,
        )


def note_beginning(state: Path, path: str | None) -> None:
    """Write down that a device is about to be set up with a COW file, which tells later that it was us.

    Args:
        state: the state folder.
        path: of the file, which is not there yet; None: it is recorded now.
    """
    note = _folder(state) / "beginning"
    try:
        if path is None:
            remove_file(note)
        else:
            replace_file(note, json.dumps({"path": path, "boot": boot_id()}))
    except OSError as error:
        raise DeviceError(f"cannot write {note}: {error.strerror}", device=str(note)) from error


def began(state: Path, tracking: Tracking) -> bool:
    """Tell whether a device was set up by a run of ours that was cut short."""
    device = tracking.device
    mount = find_mount(device.block_device)
    try:
        noted = json.loads((_folder(state) / "beginning").read_text())
        path, boot = noted["path"], noted["boot"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return (
        mount is not None
        and device.seqid == 1
        and boot == boot_id()
        and path == mount.point.rstrip("/") + "/" + device.cow_file.lstrip("/")
    )


def new_nonce() -> str:
    """Return a word that no other snapshot has."""
    return uuids.uuid4().hex


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
        _require_types(series)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{path} cannot be read ({error}); move it away, and run 'lvmsync dattobd cycle --take-over'"
        ) from error
    return series


def _require_types(series: Series) -> None:
    """Refuse values that only another hand can have written."""
    word, number, maybe = (str,), (int,), (str, type(None))
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("uuid", "driver", "block_device", "mount_point", "boot", "path", "target", "time"), word),
        **dict.fromkeys(("minor", "max_cache", "seqid"), number),
        **dict.fromkeys(("pending", "unit", "ended", "doubt"), maybe),
        **dict.fromkeys(("is_snapshot", "taken", "foreign"), (bool,)),
        "identity": (dict,), "size": (int, type(None)), "nonce": word, "blocks": (list, type(None)),
    }  # fmt: skip
    parts: list[Series | Period | Copy] = [series, *series.periods, *series.copies]
    for part in parts:
        gaps = list if isinstance(part, Period) else int
        for key, value in vars(part).items():
            wanted = (gaps,) if key == "gaps" else kinds.get(key)
            if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
                raise ValueError(f"{key} is {value!r}")
    if not isinstance(series.periods, list) or not series.periods:
        raise ValueError("no period")
    for period in series.periods:
        if not all(isinstance(gap, str) for gap in period.gaps):
            raise ValueError("a gap is no sentence")
        for one in period.blocks or []:
            if not (isinstance(one, list) and len(one) == 2 and all(type(x) is int and x >= 0 for x in one)):
                raise ValueError(f"blocks hold {one!r}")
