"""What may become full on the source's side while a replica is copied: looked at as the copy gets on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lvmsync.formats.snapshot import SECTOR
from lvmsync.jobs.progress import Progress, Report
from lvmsync.system import dm
from lvmsync.system.fill import find_pool
from lvmsync.system.fill_watch import EXTEND_AT, LIMIT, FillWatch, Gauge, extend_command, pool_gauge, store_gauge
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.snapshot_advice import whole_store


@dataclass(frozen=True)
class Limits:
    """When stores and pools are too full.

    Attributes:
        extend_cmd: the user's command that makes more room; None: there is none.
        extend_at: percent at which it is run.
        limit: percent at which the job is stopped.
    """

    extend_cmd: str | None = None
    extend_at: float = EXTEND_AT
    limit: float = LIMIT


def watch_fill(
    volume: LogicalVolume,
    kept: Iterable[LogicalVolume],
    limits: Limits,
    told: Iterable[LogicalVolume] | None = None,
) -> FillWatch:
    """Return what watches the stores of a volume's snapshots, or its thin pool.

    A store that holds every chunk of its origin cannot overflow, and is left alone. One that is over the limit when the
    run begins may be half as empty again before it is stopped: finishing is what empties it.

    Args:
        volume: the source.
        kept: snapshots of it that must not overflow.
        limits: what is too full.
        told: what LVM told of its group just now; None: it is asked.

    Raises:
        UsageError: the command that extends is no command.
    """
    gauges: list[Gauge] = []
    if volume.is_thin:
        pool = find_pool(volume.number) if volume.number else None
        gauges = [pool_gauge(pool, told)] if pool else []
    else:
        gauges = [store_gauge(one) for one in kept if one.is_classic_snapshot and not _holds_all(volume, one)]
    extend = extend_command(limits.extend_cmd) if limits.extend_cmd else None
    limit = limits.limit
    if gauges and not volume.is_thin:
        limit = max(limit, 50.0 + max(gauge.read()[1].percent for gauge in gauges) / 2)
    return FillWatch(gauges, extend, limits.extend_at, limit)


def watching(watch: FillWatch, report: Report) -> Report:
    """Return a report that looks at the fill each time something is told."""

    def tell(progress: Progress) -> None:
        watch.check()
        report(progress)

    return tell


def _holds_all(volume: LogicalVolume, snapshot: LogicalVolume) -> bool:
    chunk = chunk_size(snapshot)
    return chunk > 0 and snapshot.size >= whole_store(volume.size, chunk)


def chunk_size(snapshot: LogicalVolume) -> int:
    """Return the bytes of a classic snapshot's chunk; 0 where the kernel has none.

    Source: Linux v6.1, Documentation/admin-guide/device-mapper/snapshot.rst: ORIGIN STORE P|N CHUNK (sectors).
    """
    kept = dm.find_snapshot(snapshot.number)
    return int(kept.line.text.split()[3]) * SECTOR if kept else 0
