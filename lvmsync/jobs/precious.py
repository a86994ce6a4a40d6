"""What a target is to others, where nothing is known of it as a copy: a first copy would destroy that."""

from __future__ import annotations

from lvmsync.errors import LvmsyncError
from lvmsync.formats.signatures import LOOKED_AT, LOOKED_AT_END, find_signature
from lvmsync.system import dm, lvm
from lvmsync.system.device import Device, aligned_buffer
from lvmsync.system.identity import find_dm_uuid, is_read_only
from lvmsync.system.lvm_commands import is_ours, is_taken_of, role_tag
from lvmsync.targets.block import BlockTarget

_SECTOR = 512
_MAY_BE_MERGED = {"thin", "snapshot-origin", "snapshot-merge"}


def find_other_use(device: BlockTarget | Device) -> str | None:
    """Return what an open block device is to others, in words; None if nothing tells.

    Raises:
        DeviceError: it cannot be read.
    """
    if device.number is None:
        return None
    whole = device.size // _SECTOR * _SECTOR
    start, end = aligned_buffer(min(LOOKED_AT, whole)), aligned_buffer(min(LOOKED_AT_END, whole))
    device.read([0], [len(start)], start)
    device.read([whole - len(end)], [len(end)], end)
    parsed = lvm.parse_dm_uuid(find_dm_uuid(device.name))
    return (parsed and _of_volume(parsed[0])) or find_signature(bytes(start), bytes(end), whole)


def find_own_snapshot(path: str) -> str | None:
    """Return, in words, that a device is a snapshot which lvmsync keeps; None of any other, and of what is writable."""
    parsed = lvm.parse_dm_uuid(find_dm_uuid(path)) if is_read_only(path) else None
    try:
        volume = lvm.find_volume_by_id(parsed[0], lvm.list_volumes()) if parsed else None
    except LvmsyncError:  # LVM is out of order: whoever needs it will say so
        return None
    if volume is None or not is_ours(volume):
        return None
    origin = f" of {volume.group}/{volume.origin}" if volume.origin else ""
    return f"{path} is a snapshot{origin} that lvmsync keeps, and is never written to; name another target"


def find_merge(device: BlockTarget | Device) -> str | None:
    """Return, in words, that LVM puts a volume back to a snapshot of it, now or at its activation; None: it does not.

    What is written to it by then would be undone.
    """
    lines = [line for line in dm.list_tables() if line.device.number == device.number]
    if not _MAY_BE_MERGED & {line.kind for line in lines}:
        return None
    parsed = lvm.parse_dm_uuid(lines[0].device.uuid)
    try:
        volume = lvm.find_volume_by_id(parsed[0], lvm.list_volumes()) if parsed else None
    except LvmsyncError:  # LVM is out of order: whoever needs it will say so
        return None
    if volume is None or not volume.is_merging:
        return None
    name = volume.full_name
    return (
        f"a snapshot is being merged into {name}, or will be when it is activated, and that undoes what is written to"
        f" it: let LVM do that ('lvchange -an {name}', then 'lvchange -ay {name}'), and run this again"
    )


def _of_volume(volume_id: str) -> str | None:
    """Return what a volume of LVM is to others, by its id."""
    try:
        told = lvm.list_volumes()
    except LvmsyncError:  # LVM is out of order: whoever needs it will say so
        return None
    sends = {role_tag("base"), role_tag("head")}
    volume = lvm.find_volume_by_id(volume_id, told)
    for one in told:
        if volume and is_ours(one) and is_taken_of(one, volume) and sends & one.tags:
            return f"the source of a copy, with the snapshot {one.full_name}"
        if one.id == volume_id and one.origin:
            return f"a snapshot of {one.group}/{one.origin}"
    return None
