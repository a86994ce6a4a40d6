"""What changed, and where to read it: one module a mechanism, one way in."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lvmsync.images import RbdSnapshot
from lvmsync.names import (
    BlockMap,
    Comparison,
    CowFile,
    EraMetadata,
    SnapshotStore,
    SourceName,
    ThinDevice,
    Volume,
    WholeDevice,
)
from lvmsync.sources.source import Reading, Source

__all__ = ["Reading", "Source", "open_source"]


def open_source(name: SourceName, reading: Reading | None = None) -> AbstractContextManager[Source]:
    """Open the source that ``name`` means; everything it needs is let go at the end of the ``with``.

    Args:
        name: as `parse_source` reads it.
        reading: what is wanted of it, and where that is.

    Raises:
        UsageError: not something that tracks changes, or not what belongs together.
        DeviceError: a device is not there, in use, or failed.
        CommandError: lvs or dmsetup failed.
        FormatError: the tracker's metadata is damaged or not its own.
        ChangesLost: the tracker does not know all changes.
        ConflictError: another run, or another program, holds what is needed.
    """
    # Each mechanism is imported when it is asked for: numpy and the formats take time to load.
    reading = reading or Reading()
    match name:
        case SnapshotStore():
            from lvmsync.sources import snapshot

            return snapshot.open_store(name, reading)
        case ThinDevice():
            from lvmsync.sources import thin

            return thin.open_metadata(name, reading)
        case EraMetadata():
            from lvmsync.sources import era

            return era.open_metadata(name, reading)
        case CowFile():
            from lvmsync.sources import dattobd

            return dattobd.open_cow_file(name, reading)
        case BlockMap():
            from lvmsync.sources import blksnap

            return blksnap.open_map(name, reading)
        case Comparison():
            from lvmsync.sources import compare

            return compare.open_comparison(name, reading)
        case WholeDevice():
            from lvmsync.sources import full

            return full.open_whole(name, reading)
        case RbdSnapshot():
            from lvmsync.sources import rbd

            return rbd.open_snapshot(name, reading)
        case Volume():
            from lvmsync.sources import snapshot, thin
            from lvmsync.system.lvm import find_named

            volume = find_named(name, reading.volumes)
            if volume and volume.is_thin:
                return thin.open_volume(name, volume, reading)
            return snapshot.open_volume(name, volume, reading)
