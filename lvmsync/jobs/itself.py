"""A target that is its own source, or that source's snapshot, seen from another machine or under another name.

The two sides may share their disks, and a host's name may lead back here. LVM's ids tell: no two volumes have the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lvmsync.errors import UsageError
from lvmsync.jobs.standing import Standing
from lvmsync.system.lvm import LogicalVolume, parse_dm_uuid


def refuse_itself(volumes: Iterable[tuple[str, str]], standing: Standing, place: str) -> None:
    """Refuse a target that is one of some volumes of this machine.

    Args:
        volumes: id (see `LogicalVolume`) and name of each: the source, and what it is read from.
        standing: of the target.
        place: the target as its user named it.

    Raises:
        UsageError: it is, or is a clone that still has the same ids.
    """
    parsed = parse_dm_uuid((standing.identity or {}).get("dm uuid", ""))
    if parsed is None or not standing.exists:
        return
    for volume_id, name in volumes:
        if volume_id == parsed[0]:
            raise UsageError(
                f"{place} and {name} are the same volume, by LVM's id {volume_id}: that machine is this one, or both"
                " see the same disks, and the copy would be itself; name another target (a clone of the disks gets ids"
                " of its own with 'vgimportclone')",
                device=name,
            )


def refuse_kin(volume: LogicalVolume, told: Sequence[LogicalVolume], standing: Standing, place: str) -> None:
    """Refuse a target that the source is a snapshot of, or that is one of it: each is kept for what it holds.

    Args:
        volume: the source.
        told: what LVM told just now of its volume group.
        standing: of the target.
        place: the target as its user named it.

    Raises:
        UsageError: it is.
    """
    parsed = parse_dm_uuid((standing.identity or {}).get("dm uuid", ""))
    if parsed is None or not standing.exists:
        return
    target = next((one for one in told if one.id == parsed[0]), None)
    if volume.origin_id == parsed[0]:
        kin = f"{volume.full_name} is a snapshot of {volume.group}/{volume.origin}"
    elif target and target.origin_id == volume.id:
        kin = f"{target.full_name} is a snapshot of {volume.full_name}"
    else:
        return
    raise UsageError(
        f"{place} is not to be overwritten: {kin}, by LVM's ids, and what it holds would be lost; name another target",
        device=volume.full_name,
    )
