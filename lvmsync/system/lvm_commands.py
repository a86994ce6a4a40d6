"""What lvmsync changes in LVM: snapshots of its own, tags, volumes that it was asked to make.

One command at a time (a lock of ours), each to its end: a signal waits, and a command that takes too long is left
to run, since a killed lvcreate may leave an origin suspended. What is removed is named by its LVM id and its tag
in the very command, so that another volume which has got the name meanwhile is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume

TAG = "lvmsync"
"""What every snapshot of ours carries."""

CREATED_TAG = "lvmsync.created"
"""What a volume carries that was made by `create_volume`, until its maker takes the tag off."""

TIMEOUT = 300.0
"""Seconds that one command may take, and that the lock is waited for."""


def replica_tag(replica: str) -> str:
    """Return the tag of all snapshots of one replica."""
    return f"{TAG}.replica={replica}"


def role_tag(role: str) -> str:
    """Return the tag that says what a snapshot is for: base, head or back."""
    return f"{TAG}.role={role}"


def list_ours(group: str | None = None) -> list[LogicalVolume]:
    """Return all snapshots that carry our tag, of one volume group or of all.

    Raises:
        CommandError: lvs failed, or there is no such group.
    """
    return [volume for volume in lvm.list_volumes(group) if is_ours(volume)]


def is_ours(volume: LogicalVolume) -> bool:
    """Tell whether a volume is a snapshot with our tag."""
    return TAG in volume.tags and "snapshot" in volume.role


def take_snapshot(
    volume: LogicalVolume, name: str, *, tags: Iterable[str], size: int | None = None, chunk: int | None = None
) -> LogicalVolume:
    """Take a read-only snapshot of a volume, tagged as ours in the same step.

    A thin volume gets a thin snapshot, which is not activated; another volume gets a classic one, which is.

    Args:
        volume: of which; active, unless it is thin.
        name: of the snapshot, in the same group.
        tags: besides `TAG`.
        size: bytes of a classic snapshot's store; None: as `advise_snapshot` says.
        chunk: bytes that a classic snapshot keeps at a time, a power of two from 4 KiB to 512 KiB; None: advised.

    Raises:
        DeviceError: the volume group has too little room, or the volume is not one that can have a snapshot.
        CommandError: lvcreate failed; nothing was made.
    """
    raise NotImplementedError


def remove_snapshot(volume: LogicalVolume) -> None:
    """Remove a snapshot of ours; one that is gone already is no error.

    Raises:
        ConflictError: it is not ours, or no snapshot.
        CommandError: lvremove failed, or the snapshot stayed in use for `TIMEOUT` seconds.
    """
    raise NotImplementedError


def change_tags(volume: LogicalVolume, add: Iterable[str] = (), drop: Iterable[str] = ()) -> LogicalVolume:
    """Add and take off tags in one step, which a crash leaves undone or done; return the volume as it is then.

    Raises:
        DeviceError: the volume is gone.
        CommandError: lvchange failed.
    """
    raise NotImplementedError


def create_volume(name: str, size: int, *, pool: str | None = None) -> LogicalVolume:
    """Make a volume, tagged with `CREATED_TAG`; LVM rounds its size up to whole extents.

    Args:
        name: ``VG/LV``.
        size: bytes.
        pool: ``VG/POOL`` or the pool's name, for a thin volume; None: a linear one.

    Raises:
        ConflictError: there is a volume of that name already.
        DeviceError: the volume group has too little room, or the pool is none.
        CommandError: lvcreate failed.
    """
    raise NotImplementedError


def remove_volume(volume: LogicalVolume) -> None:
    """Remove a volume that still carries `CREATED_TAG`; one that is gone already is no error.

    Raises:
        ConflictError: it does not.
        CommandError: lvremove failed.
    """
    raise NotImplementedError


def extend_volume(volume: LogicalVolume, by: int) -> LogicalVolume:
    """Make a volume, or the store of a snapshot, larger by ``by`` bytes at least; return it as it is then.

    Raises:
        DeviceError: the volume group has too little room.
        CommandError: lvextend failed.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class SnapshotAdvice:
    """How large the store of a classic snapshot should be.

    Attributes:
        size: bytes.
        chunk: bytes.
        never_full: whether it holds everything, so that it cannot overflow.
        reason: one sentence for people.
    """

    size: int
    chunk: int
    never_full: bool
    reason: str


def advise_snapshot(origin: LogicalVolume, *, expected: int | None = None, chunk: int | None = None) -> SnapshotAdvice:
    """Advise on the store of a classic snapshot of ``origin``, within what its volume group has free.

    Args:
        origin: a volume that is not thin.
        expected: bytes that will be written to the origin while the snapshot is there; None: not known.
        chunk: bytes, where the user has chosen; None: advised, too.

    Raises:
        DeviceError: the volume group has too little room.
        CommandError: vgs failed.
    """
    raise NotImplementedError
