"""What a machine knows of a target before anything is sent to it. Asking changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from lvmsync import __version__
from lvmsync.errors import DeviceError, LvmsyncError, TransportError
from lvmsync.fields import read_fields
from lvmsync.history import Point
from lvmsync.jobs.create import find_left
from lvmsync.jobs.precious import find_merge, find_other_use, find_own_snapshot
from lvmsync.jobs.way_back import can_go_back, find_place
from lvmsync.names import Volume, parse_target
from lvmsync.system import dm, fill, identity, ioctl, ledger, lvm, seen
from lvmsync.system import record as records
from lvmsync.system.device import Device, open_device
from lvmsync.targets.block import BlockTarget, open_target

FENCED_TAG = "lvmsync.fenced"
"""What a volume carries that ``migrate --back`` has made read-only, since what it held is used elsewhere again."""


@dataclass(frozen=True)
class Unfinished:
    """An open transaction of a target.

    Attributes:
        id: to be named when it is gone on with.
        phase: as in `system.record.Transaction`.
        base: id of the point that it starts from.
        head: id of the point that it leads to.
        offset: all changes below this byte are on the target: where it is gone on with.
        size: bytes of the device that its stream is of.
        resumable: whether it can be gone on with.
        can_go_back: whether ``recover`` can undo it.
        intent: of its stream.
        group: that it is to be committed with.
        began: UTC, ISO 8601.
    """

    id: str
    phase: str
    base: str | None
    head: str | None
    offset: int
    size: int | None
    resumable: bool
    can_go_back: bool
    intent: str
    group: str | None
    began: str


@dataclass(frozen=True)
class PoolRoom:
    """The thin pool that a target takes its space from; sizes in bytes.

    Attributes:
        name: of its device.
        size: of its data.
        free: of its data.
        chunk: that it allocates at a time.
        data_percent: used.
        metadata_percent: used.
    """

    name: str
    size: int
    free: int
    chunk: int
    data_percent: float
    metadata_percent: float


@dataclass(frozen=True)
class Standing:
    """What a target is, and what is known of it.

    Attributes:
        target: the word that was asked for.
        version: of lvmsync there.
        now: the time there, UTC, ISO 8601.
        exists: whether it is there; without, nothing below is known but a transaction that had made it.
        kind: "thin" or "thick" (a logical volume), "file", or another "device".
        size: bytes.
        identity: what makes it this device and no other.
        point: the one that it was last committed at.
        dirty: a sync failed, or it is half changed without an undo: what it holds is not known.
        held: bytes that the point is about, where the target was smaller than its source.
        written: whether it was written to since we were last done with it: "no", "yes" or "unknown".
        transaction: the one that is open.
        in_use: why it cannot be claimed now.
        fenced: it is a volume that is read-only because of `FENCED_TAG`.
        pool: the thin pool below it.
        undo_free: bytes that are free in the state folder.
        made: lvmsync made it, and no copy was committed to it yet.
        left: a run that was killed had made it, and nobody has written to it: it can be made as if it were not there.
        other_use: what it is to others, in words, where it is not known as a copy: "a partition table (GPT)".
    """

    target: str
    version: str
    now: str
    exists: bool = False
    kind: str | None = None
    size: int | None = None
    identity: dict[str, str] | None = None
    point: Point | None = None
    dirty: bool = False
    held: int | None = None
    written: str = "unknown"
    transaction: Unfinished | None = None
    in_use: str | None = None
    fenced: bool = False
    pool: PoolRoom | None = None
    undo_free: int | None = None
    made: bool = False
    left: bool = False
    other_use: str | None = None

    @property
    def is_blank(self) -> bool:
        """Whether it is as a crash leaves what was being made: a file without a byte of which nothing is known, say."""
        is_empty = self.kind == "file" and self.size == 0
        return (is_empty or self.left) and self.point is None and self.transaction is None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave, perhaps on another machine; what is unknown is ignored.

        Raises:
            TransportError: it is not readable.
        """
        try:
            found = read_fields(cls, values)
            for key, kind in (("point", Point), ("transaction", Unfinished), ("pool", PoolRoom)):
                if found.get(key) is not None:
                    found[key] = kind(**read_fields(kind, found[key]))
            return cls(**found)
        except (TypeError, ValueError, AttributeError) as error:
            raise TransportError(f"the far side's answer about its target is not readable: {error}") from error


def standing(target: str, state: Path, *, is_first: bool = False) -> Standing:
    """Return what is known of a target of this machine.

    Args:
        target: VG/LV or a path.
        state: the state folder.
        is_first: nobody has asked before: then LVM is asked for what only it knows, and what takes time.

    Raises:
        UsageError: it is no name of a target of this machine.
        DeviceError: it is a volume that is not active.
        FormatError, ConflictError: its ledger entry cannot be read, or has an unfinished transaction of another device
            of the same name.
    """
    path = Volume(parse_target(target).name).path
    found = Standing(target, __version__, datetime.now(UTC).isoformat(timespec="seconds"), undo_free=_free(state))
    if not Path(path).exists():
        _require_not_inactive(Volume(path))
        record, folder, _ = ledger.peek_record(state, str(Path(path).resolve()), None, 0)
        return replace(found, **_known_of(record, folder, "")) if record.transaction else found
    try:
        with open_target(path) as claimed:
            merge = find_merge(claimed) if is_first and claimed.number else None
            return _stand(replace(found, in_use=merge), claimed, state)
    except DeviceError as refused:
        with open_device(path) as device:
            # What helps with others is no advice there.
            found = replace(found, in_use=find_own_snapshot(path) or str(refused), fenced=_is_fenced(path, device))
            return _stand(found, device, state)


def _require_not_inactive(name: Volume) -> None:
    """Refuse a volume that is there, and only has no device."""
    lvm_name = name.lvm_name
    if lvm_name is None:
        return
    try:
        volume = lvm.find_volume(lvm_name)
    except LvmsyncError:  # no such volume, or no LVM
        return
    if volume.number is None:
        skips = "-K " if volume.attr[9:10] == "k" else ""
        raise DeviceError(
            f"{lvm_name} is not active: activate it with 'lvchange -ay {skips}{lvm_name}'", device=lvm_name
        )


def _stand(found: Standing, device: BlockTarget | Device, state: Path) -> Standing:
    """Add what the open device tells, and what the ledger knows of it."""
    name = identity.canonical_name(device.name, device.fd)
    record, folder, is_locked = ledger.peek_record(state, name, identity.identify(device.fd), device.size)
    if is_locked:
        found = replace(found, in_use=f"another lvmsync is working on {device.name}; wait for it to end")
    written = seen.was_written(record.seen, seen.look_at_target(device.fd))
    is_known = record.point or record.transaction or (record.made and written == "no") or found.in_use
    return replace(
        found,
        other_use=None if is_known else find_other_use(device),
        left=not (is_known or record.made or record.dirty) and find_left(device, state) is not None,
        exists=True,
        kind=_kind(device.number),
        size=device.size,
        identity=record.identity,
        written=written,
        pool=_pool(device.number),
        **_known_of(record, folder, seen.life(device.fd)),
    )


def _is_fenced(path: str, device: Device) -> bool:
    try:
        if not ioctl.is_read_only(device.fd):  # LVM need not be asked
            return False
    except OSError:  # a file
        return False
    volume = lvm.find_named(Volume(path))
    return volume is not None and volume.attr[1:2] == "r" and FENCED_TAG in volume.tags


def _known_of(record: records.Record, folder: Path, life: str) -> dict[str, Any]:
    note = record.transaction
    return {
        "point": record.point,
        "held": record.held,
        "made": record.made,
        "dirty": record.dirty or (note is not None and not can_go_back(note)),
        "transaction": note and _unfinished(note, record, folder, life),
    }


def _unfinished(note: records.Transaction, record: records.Record, folder: Path, life: str) -> Unfinished:
    return Unfinished(
        id=note.id,
        phase=note.phase,
        base=note.base.id if note.base else None,
        head=note.point.id if note.point else None,
        offset=find_place(record, folder, life).offset,
        size=note.size,
        resumable=note.resumable and note.phase == "applying",
        can_go_back=can_go_back(note),
        intent=note.intent,
        group=note.group,
        began=note.began,
    )


def _kind(number: dm.Number | None) -> str:
    if number is None:
        return "file"
    lines = [line for line in dm.list_tables() if line.device.number == number] if dm.is_mapped(number) else []
    if {line.kind for line in lines} == {"thin"}:
        return "thin"
    return "thick" if any(line.device.uuid.startswith("LVM-") for line in lines) else "device"


def _pool(number: dm.Number | None) -> PoolRoom | None:
    pool = fill.pool_fill_of(number) if number else None
    if pool is None:
        return None
    return PoolRoom(
        pool.device.name,
        pool.data.total,
        pool.data.free,
        pool.chunk,
        round(pool.data.percent, 2),
        round(pool.metadata.percent, 2),
    )


def _free(folder: Path) -> int | None:
    """Return the bytes that are free where a folder is, or would be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        state = os.statvfs(there)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize
