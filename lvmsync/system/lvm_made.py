"""A snapshot that LVM has made a moment ago, as the kernel has it: asking LVM again takes as long as making it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lvmsync.formats.snapshot import parse_table
from lvmsync.formats.thin import parse_thin_table
from lvmsync.system import dm
from lvmsync.system.lvm import LogicalVolume, name_of_device, parse_dm_uuid

_ROLE = frozenset({"public", "snapshot"})


def find_made(origin: LogicalVolume, name: str, tags: Iterable[str]) -> LogicalVolume | None:
    """Return an active, read-only snapshot as LVM would tell it; None where the kernel does not tell enough.

    Its age is right to a second or so. One of another size is of an origin that was resized since that was told.

    Args:
        origin: what it was taken of.
        name: of the snapshot, in the same group.
        tags: that it was given.
    """
    lines = dm.list_tables()
    number = _number_of(f"/dev/{origin.group}/{name}")
    line = next((one for one in lines if one.device.number == number), None)
    ids = parse_dm_uuid(line.device.uuid) if line else None
    if line is None or not ids or ids[1] or ids[0][:32] != origin.id[:32] or ids[0] == origin.id:
        return None
    if line.length != origin.size:
        return None
    if name_of_device(line.device) != f"{origin.group}/{name}":  # an old link, whose number another volume has by now
        return None
    made = replace(
        origin,
        name=name,
        id=ids[0],
        origin=origin.name,
        origin_id=origin.id,
        is_merging=False,
        trouble="",
        number=number,
        created=int(time.time()),
        tags=frozenset(tags),
        data_percent=None,
        metadata_percent=None,
        room=None,
    )
    if line.kind == "thin" and origin.is_thin:
        thin_id = parse_thin_table(line.text, line.device.path)[1]
        return replace(made, attr="Vri-a-tz-k", role=_ROLE | {"thinsnapshot"}, thin_id=thin_id)
    if line.kind == "snapshot" and not origin.is_thin:
        store = parse_table(line.text, line.device.path).store
        size = sum(one.length for one in lines if one.device.number == store)
        layout, role = frozenset({"linear"}), _ROLE | {"thicksnapshot"}
        return replace(made, attr="sri-a-s---", layout=layout, role=role, size=size, data_percent=0.0) if size else None
    return None


def is_as_told(volume: LogicalVolume) -> bool:
    """Tell whether an active volume still has the name by which LVM told of it."""
    mapped = dm.find_device(_number_of(f"/dev/{volume.full_name}"))
    return mapped is not None and parse_dm_uuid(mapped.uuid) == (volume.id, "")


def _number_of(path: str) -> dm.Number | None:
    try:
        number = Path(path).stat().st_rdev
    except OSError:
        return None
    return os.major(number), os.minor(number)
