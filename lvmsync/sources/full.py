"""Everything that a device holds: the first copy. Holes of a file and of a thin volume are told, and not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lvmsync.extents import ChangeMap
from lvmsync.names import WholeDevice
from lvmsync.sources.difference import BLOCK
from lvmsync.sources.head import choose_size, make_point, open_head
from lvmsync.sources.source import Reading, Source
from lvmsync.sources.thin import find_unmapped
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
            head=make_point(),
            changes=ChangeMap.whole(size),
            holes=unmapped.holes.clip(size) if unmapped else find_holes(device, size),
            data=device,
            confirm=watch.confirm,
            notes=unmapped.notes if unmapped else (),
            is_full=True,
        )
