"""Changes since a classic (dm-snapshot) snapshot was taken: of LVM, of dmsetup alone, or of plain files.

The order of things is what makes the result right. The place where data is read comes first (a later
snapshot must exist before the map is read, or changes between the two would be in neither), then the
status, the map, the data, and at last the status again.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from lvmsync.errors import ChangesLost, DeviceError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.formats.snapshot import INSTEAD, SECTOR
from lvmsync.history import Point
from lvmsync.interfaces import Readable
from lvmsync.names import SnapshotStore, Volume, parse_volume
from lvmsync.sources.snapshot_base import Kept
from lvmsync.sources.snapshot_map import Watch
from lvmsync.sources.source import Reading, Source
from lvmsync.system import dm, lvm
from lvmsync.system.device import Device, open_device

_WAY_OUT = "unmount it or stop what uses it, give -r with a later snapshot, or --frozen if nothing writes to it"


@dataclass(frozen=True)
class _Base:
    """What a snapshot is made of, whoever runs it.

    Attributes:
        name: what messages call it.
        store: opens its COW store.
        origin: opens its origin, exclusively or not.
        origin_number: of the origin, where it is a block device that is known.
        kept: the kernel's snapshot target; None for a store that nobody uses.
        volume: LVM's view of the snapshot; None where LVM does not know it.
    """

    name: str
    store: Callable[[], Device]
    origin: Callable[[bool], Device]
    origin_number: dm.Number | None
    kept: dm.Snapshot | None
    volume: lvm.LogicalVolume | None


@contextmanager
def open_volume(name: Volume, volume: lvm.LogicalVolume | None, reading: Reading) -> Iterator[Source]:
    """Open a snapshot by its own name; see `open_source`.

    Args:
        name: as its user wrote it.
        volume: LVM's view of it; None if LVM has nothing to do with it.
        reading: what is wanted.
    """
    kept = _find_snapshot(name, volume)
    with _open(_live_base(name.word, kept, volume), None, reading) as source:
        yield source


@contextmanager
def open_store(name: SnapshotStore, reading: Reading) -> Iterator[Source]:
    """Open a snapshot by its COW store and origin; see `open_source`."""
    origin = name.origin.path if name.origin else None
    with open_device(name.store.path) as store:
        kept = dm.find_snapshot_of_store(store.number)
    if kept:
        base = _live_base(name.store.word, kept, _find_volume_of(kept))
        if origin is not None:
            _require_origin(base, kept, origin)
    elif origin is not None:
        base = _idle_base(name, origin)
    else:
        raise UsageError(f"{name.store.word}: which origin is it a store of? Write snapshot:COW,origin=PATH")
    with _open(base, name.size, reading) as source:
        yield replace(source, name=name.word)


def _idle_base(name: SnapshotStore, origin: str) -> _Base:
    """Return what a store that no snapshot of the kernel uses is made of."""
    with open_device(origin) as named:
        number = named.number
    return _Base(
        name.store.word,
        lambda: open_device(name.store.path),
        lambda exclusive: open_device(origin, exclusive=exclusive),
        number,
        None,
        None,
    )


def _require_origin(base: _Base, kept: dm.Snapshot, origin: str) -> None:
    with open_device(origin) as named:
        number = named.number
    if number not in (base.origin_number, kept.table.origin):
        path = kept.origin.path if kept.origin else base.name
        raise UsageError(
            f"{base.name} is the store of a snapshot of {path}, not of {origin}; name {path} as origin, "
            "and give -r to read data elsewhere"
        )


def _find_snapshot(name: Volume, volume: lvm.LogicalVolume | None) -> dm.Snapshot:
    """Find the snapshot that a name means; refuse what is none, with the next step."""
    if volume:
        lvm.require_usable_snapshot(volume)
        kept = dm.find_snapshot(volume.number)
        if not kept or lvm.parse_dm_uuid(kept.device.uuid) != (volume.id, ""):
            raise DeviceError(
                f"{volume.full_name}: the kernel has no snapshot target for it, though LVM calls it active; "
                f"run 'lvchange --refresh {volume.full_name}'",
                device=name.word,
            )
        return kept
    with open_device(name.path) as device:
        number = device.number
    if number is None:
        raise UsageError(f"{name.word} is a plain file; write snapshot:{name.word},origin=PATH", device=name.word)
    kept = dm.find_snapshot(number)
    if not kept:
        raise UsageError(
            f"{name.word} is not a snapshot: nothing tracks what changed on it; name one ('lvs' and "
            "'dmsetup table' list them), or write snapshot:COW,origin=PATH",
            device=name.word,
        )
    return kept


def _find_volume_of(kept: dm.Snapshot) -> lvm.LogicalVolume | None:
    """Return LVM's usable snapshot behind the kernel's; None if LVM has nothing to do with it."""
    ids = lvm.parse_dm_uuid(kept.store.uuid) if kept.store else None
    volume = lvm.find_volume_by_id(ids[0]) if ids and ids[1] == "-cow" else None
    if volume:
        lvm.require_usable_snapshot(volume)
    return volume


def _live_base(name: str, kept: dm.Snapshot, volume: lvm.LogicalVolume | None) -> _Base:
    """Return what a snapshot of the kernel is made of; refuse one that cannot give its changes."""
    origin = kept.origin
    if kept.line.kind == "snapshot-merge":
        raise ChangesLost(f"{name} is being merged into {kept.device.path}, which goes back to what it was; {INSTEAD}")
    if kept.table.mode == "N":
        raise ChangesLost(f"{name} is a transient snapshot: its changes are nowhere on disk; {INSTEAD}")
    if kept.is_virtual:
        raise UsageError(f"{name} is a sparse volume on an origin of zeros, not the snapshot of a volume")
    if origin is None:
        major, minor = kept.table.origin
        raise UsageError(
            f"{name}: no snapshot-origin target is there for device {major}:{minor}, so writes to it are not tracked; "
            "if that is meant, write snapshot:COW,origin=PATH with copies of both"
        )
    if volume and (not kept.store or lvm.parse_dm_uuid(kept.store.uuid) != (volume.id, "-cow")):
        raise DeviceError(f"{name}: the kernel's store is not the one of {volume.full_name}; run 'lvchange --refresh'")
    return _Base(
        name,
        lambda: dm.open_number(kept.table.store),
        lambda exclusive: dm.open_number(origin.number, exclusive=exclusive),
        origin.number,
        kept,
        volume,
    )


@contextmanager
def _open(base: _Base, size: int | None, reading: Reading) -> Iterator[Source]:
    """Open everything in the right order, read the map, and yield the source."""
    with ExitStack() as stack:
        if base.kept:
            base.kept.read_usage()
        data = stack.enter_context(_open_data(base, reading))
        if size is None:
            size = base.kept.size if base.kept else data.device.size
        if data.device.size < size:
            raise UsageError(
                f"{data.device.name} has {data.device.size} bytes, less than the {size} of the origin of {base.name}; "
                "name the place where the origin's data is"
            )
        store = stack.enter_context(base.store())
        watch = Watch(store, size, kept=base.kept, later=data.kept, data=data.device, is_live=data.is_live)
        changes = watch.read_map()
        point = Point(f"lv:{base.volume.id}", time=base.volume.time) if base.volume else None
        base_data = _open_base(base, watch, store, reading, stack) if reading.with_base else None
        yield Source(
            kind="snapshot",
            name=base.name,
            size=size,
            granularity=watch.header.chunk_size * SECTOR,
            base=point,
            head=_head(base, data, point),
            changes=changes,
            holes=ChangeMap.empty(),
            data=data.device,
            confirm=watch.confirm,
            notes=_notes(base, data),
            base_data=base_data,
        )


def _open_base(base: _Base, watch: Watch, store: Device, reading: Reading, stack: ExitStack) -> Readable:
    """Open what gives the origin's bytes as they were when the snapshot was taken."""
    if reading.base_source:
        return stack.enter_context(open_device(parse_volume(reading.base_source).path))
    if base.kept:
        return stack.enter_context(dm.open_number(base.kept.device.number))
    origin = stack.enter_context(base.origin(False))
    return Kept(base.name, store, origin, watch.layout.chunk_size, *watch.read_kept())


@dataclass(frozen=True)
class _Data:
    """Where data is read.

    Attributes:
        device: open for reading.
        is_live: whether it is the origin itself, and not a later snapshot of it.
        kept: the later snapshot, where it is one of the kernel's.
        volume: LVM's view of that.
    """

    device: Device
    is_live: bool
    kept: dm.Snapshot | None = None
    volume: lvm.LogicalVolume | None = None


@contextmanager
def _open_data(base: _Base, reading: Reading) -> Iterator[_Data]:
    # What changed can be asked of an origin that is in use: nothing is read from it.
    frozen = reading.frozen or not reading.with_data
    if reading.data_source is None:
        with _open_origin(base, frozen) as device:
            yield _Data(device, True)
        return
    name = parse_volume(reading.data_source)
    with open_device(name.path) as device:
        below = base.kept.table.origin if base.kept else None
        if device.number is None or device.number not in (base.origin_number, below):
            yield _later_snapshot(base, device, reading)
            return
    with _open_origin(base, frozen) as device:
        yield _Data(device, True)


def _open_origin(base: _Base, frozen: bool) -> Device:
    """Open a live origin, so that nobody else has it open or mounted unless the user said so."""
    if frozen:
        return base.origin(False)
    if base.origin_number and not dm.wait_until_closed(base.origin_number):
        mapped = dm.find_device(base.origin_number)
        raise DeviceError(f"the origin {mapped.path if mapped else base.name} is open: {_WAY_OUT}")
    try:
        return base.origin(True)
    except DeviceError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY:
            raise DeviceError(f"{error}: {_WAY_OUT}", device=error.device) from error
        raise


def _later_snapshot(base: _Base, device: Device, reading: Reading) -> _Data:
    """Check what -r names: a snapshot must be a valid and later one of the same origin; else it is taken as is."""
    word = reading.data_source
    later = dm.find_snapshot(device.number)
    mapped = later.device if later else dm.find_device(device.number)
    ids = lvm.parse_dm_uuid(mapped.uuid) if mapped else None
    volume = lvm.find_volume_by_id(ids[0], reading.volumes) if ids else None
    if volume and volume.is_classic_snapshot:
        lvm.require_usable_snapshot(volume)
    if later is None:
        return _Data(device, False)
    later.read_usage()
    if base.kept is None:
        return _Data(device, False, later, volume)
    if later.device.number == base.kept.device.number:
        raise UsageError(f"-r {word} is the snapshot itself, which holds the old data; name a later one")
    if later.table.origin != base.kept.table.origin:
        raise UsageError(f"-r {word} is a snapshot of another origin than {base.name}; name one of the same")
    # Of the same second, or of unknown age: taken as later.
    is_older = volume and base.volume and (volume.created or 1 << 63) < (base.volume.created or 0)
    if volume and base.volume and is_older and not reading.is_later:
        raise UsageError(
            f"-r {word} was made at {volume.time}, before {base.name} ({base.volume.time}); name a later snapshot"
        )
    return _Data(device, False, later, volume)


def _head(base: _Base, data: _Data, base_point: Point | None) -> Point | None:
    if base.kept is None:
        return None
    parent = base_point.id if base_point else None
    if data.kept and data.volume:
        return Point(f"lv:{data.volume.id}", parent, data.volume.time)
    return Point(f"origin:{uuid.uuid4().hex}", parent, datetime.now(UTC).isoformat(timespec="seconds"))


def _notes(base: _Base, data: _Data) -> tuple[str, ...]:
    notes = []
    if base.kept is None:
        notes.append(f"No snapshot of this kernel uses {base.name}: that it is valid, only its header says.")
    if not data.is_live and (data.kept is None or base.kept is None):
        notes.append(f"That {data.device.name} holds a later state of the origin of {base.name} is your word.")
    return tuple(notes)
