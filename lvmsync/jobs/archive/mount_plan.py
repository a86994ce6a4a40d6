"""How a past state is to be mounted: what is asked for, whether it can be, and all names that it will have."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.chain.catalogue import ArchivedPoint
from lvmsync.errors import DeviceError, UsageError
from lvmsync.formats.snapshot import SECTOR
from lvmsync.jobs.archive.cow import require_room
from lvmsync.jobs.archive.mirror import ClaimedMirror
from lvmsync.jobs.archive.mounted import Mounted, list_mounted, record_path
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.system import dm, identity, lvm
from lvmsync.system.snapshot_advice import require_room as require_room_in_group

ROOM = 1 << 30
"""Bytes that may be written to a past state, where nobody says how many."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.+]+")
_LONGEST = 40  # characters of an archive's name in that of a device


@dataclass(frozen=True)
class MountOptions:
    """How a past state is mounted.

    Attributes:
        directory: where its file system is mounted; None: nowhere.
        store: folder for the store's file, or name of a volume group for its volume; None: the state folder.
        is_group: which of both.
        is_writable: it can be written to.
        room: bytes that may be written.
        with_snapshot: the mirror is not held: a snapshot of it is.
        cow_size: bytes of that snapshot's store; None: advised.
        dry_run: say what would be done.
    """

    directory: str | None = None
    store: str | None = None
    is_group: bool = False
    is_writable: bool = False
    room: int = ROOM
    with_snapshot: bool = False
    cow_size: int | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class MountReceipt:
    """What was mounted; ``--json`` prints it.

    Attributes:
        job: "archive mount".
        archive: its name.
        point: number of the point.
        id: of the point.
        device: path of the device.
        size: bytes of it.
        directory: where its file system is mounted.
        mirror: that lies below.
        snapshot: of the mirror, that lies below in its place.
        store: file or volume.
        store_bytes: its size; a file takes up less.
        written_bytes: bytes of data that were written to it.
        exceptions: chunks that are not as in the mirror.
        chunk_size: bytes of each.
        writable: whether it can be written to.
        seconds: time it took.
        dry_run: nothing was made.
        notes: what the user should know, a sentence each.
    """

    job: str
    archive: str
    point: int
    id: str
    device: str
    size: int
    directory: str | None
    mirror: str | None
    snapshot: str | None
    store: str
    store_bytes: int
    written_bytes: int
    exceptions: int
    chunk_size: int
    writable: bool
    seconds: float = 0.0
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)


def require_possible(point: ArchivedPoint, mirror: str | None, options: MountOptions, name: str) -> None:
    """Refuse what no kernel can show, and options that do not go together.

    Raises:
        DeviceError: there is no device mapper, no such directory, or the point has no whole sectors.
        UsageError: options that do not go together.
    """
    if not dm.is_in_kernel():
        raise DeviceError(
            "this kernel has no device mapper ('modprobe dm-mod'), so no past state can be a device here; 'lvmsync"
            " archive restore' writes one to a file or device"
        )
    if point.size % SECTOR or not point.size:
        raise DeviceError(
            f"{name}: point #{point.number} has {point.size} bytes, which is no number of whole sectors, so it cannot"
            " be a block device: 'lvmsync archive restore' writes it to a file",
            device=name,
        )
    if options.with_snapshot and mirror is None:
        raise UsageError("--snapshot is for a mirror: name it with --mirror VG/LV")
    if options.cow_size is not None and not options.with_snapshot:
        raise UsageError("--cow-size is for the snapshot that --snapshot takes")
    if options.directory is not None and not Path(options.directory).is_dir():
        raise DeviceError(f"there is no directory {options.directory} to mount on", device=options.directory)


def plan_mount(
    shelf: Shelf,
    point: ArchivedPoint,
    claimed: ClaimedMirror | None,
    volume: lvm.LogicalVolume | None,
    state: Path,
    options: MountOptions,
) -> Mounted:
    """Return the record of a mount: all names that it will have."""
    mount = secrets.token_hex(6)
    if options.is_group:
        store = f"{options.store}/lvmsync-store-{mount}"
    elif options.store:
        store = str(Path(options.store).resolve() / f"lvmsync-{mount}.cow")
    else:
        store = str(record_path(state, mount, "cow"))
    if claimed and claimed.mirror.device.size % SECTOR:
        raise DeviceError(
            f"{claimed.mirror.device.name} has {claimed.mirror.device.size} bytes, which is no number of whole sectors,"
            " so nothing can be mounted over it: 'lvmsync archive restore' writes a past state to a file",
            device=claimed.mirror.device.name,
        )
    return Mounted(
        id=mount,
        archive=shelf.store.name,
        archive_id=shelf.catalogue.archive,
        point=point.id,
        number=point.number,
        size=point.size,
        name=_choose_name(shelf.store.name, point.number, state),
        store=store,
        is_volume=options.is_group,
        boot=identity.boot_id(),
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        is_writable=options.is_writable,
        directory=str(Path(options.directory).resolve()) if options.directory else None,
        mirror=claimed.canonical if claimed else None,
        snapshot=f"{volume.group}/lvmsync-mount-{mount}" if volume else None,
    )


def _choose_name(archive: str, number: int, state: Path) -> str:
    """Return a name for a device that no other has: ``lvmsync-web-3``."""
    word = _NOT_IN_NAMES.sub("-", archive.rstrip("/").rpartition("/")[2]).strip("-")[-_LONGEST:] or "archive"
    taken = {one.name for one in dm.list_devices()} | {one.name for one in list_mounted(state)}
    names = [f"lvmsync-{word}-{number}", *(f"lvmsync-{word}-{number}-{more}" for more in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def find_volume(claimed: ClaimedMirror) -> lvm.LogicalVolume:
    """Return the volume of LVM that a mirror is.

    Raises:
        UsageError: it is none.
    """
    path = claimed.mirror.device.name
    ids = lvm.parse_dm_uuid(identity.find_dm_uuid(path))
    found = lvm.find_volume_by_id(ids[0]) if ids and not ids[1] else None
    if found is None:
        raise UsageError(
            f"{path} is no volume of LVM, so there can be no snapshot of it: mount without --snapshot, and it is held"
            " until umount",
            device=path,
        )
    return found


def require_place(record: Mounted, size: int) -> None:
    """Refuse a place for a store that has too little room.

    Raises:
        DeviceError: it has.
        CommandError: there is no such volume group.
    """
    if record.is_volume:
        require_room_in_group(record.store.partition("/")[0], size, "the store of that state")
        return
    folder = Path(record.store).parent
    require_room(next(one for one in (folder, *folder.parents) if one.exists()), size)
