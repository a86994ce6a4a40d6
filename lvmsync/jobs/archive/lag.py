"""How much a volume has changed since an archive's newest point, where its tracker tells that without a search."""

from __future__ import annotations

from lvmsync.chain.catalogue import Catalogue
from lvmsync.errors import LvmsyncError
from lvmsync.jobs.replica.choose import POINT
from lvmsync.system import lvm
from lvmsync.system.fill import store_fill
from lvmsync.system.lvm import LogicalVolume


def find_lag_bytes(volume: LogicalVolume, catalogue: Catalogue) -> int | None:
    """Return how many bytes of a volume have changed since an archive's newest point, at the most; None: not known.

    Only the store of a classic snapshot tells: each chunk that was written to takes its place there, and its table some
    more. Of a thin snapshot it would take a look through the metadata of its pool.

    Args:
        volume: whose snapshots lvmsync takes.
        catalogue: of the archive.
    """
    newest = catalogue.points[-1].id if catalogue.points else ""
    try:
        snapshot = next((one for one in lvm.list_volumes(volume.group) if f"{POINT}{one.id}" == newest), None)
        is_its = snapshot is not None and snapshot.is_classic_snapshot and snapshot.origin_id == volume.id
        return store_fill(snapshot).used if snapshot and is_its else None
    except LvmsyncError:
        return None
