"""Everything that a device holds: the first copy. Holes of a file and of a thin volume are told, and not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.names import WholeDevice
from lvmsync.sources.difference import BLOCK
from lvmsync.sources.head import choose_size, make_point, open_head
from lvmsync.sources.source import Reading, Source
from lvmsync.sources.thin import find_unmapped
from lvmsync.system import ioctl, lvm
from lvmsync.system.device import Device
from lvmsync.system.dm import find_device
from lvmsync.system.holes import find_holes


@contextmanager
def open_whole(name: WholeDevice, reading: Reading) -> Iterator[Source]:
    """Open a device to be copied whole; see `open_source`."""
    with open_head(name.device, reading) as (device, watch):
        size = choose_size(device, name.size)
        unmapped = find_unmapped(device, name.word)
        yield Source(
            kind="full",
            name=name.word,
            size=size,
            granularity=BLOCK,
            base=None,
            head=_find_point(device) or make_point(),
            changes=ChangeMap.whole(size),
            holes=unmapped.holes.clip(size) if unmapped else find_holes(device, size),
            data=device,
            confirm=watch.confirm,
            notes=unmapped.notes if unmapped else (),
            is_full=True,
        )


def _find_point(device: Device) -> Point | None:
    """Return the point that a read-only snapshot of LVM holds, as the deltas from it and to it call it; else None.

    One that can be written to holds another state tomorrow, and has no name for that of today.
    """
    mapped = find_device(device.number) if device.number and ioctl.is_read_only(device.fd) else None
    ids = lvm.parse_dm_uuid(mapped.uuid) if mapped else None
    volume = lvm.find_volume_by_id(ids[0]) if ids and not ids[1] else None
    if volume is None or "snapshot" not in volume.role:
        return None
    return Point(f"lv:{volume.id}", None, volume.time)
