"""The snapshot of a target that a migration keeps for its way back, on the target's machine."""

from __future__ import annotations

from typing import Any

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.jobs.replica import snapshots
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.lvm_made import is_as_told

BACK = "back"
"""Role of such a snapshot."""

_LONGEST_PREFIX = 80  # letters of a volume's name in that of its snapshot; LVM allows 127 in all


class Keeper:
    """Keeps snapshots for the way back; what LVM told when the old ones were dropped is used for the next one."""

    def __init__(self) -> None:
        self._told: tuple[str, list[LogicalVolume]] | None = None

    def drop(self, name: str, replica: str) -> None:
        """Remove what is kept of a volume for a replica.

        Args:
            name: VG/LV.
            replica: its id.

        Raises:
            ConflictError: something is left.
            LvmsyncError: the volume has no snapshots, or LVM does not tell.
        """
        volume, told = _look(name)
        old = _list(volume, replica, told)
        if left := snapshots.remove(old):
            raise ConflictError("; ".join(left), device=volume.full_name)
        self._told = name, _look(name)[1] if old else told  # with what was removed its name and room came back

    def require_room(self, name: str, replica: str) -> None:
        """Refuse a volume that no snapshot could be taken of now, by what LVM tells; arguments and errors as of `keep`.

        One that is kept already takes its place: what it has is room for the next one.
        """
        volume, told = _look(name)
        if not _list(volume, replica, told):
            lvm_commands.snapshot_command(volume, _name(volume, replica), tags=(), group=volume.room)

    def keep(self, name: str, replica: str) -> dict[str, Any]:
        """Take a snapshot of a volume; return its "name" and, where the kernel tells it, its "id".

        Arguments as of `drop`.

        Raises:
            DeviceError: the volume group has too little room, or the volume is suspended.
            LvmsyncError: the volume has no snapshots, or LVM takes none.
        """
        told_of, told = self._told or ("", None)
        self._told = None
        volume = snapshots.find_source(name, told) if told_of == name else None
        if volume is None or not is_as_told(volume):  # it was renamed meanwhile, say
            volume, told = _look(name)
        short = _name(volume, replica)
        tags = [lvm_commands.replica_tag(replica), lvm_commands.role_tag(BACK)]
        made = lvm_commands.leave_snapshot(volume, short, tags=tags, told=told)
        return {"name": f"{volume.group}/{short}", "id": made.id if made else None}

    def find(self, name: str, replica: str) -> dict[str, Any]:
        """Return "name" and "id" of what is kept; arguments and errors as of `drop`.

        Raises:
            DeviceError: there is nothing.
        """
        volume, told = _look(name)
        kept = _list(volume, replica, told)
        if not kept:
            raise DeviceError(f"{volume.full_name} has no snapshot for the way back", device=volume.full_name)
        return {"name": kept[-1].full_name, "id": kept[-1].id}


def _look(name: str) -> tuple[LogicalVolume, list[LogicalVolume]]:
    told = lvm.list_volumes(name.split("/")[0])
    return snapshots.find_source(name, told), told


def _name(volume: LogicalVolume, replica: str) -> str:
    return f"{volume.name[:_LONGEST_PREFIX]}-lvmsync-back-{replica[:8]}"


def _list(volume: LogicalVolume, replica: str, told: list[LogicalVolume]) -> list[LogicalVolume]:
    return [one for one in snapshots.list_kept(volume, replica, told) if snapshots.role_of(one) == BACK]
