"""What an elastio-snap or dattobd COW file says was written.

An incremental COW file leads from the snapshot whose sequence number it has to the next one, which the driver
shows as a device until it goes on tracking. A COW file in snapshot mode, closed when the device was unmounted,
leads from its snapshot to what the device was then, and holds what it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.formats.dattobd import COW_BLOCK_SIZE, INSTEAD, Header, data_offset
from lvmsync.formats.dattobd_control import Tracked
from lvmsync.history import Point
from lvmsync.interfaces import Readable
from lvmsync.names import CowFile, parse_volume
from lvmsync.sources.dattobd_blocks import find_own_blocks, warn_of_discards
from lvmsync.sources.dattobd_map import CowMap, read_header, read_map
from lvmsync.sources.head import Watch, open_quiet
from lvmsync.sources.snapshot_base import Kept
from lvmsync.sources.source import Reading, Source, Unread
from lvmsync.system.dattobd import Tracking, list_tracked
from lvmsync.system.device import Device, naming, open_device
from lvmsync.system.identity import is_same_device

_ACTIVE_SNAPSHOT = 3
SECTOR = 512


@contextmanager
def open_cow_file(name: CowFile, reading: Reading, own_blocks: ChangeMap | None = None) -> Iterator[Source]:
    """Open what a COW file says, in either mode; see `open_source`.

    Args:
        name: of the file.
        reading: what is wanted.
        own_blocks: where the COW file lay on the device, as noted before the driver cut it short; None: not known.
    """
    with ExitStack() as stack:
        opened = _open_file(name, stack)
        if opened.header.is_incremental:
            yield _read_incremental(name, reading, opened, own_blocks, stack)
        else:
            yield _read_snapshot(name, reading, opened, stack)


@contextmanager
def open_incremental(name: CowFile, reading: Reading, own_blocks: ChangeMap | None = None) -> Iterator[Source]:
    """Open what an incremental COW file says; one in snapshot mode is refused. See `open_cow_file`.

    Raises:
        FormatError: it is in snapshot mode.
    """
    with ExitStack() as stack:
        opened = _open_file(name, stack)
        if not opened.header.is_incremental:
            raise FormatError(
                f"{opened.file.name}: COW file in snapshot mode (flags {opened.header.flags:#x}), not incremental: no"
                " snapshot follows it",
                device=opened.file.name,
                offset=4,
            )
        yield _read_incremental(name, reading, opened, own_blocks, stack)


def make_point(uuid: str, seqid: int, parent: Point | None = None) -> Point:
    """Return the point that a snapshot of a driver is.

    Args:
        uuid: of the series, 32 hex digits.
        seqid: its sequence number.
        parent: the point that it was reached from.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds") if parent else None
    return Point(f"dattobd:{uuid}:{seqid}", parent.id if parent else None, time)


@dataclass(frozen=True)
class _Opened:
    """A COW file that was closed in order.

    Attributes:
        file: open for reading.
        header: of it.
        listed: all that the drivers track now.
    """

    file: Device
    header: Header
    listed: tuple[Tracking, ...]

    @property
    def tracking(self) -> Tracking | None:
        """The device of its series; None: no driver knows it."""
        return next((one for one in self.listed if one.device.uuid == self.header.uuid), None)

    @property
    def tracked(self) -> Tracked | None:
        """The same, without whose it is."""
        return self.tracking.device if self.tracking else None

    @property
    def next_seqid(self) -> int:
        """The sequence number of the snapshot that an incremental file leads to."""
        return self.header.seqid + 1


@dataclass(frozen=True)
class _Data:
    """Where data is read.

    Attributes:
        device: open for reading; None: data is not wanted.
        confirm: as of `Source`.
        notes: what the user should know of it.
    """

    device: Device | None
    confirm: Callable[[], None] = lambda: None
    notes: tuple[str, ...] = ()


def _open_file(name: CowFile, stack: ExitStack) -> _Opened:
    """Open a COW file; refuse one that the driver still writes, or that was not closed in order."""
    file = stack.enter_context(open_device(name.file.path))
    if file.is_block:
        raise UsageError(f"{name.word}: a block device; name the COW file, which is on the file system of the device")
    opened = _Opened(file, read_header(file), tuple(list_tracked()))
    header = opened.header
    if opened.tracking and opened.tracking.device.seqid == header.seqid:
        _refuse_current(file.name, opened.tracking)
    with naming(file):
        header.require_clean()
    if name.uuid not in (None, header.uuid):
        raise ConflictError(
            f"{file.name}: COW file of series {header.uuid}, and uuid={name.uuid} is of another: its changes are not of"
            " that device; find the COW file that belongs to it",
            device=file.name,
        )
    return opened


def _refuse_current(path: str, tracking: Tracking) -> None:
    """Refuse the COW file of the period that the driver is in, unless it has closed it."""
    device = tracking.device
    what = f"{path}: the COW file that {tracking.driver.name} uses for {device.block_device} now ({device.words})"
    if device.has_failed:
        raise ChangesLost(f"{what}: nothing is tracked any more; {INSTEAD}, and set tracking up anew", device=path)
    if device.is_active and device.is_snapshot:
        raise DeviceError(
            f"{what}: it is whole only after 'lvmsync dattobd to-incremental' and then 'lvmsync dattobd to-snapshot'",
            device=path,
        )
    if device.is_active:
        raise DeviceError(f"{what}: run 'lvmsync dattobd to-snapshot', which completes it", device=path)


# ---- incremental


def _read_incremental(
    name: CowFile, reading: Reading, opened: _Opened, own_blocks: ChangeMap | None, stack: ExitStack
) -> Source:
    file, header, tracking = opened.file, opened.header, opened.tracking
    if name.seqid not in (None, opened.next_seqid):
        raise ConflictError(
            f"{file.name}: COW file of snapshot {header.seqid}, which leads to {opened.next_seqid}, not to"
            f" seqid={name.seqid}; name the COW file of snapshot {max(0, (name.seqid or 0) - 1)}",
            device=file.name,
        )
    if reading.with_base and not reading.base_source:
        raise UsageError(f"{name.word}: an incremental COW file keeps no old content; name the base with --base-data")
    data = _find_head(name, reading, opened, stack)
    found = read_map(file, header, _choose_size(name, data.device, tracking))
    size = found.geometry.size
    own, own_note = find_own_blocks(file.name, opened.tracked, own_blocks)
    base = make_point(header.uuid, header.seqid)
    return Source(
        kind="dattobd",
        name=name.word,
        size=size,
        granularity=COW_BLOCK_SIZE,
        base=base,
        head=make_point(header.uuid, opened.next_seqid, base),
        changes=(found.changes | own).clip(size),
        holes=ChangeMap.empty(),
        data=data.device or Unread(name.word, size),
        confirm=data.confirm,
        notes=(
            *_size_notes(found, opened),
            *data.notes,
            own_note,
            *warn_of_discards(opened.tracked),
            "If the device was unmounted meanwhile, what umount and mount wrote is not in it.",
        ),
        base_data=_open_base(name, reading, stack),
        origin=opened.tracked.block_device if opened.tracked else None,
    )


def _find_head(name: CowFile, reading: Reading, opened: _Opened, stack: ExitStack) -> _Data:
    """Open the snapshot that follows: the driver's device, or what -r names."""
    tracking = opened.tracking
    if reading.data_source is None:
        if not reading.with_data:
            return _Data(None)
        if tracking is None:
            raise _not_listed(name, opened)
        _require_snapshot(opened, tracking)
        return _open_snapshot(name, tracking.snapshot_path, tracking, stack)
    path = parse_volume(reading.data_source).path
    for one in opened.listed:
        if is_same_device(path, one.snapshot_path):
            if tracking is None or one is not tracking:
                raise ConflictError(
                    f"-r {path} is a snapshot of {one.device.block_device} (series {one.device.uuid}), and"
                    f" {opened.file.name} is of series {opened.header.uuid}: they do not belong together",
                    device=path,
                )
            _require_snapshot(opened, tracking)
            return _open_snapshot(name, path, tracking, stack)
        if is_same_device(path, one.device.block_device):
            raise UsageError(
                f"-r {path} is the device itself, which is written to; the data is that of snapshot"
                f" {opened.next_seqid}: leave -r away to read that",
                device=path,
            )
    device = stack.enter_context(open_quiet(parse_volume(reading.data_source), frozen=reading.frozen))
    if device.is_block and tracking:
        raise UsageError(
            f"-r {path} is not the snapshot of {tracking.device.block_device}, which is {tracking.snapshot_path};"
            " leave -r away, or name a file that holds what that held",
            device=path,
        )
    notes = [f"That {path} holds snapshot {opened.next_seqid} of series {opened.header.uuid} is your word."]
    if name.uuid is not None and name.seqid is not None:
        notes = []
    return _Data(device, Watch(device).confirm, tuple(notes))


def _open_snapshot(name: CowFile, path: str, tracking: Tracking, stack: ExitStack) -> _Data:
    device = stack.enter_context(open_device(path))
    require_size(tracking)
    if name.size not in (None, device.size):
        raise UsageError(f"size={name.size}: {path} has {device.size} bytes; leave size= away", device=path)
    return _Data(device, lambda: confirm_snapshot(tracking))


def _not_listed(name: CowFile, opened: _Opened) -> UsageError:
    waiting = [one.device.block_device for one in opened.listed if not one.device.is_verified]
    hint = f" ({', '.join(waiting)} is not verified yet: mount it first)" if waiting else ""
    return UsageError(
        f"{name.word}: no driver tracks series {opened.header.uuid}{hint}, so where is snapshot {opened.next_seqid}?"
        " Name a copy of it with -r"
    )


def _require_snapshot(opened: _Opened, tracking: Tracking) -> None:
    """Refuse unless the driver shows the snapshot that the COW file leads to."""
    device, wanted = tracking.device, opened.next_seqid
    what = f"{tracking.driver.name} says of {device.block_device}: {device.words}, snapshot {device.seqid}"
    if device.has_failed:
        raise ChangesLost(f"{what}: its snapshot cannot be read; {INSTEAD}", device=device.block_device)
    if device.seqid == opened.header.seqid:  # not active: `_refuse_current` has seen to that
        raise DeviceError(
            f"{what}, and {opened.file.name} leads to {wanted}: mount the device, then run 'lvmsync dattobd"
            " to-snapshot'",
            device=device.block_device,
        )
    if device.seqid != wanted:
        raise ConflictError(
            f"{what}, and {opened.file.name} leads to {wanted}: name the COW file of snapshot"
            f" {(device.seqid or 0) - 1}",
            device=device.block_device,
        )
    if not device.is_snapshot:
        raise DeviceError(
            f"{what}: that snapshot was given up, so what it held is gone; run 'lvmsync dattobd to-snapshot', and"
            f" {INSTEAD} with it",
            device=device.block_device,
        )
    if device.state != _ACTIVE_SNAPSHOT:
        raise DeviceError(f"{what}: mount the device first, then it is active", device=device.block_device)


def confirm_snapshot(tracking: Tracking) -> None:
    """Raise ChangesLost unless a snapshot was good until now.

    Args:
        tracking: what the driver said of it when it was opened.
    """
    device = tracking.device
    for one in list_tracked((tracking.driver,)):
        now = one.device
        if (now.minor, now.uuid, now.seqid) == (device.minor, device.uuid, device.seqid):
            if now.state == _ACTIVE_SNAPSHOT and not now.has_failed:
                return
            raise ChangesLost(
                f"snapshot {now.seqid} of {now.block_device} did not last until it was read ({now.words}); {INSTEAD}",
                device=tracking.snapshot_path,
            )
    raise ChangesLost(
        f"snapshot {device.seqid} of {device.block_device} was given up before it was read; {INSTEAD}",
        device=tracking.snapshot_path,
    )


def require_size(tracking: Tracking) -> None:
    """Refuse a snapshot that has not the size of its device: what lies behind it is not tracked.

    Args:
        tracking: what the driver says of an active snapshot.

    Raises:
        ChangesLost: the device was resized.
    """
    device = tracking.device
    with open_device(tracking.snapshot_path) as snapshot, open_device(device.block_device) as live:
        if snapshot.size != live.size:
            raise ChangesLost(
                f"{device.block_device} was resized: it has {live.size} bytes, and its snapshot"
                f" {tracking.snapshot_path} {snapshot.size}: {tracking.driver.name} does not follow that; run 'lvmsync"
                " dattobd destroy', make the target as large, and run 'lvmsync dattobd cycle'",
                device=device.block_device,
            )


# ---- snapshot mode


def _read_snapshot(name: CowFile, reading: Reading, opened: _Opened, stack: ExitStack) -> Source:
    file, header, tracking = opened.file, opened.header, opened.tracking
    if name.seqid is not None:
        raise ConflictError(
            f"{file.name}: COW file in snapshot mode, which leads to no snapshot, but to what the device was when it"
            f" was unmounted; snapshot {name.seqid} needs an incremental one",
            device=file.name,
        )
    data = _find_live(name, reading, opened, stack)
    found = read_map(file, header, _choose_size(name, data.device, tracking))
    size = found.geometry.size
    base_data = _open_base(name, reading, stack)
    if reading.with_base and base_data is None and data.device:
        base_data = Kept(name.word, file, data.device, COW_BLOCK_SIZE, *found.kept)
    return Source(
        kind="dattobd",
        name=name.word,
        size=size,
        granularity=COW_BLOCK_SIZE,
        base=make_point(header.uuid, header.seqid),
        head=None,
        changes=found.changes,
        holes=ChangeMap.empty(),
        data=data.device or Unread(name.word, size),
        confirm=data.confirm,
        notes=(
            *_size_notes(found, opened),
            *data.notes,
            "The COW file was closed before the device was unmounted: what umount wrote is not in it, nor its own"
            " blocks.",
            *warn_of_discards(opened.tracked),
        ),
        base_data=base_data,
        origin=opened.tracked.block_device if opened.tracked else None,
    )


def _find_live(name: CowFile, reading: Reading, opened: _Opened, stack: ExitStack) -> _Data:
    """Open the device as it was left: what -r names, or what the driver says."""
    tracking = opened.tracking
    path = parse_volume(reading.data_source).path if reading.data_source else None
    if path is None:
        if not reading.with_data:
            return _Data(None)
        if tracking is None or tracking.device.seqid != opened.header.seqid:
            raise UsageError(f"{name.word}: no driver tracks this series now, so where is the device? Name it with -r")
        path = tracking.device.block_device
    if any(is_same_device(path, one.snapshot_path) for one in opened.listed):
        raise UsageError(f"-r {path} is a snapshot; the changes lead to the device itself: name that", device=path)
    device = stack.enter_context(open_device(path))
    if device.is_block and reading.with_data and not reading.frozen:
        raise UsageError(
            f"{path}: what umount wrote, and any mount since, is not in {opened.file.name}, so a copy would lack it;"
            f" {INSTEAD}, or say --frozen if that is meant",
            device=path,
        )
    note = f"That {path} holds the device as it was unmounted is your word."
    return _Data(device, Watch(device).confirm, (note,))


# ---- both


def _open_base(name: CowFile, reading: Reading, stack: ExitStack) -> Readable | None:
    if not reading.with_base:
        return None
    if reading.base_source:
        return stack.enter_context(open_device(parse_volume(reading.base_source).path))
    return None


def _choose_size(name: CowFile, data: Device | None, tracking: Tracking | None) -> int | None:
    """Return how many bytes the device has; None where nothing says it."""
    if name.size is not None:
        if data and data.size < name.size:
            raise UsageError(f"{data.name} has {data.size} bytes, less than the {name.size} of {name.word}")
        return name.size
    if data:
        if not data.size or data.size % SECTOR:
            raise UsageError(
                f"{data.name} has {data.size} bytes, which is no device: those of one are whole sectors of {SECTOR}; it"
                " is cut short, or another file"
            )
        return data.size
    if tracking:
        with suppress(DeviceError), open_device(tracking.device.block_device) as device:
            return device.size
    return None


def _size_notes(found: CowMap, opened: _Opened) -> tuple[str, ...]:
    geometry = found.geometry
    if not geometry.is_exact:
        return (
            f"The COW file does not hold the device's size: it is {geometry.size} bytes at the most, and a short last"
            " block is not known; give size=.",
        )
    behind = opened.file.size - data_offset(geometry.sections)
    if opened.header.is_incremental and behind > 0:
        return (
            f"The COW file is {behind} bytes longer than the index of a device of {geometry.size} bytes: the"
            " driver could not cut it short, or that is not the size.",
        )
    return ()
