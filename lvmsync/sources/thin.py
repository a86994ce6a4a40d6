"""Changes between two devices of a dm-thin pool: of LVM, or of a copy of the pool's metadata.

Of a live pool, the place where data is read comes first, then the metadata snapshot, which is given back
as soon as the map has been read: it slows the pool down, and there is only one. A thin snapshot never
changes unless it is written to itself, so data is read from it without any lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from lvmsync.errors import ConflictError, DeviceError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.formats.thin import Delta, Pool, Superblock, parse_pool_status, parse_pool_table, parse_thin_table
from lvmsync.history import Point
from lvmsync.names import ThinDevice, Volume, parse_volume
from lvmsync.sources.head import Watch, open_quiet
from lvmsync.sources.metadata import MetadataReader
from lvmsync.sources.source import Reading, Source, Unread
from lvmsync.system import activation, dm, lvm
from lvmsync.system.device import Device, naming, open_device
from lvmsync.system.reservation import Tracker, read_held, reserve

TRACKER = Tracker(
    "thin-pool",
    "reserve_metadata_snap",
    "release_metadata_snap",
    lambda text, name: parse_pool_status(text, name).held_root,
)
"""How a thin pool deals with its metadata snapshot."""

_EXTERNAL = 2  # where the table of a thin device names its external origin, if it has one
_FAILED = ("Fail", "Error")  # dm-thin.c, thin_status()
_SHOWN = 10  # thin devices that a message lists


@dataclass(frozen=True)
class _Wanted:
    """Which delta, in terms of the pool.

    Attributes:
        head: number of the thin device that is the newer state.
        base: number of the older one; None: everything.
        size: bytes of the head; None: not known.
        base_size: bytes of the base; None: not known, taken as the head's.
        size_of: what has just that size and may be the wrong thing; None where the size is certain.
    """

    head: int
    base: int | None
    size: int | None
    base_size: int | None = None
    size_of: str | None = None


@dataclass(frozen=True)
class _Map:
    """What the metadata says."""

    size: int
    granularity: int
    changes: ChangeMap
    holes: ChangeMap
    base_is_written: bool
    notes: tuple[str, ...] = ()


@contextmanager
def open_metadata(name: ThinDevice, reading: Reading) -> Iterator[Source]:
    """Open a thin device by its pool's metadata and its number; see `open_source`."""
    with ExitStack() as stack:
        metadata = stack.enter_context(open_device(name.metadata.path))
        pool = _find_pool(metadata.number)
        if pool and pool.device.number == metadata.number:  # the pool itself was named
            metadata = stack.enter_context(dm.open_number(parse_pool_table(pool.text, pool.device.path)[0]))
        data = _open_data(name, pool, reading, stack)
        size = data.size if data and name.size is None else name.size
        size_of = reading.data_source if name.size is None else None
        with naming(metadata):
            found = _read_map(metadata, pool, name.snap, _Wanted(name.id, name.base, size, size_of=size_of), name.word)
        if data and data.size < found.size:
            raise UsageError(f"{data.name} has {data.size} bytes, less than the {found.size} of {name.word}")
        base_data = _open_base(None, reading, stack, name.word)
        watch = Watch(data) if data else None
        notes = list(found.notes)
        if reading.data_source:
            notes.append(f"That {reading.data_source} holds the state of thin device {name.id} is your word.")
        yield Source(
            kind="thin",
            name=name.word,
            size=found.size,
            granularity=found.granularity,
            base=None,
            head=None,
            changes=found.changes,
            holes=_zeros(found.holes, data),
            data=data or Unread(name.word, found.size),
            confirm=lambda: _confirm(pool, watch),
            notes=tuple(notes),
            base_data=base_data,
            is_full=name.base is None,
        )


@contextmanager
def open_volume(name: Volume, volume: lvm.LogicalVolume, reading: Reading) -> Iterator[Source]:
    """Open a thin volume of LVM: a snapshot against its origin, or an origin against its oldest snapshot.

    Args:
        name: as its user wrote it.
        volume: LVM's view of it.
        reading: what is wanted; ``data_source`` may name a later snapshot, which is the head then.
    """
    volumes = lvm.list_volumes(volume.group) if reading.volumes is None else list(reading.volumes)
    base, head = _choose(volume, volumes, reading)
    pool = _find_lvm_pool(volume)
    with ExitStack() as stack:
        data: Device | None = None
        if reading.with_data:
            active = stack.enter_context(activation.activated(head))
            # A snapshot may be open, by udev or for reading; what writes to it is noticed at the end.
            is_quiet = reading.frozen or _is_snapshot(head, volumes)
            data = stack.enter_context(_open_volume(active, frozen=is_quiet))
        watch = Watch(data) if data else None
        metadata = stack.enter_context(dm.open_number(parse_pool_table(pool.text, pool.device.path)[0]))
        assert head.thin_id is not None
        wanted = _Wanted(head.thin_id, base.thin_id, head.size, base.size)
        with naming(metadata):
            found = _read_map(metadata, pool, None, wanted, f"{base.full_name} to {head.full_name}")
        base_data = _open_base(base, reading, stack, name.word)
        notes = list(found.notes)
        if found.base_is_written and base.origin_id:
            notes.append(
                f"{base.full_name} was written to after it was made: the delta starts from what it holds now, so the"
                " copy must hold that as well."
            )
        point = Point(f"lv:{base.id}", time=base.time)
        yield Source(
            kind="thin",
            name=name.word,
            size=found.size,
            granularity=found.granularity,
            base=point,
            head=_head_point(head, point, is_snapshot=_is_snapshot(head, volumes)),
            changes=found.changes,
            holes=_zeros(found.holes, data),
            data=data or Unread(head.full_name, found.size),
            confirm=lambda: _confirm(pool, watch),
            notes=tuple(notes),
            base_data=base_data,
        )


def find_unmapped(device: Device, purpose: str) -> _Map | None:
    """Return what of an open thin device reads as zeros, as the ``holes`` of a map; None if it is of another kind.

    Raises:
        ConflictError: the pool's metadata snapshot cannot be had.
        FormatError: the metadata is damaged.
    """
    if not device.number or not dm.is_mapped(device.number):
        return None
    line = next((line for line in dm.list_tables() if line.device.number == device.number), None)
    if line is None or line.kind != "thin":
        return None
    number, thin_id = parse_thin_table(line.text, line.device.path)
    pool = _find_pool(number)
    if pool is None:
        return None
    with dm.open_number(parse_pool_table(pool.text, pool.device.path)[0]) as metadata, naming(metadata):
        found = _read_map(metadata, pool, None, _Wanted(thin_id, None, device.size), purpose)
    return replace(found, holes=_zeros(found.holes, device))


def _head_point(head: lvm.LogicalVolume, base: Point, *, is_snapshot: bool) -> Point:
    if is_snapshot:
        return Point(f"lv:{head.id}", base.id, head.time)
    return Point(f"origin:{uuid.uuid4().hex}", base.id, datetime.now(UTC).isoformat(timespec="seconds"))


def _choose(
    volume: lvm.LogicalVolume, volumes: list[lvm.LogicalVolume], reading: Reading
) -> tuple[lvm.LogicalVolume, lvm.LogicalVolume]:
    """Return the base and the head that a thin volume's name means."""
    data_source = reading.data_source
    pool = [one for one in volumes if one.is_thin and one.pool_id == volume.pool_id]
    snapshots = sorted((one for one in pool if one.origin_id == volume.id), key=_age)
    if _is_snapshot(volume, pool):
        base = volume
        head = next((one for one in pool if one.id == volume.origin_id), None)
    elif snapshots:
        base, head = snapshots[0], volume
    elif data_source is not None:
        base, head = volume, None
    else:
        raise UsageError(
            f"{volume.full_name} is a thin volume without a snapshot, and without an origin that is still there:"
            f" nothing says what changed on it; take a snapshot with 'lvcreate -s {volume.full_name}' before you copy"
            " it, name the newer state with -r if it is a snapshot whose origin was removed, or use"
            f" full:/dev/{volume.full_name}",
            device=volume.full_name,
        )
    if data_source is not None:
        named = lvm.find_named(parse_volume(data_source), reading.volumes)
        head = next((one for one in pool if named and one.id == named.id), None)
        if head is None:
            raise UsageError(
                f"-r {data_source} is no volume of the thin pool {volume.group}/{volume.pool}; name a later snapshot"
                " in it"
            )
        if head.id == base.id:
            raise UsageError(f"-r {data_source} is the base itself; name a later snapshot")
    assert head is not None
    if not _may_be_related(base, head, pool):
        raise UsageError(
            f"{head.full_name} has nothing to do with {base.full_name}: neither is it what that is a snapshot of, nor"
            " another snapshot of the same; name a later snapshot with -r"
        )
    is_older = None not in (head.created, base.created) and _age(head) < _age(base) and not reading.is_later
    # The live state of what the base is a snapshot of is newer than it, whenever that volume was made.
    if data_source is not None and head.id != base.origin_id and _is_snapshot(head, pool) and is_older:
        raise UsageError(
            f"-r {head.full_name} was made at {head.time}, before {base.full_name} ({base.time}); name a later snapshot"
        )
    return base, head


def _age(volume: lvm.LogicalVolume) -> tuple[int, int]:
    """Return what orders the volumes of a pool by age: LVM's times are in seconds, its numbers rise."""
    return volume.created or 0, volume.thin_id or 0


def _is_snapshot(volume: lvm.LogicalVolume, pool: Sequence[lvm.LogicalVolume]) -> bool:
    """Tell whether a volume is a snapshot in its pool; the origin may also be a read-only volume outside of it."""
    return bool(volume.origin_id) and any(one.id == volume.origin_id for one in pool)


def _may_be_related(base: lvm.LogicalVolume, head: lvm.LogicalVolume, pool: Sequence[lvm.LogicalVolume]) -> bool:
    """Tell whether two volumes may go back to the same one; LVM forgets an origin that was removed."""
    roots = []
    for volume in (base, head):
        root, left = volume, len(pool)
        while left and (origin := next((one for one in pool if one.id == root.origin_id), None)):
            root, left = origin, left - 1
        roots.append(root)
    return roots[0].id == roots[1].id or roots[0].id == base.id


def _open_volume(volume: lvm.LogicalVolume, *, frozen: bool) -> Device:
    return open_quiet(Volume(f"/dev/{volume.full_name}"), frozen=frozen)


def _open_base(base: lvm.LogicalVolume | None, reading: Reading, stack: ExitStack, word: str) -> Device | None:
    """Open the place where the base's data is, if it is wanted."""
    if not reading.with_base:
        return None
    if reading.base_source:
        return stack.enter_context(open_device(parse_volume(reading.base_source).path))
    if base is None:
        raise UsageError(f"{word}: where the base's data is was not said; name it with --base-data")
    return stack.enter_context(_open_volume(stack.enter_context(activation.activated(base)), frozen=True))


def _open_data(name: ThinDevice, pool: dm.Line | None, reading: Reading, stack: ExitStack) -> Device | None:
    """Open the place where a thin device's data is, if it is wanted or said."""
    if reading.data_source:
        return stack.enter_context(open_device(parse_volume(reading.data_source).path))
    line = _find_thin(pool, name.id) if pool else None
    if line and (reading.with_data or name.size is None):
        frozen = reading.frozen or not reading.with_data
        return stack.enter_context(open_quiet(Volume(line.device.path), frozen=frozen))
    if reading.with_data:
        raise UsageError(
            f"{name.word}: where is the data of thin device {name.id}? Name it with -r: an active device, or a file"
        )
    return None


def _find_pool(number: dm.Number | None) -> dm.Line | None:
    """Return the thin-pool target that has this device as its metadata, or is this device itself."""
    if number is None:
        return None
    for line in dm.list_tables():
        if line.kind == "thin-pool" and number in (
            line.device.number,
            parse_pool_table(line.text, line.device.path)[0],
        ):
            return line
    return None


def _find_lvm_pool(volume: lvm.LogicalVolume) -> dm.Line:
    """Return the kernel's pool of a thin volume of LVM."""
    for line in dm.list_tables():
        if line.kind == "thin-pool" and lvm.parse_dm_uuid(line.device.uuid) == (volume.pool_id, "-tpool"):
            return line
    raise DeviceError(
        f"the thin pool {volume.group}/{volume.pool} is not active; run 'lvchange -ay {volume.group}/{volume.pool}'",
        device=volume.full_name,
    )


def _find_thin(pool: dm.Line, device: int) -> dm.Line | None:
    """Return the active target of a pool's thin device; None while it is not active."""
    for line in dm.list_tables():
        if line.kind != "thin":
            continue
        if line.text in _FAILED:  # instead of its table, when its pool has failed: it does not say which
            read_held(pool.device, TRACKER)  # raises if it is this one
        elif parse_thin_table(line.text, line.device.path) == (pool.device.number, device):
            return line
    return None


def _zeros(holes: ChangeMap, data: Device | None) -> ChangeMap:
    """Return those of the unmapped ranges that read as zeros: none, where an external origin shows through.

    Source: Linux v6.1, Documentation/admin-guide/device-mapper/thin-provisioning.rst, "External snapshots".
    """
    if data is None or not data.number:
        return holes
    for line in dm.list_tables():
        if line.kind == "thin" and line.device.number == data.number and len(line.text.split()) > _EXTERNAL:
            return ChangeMap.empty()
    return holes


def _confirm(pool: dm.Line | None, watch: Watch | None) -> None:
    if pool:
        read_held(pool.device, TRACKER)  # raises if the pool has failed
    if watch:
        watch.confirm()


def _read_map(metadata: Device, pool: dm.Line | None, snap: str | None, wanted: _Wanted, purpose: str) -> _Map:
    """Read the delta from the metadata that ``snap`` means."""
    with MetadataReader(metadata) as reader:
        if pool is None:
            live = Superblock.parse(reader.read_block(0) if reader.nr_blocks else b"")
            root = 0
            if snap == "held":
                root = live.held_root
                if not root:
                    raise _nothing_held(metadata.name)
            return _read(reader, root, live.data_blocks, wanted)
        if snap == "live":
            raise UsageError(
                f"{metadata.name} belongs to an active pool, whose live metadata changes while it is read; leave"
                " snap=live away"
            )
        if snap == "held":
            held, status = read_held(pool.device, TRACKER)
            if held is None:
                raise _nothing_held(pool.device.path)
            found = _read(reader, held, parse_pool_status(status, pool.device.path).data_blocks, wanted)
            if read_held(pool.device, TRACKER)[0] != held:
                raise ConflictError(f"the metadata snapshot of {pool.device.path} was given back while it was read")
            return found
        with reserve(pool.device, TRACKER, purpose) as held_by_us:
            data_blocks = parse_pool_status(held_by_us.status, pool.device.path).data_blocks
            found = _read(reader, held_by_us.root, data_blocks, wanted)
        return replace(found, notes=(*held_by_us.notes, *found.notes))


def _nothing_held(name: str) -> DeviceError:
    return DeviceError(f"{name}: no metadata snapshot is reserved; leave snap=held away", device=name)


def _read(reader: MetadataReader, root: int, data_blocks: int, wanted: _Wanted) -> _Map:
    """Read the delta from the trees that the superblock at block ``root`` leads to."""
    superblock = Superblock.parse(reader.read_block(root), root)
    pool = Pool(reader, reader.nr_blocks, superblock, data_blocks)
    for device in (wanted.head, wanted.base):
        if device is not None and pool.details(device) is None:
            there = pool.devices(_SHOWN)
            raise UsageError(
                f"there is no thin device {device} in this pool; it has {', '.join(map(str, there)) or 'none'}"
                f"{', ...' if len(there) == _SHOWN else ''}"
            )
    notes: list[str] = []
    size = _choose_size(pool, wanted, notes)
    if wanted.base is None:
        holes = pool.mapped(wanted.head, size).complement(size)
        return _Map(size, superblock.chunk_size, ChangeMap.whole(size), holes, False, tuple(notes))
    delta = pool.diff(wanted.base, wanted.head, size)
    changes, holes = _with_tail(pool, delta, wanted, size)
    return _Map(size, superblock.chunk_size, changes, holes, delta.base_is_written, tuple(notes))


def _choose_size(pool: Pool, wanted: _Wanted, notes: list[str]) -> int:
    """Return the size of the head; refuse one that does not go with its mappings."""
    last = pool.last_mapping(wanted.head)
    if wanted.size is None:
        of_base = pool.last_mapping(wanted.base) if wanted.base is not None else None
        notes.append(
            "A pool's metadata does not hold the sizes of its devices: this one is taken to end with the last mapping;"
            " give size=."
        )
        end = max((at for at in (last, of_base) if at is not None), default=None)
        return 0 if end is None else end + pool.superblock.chunk_size
    if last is not None and last >= wanted.size:
        if wanted.size_of:
            raise UsageError(
                f"{wanted.size_of} has {wanted.size} bytes, and thin device {wanted.head} has data at {last}: that is"
                " not its data, or not all of it; if the device was shrunk, give size="
            )
        notes.append(f"Thin device {wanted.head} has data past its end at {wanted.size}, which is left out.")
    return wanted.size


def _with_tail(pool: Pool, delta: Delta, wanted: _Wanted, size: int) -> tuple[ChangeMap, ChangeMap]:
    """Return changes and holes with what a head that has grown has behind the base's end."""
    if wanted.base_size is None or wanted.base_size >= size:
        return delta.changes, delta.holes
    tail = ChangeMap.from_extents([(wanted.base_size, size - wanted.base_size)])
    return delta.changes | tail, delta.holes | (tail - pool.mapped(wanted.head, size))
