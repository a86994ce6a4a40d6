"""What changed, and where to read it: one module a mechanism, one way in."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lvmsync.names import SnapshotStore, SourceName, Volume
from lvmsync.sources import snapshot
from lvmsync.sources.source import Source

__all__ = ["Source", "open_source"]


def open_source(
    name: SourceName, *, data_source: str | None = None, frozen: bool = False
) -> AbstractContextManager[Source]:
    """Open the source that ``name`` means; everything it needs is let go at the end of the ``with``.

    Args:
        name: as `parse_source` reads it.
        data_source: VG/LV or path where changed data is read; None: where the mechanism says.
        frozen: the user's word that nobody writes to a live origin meanwhile.

    Raises:
        UsageError: not something that tracks changes, or not what belongs together.
        DeviceError: a device is not there, in use, or failed.
        CommandError: lvs or dmsetup failed.
        FormatError: the tracker's metadata is damaged or not its own.
        ChangesLost: the tracker does not know all changes.
    """
    match name:
        case SnapshotStore():
            return snapshot.open_store(name, data_source=data_source, frozen=frozen)
        case Volume():
            return snapshot.open_volume(name, data_source=data_source, frozen=frozen)
