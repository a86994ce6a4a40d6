"""What may become full on the source's side while a replica is copied: looked at as the copy gets on."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lvmsync.errors import LvmsyncError
from lvmsync.jobs.progress import Progress, Report
from lvmsync.system import dm
from lvmsync.system.fill import find_pool
from lvmsync.system.fill_watch import FillWatch, Gauge, Limits, pool_gauge, store_gauge, until_whole
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.signals import breaking_off
from lvmsync.system.snapshot_advice import whole_store

_GRACE = 2.0  # seconds in which what works comes by and learns by itself that something is too full


def watch_fill(volume: LogicalVolume, kept: Iterable[LogicalVolume], limits: Limits) -> FillWatch:
    """Return what watches the stores of a volume's snapshots, or its thin pool.

    A store that holds every chunk of its origin cannot overflow, and is left alone. One that is over the limit when the
    run begins may be half as empty again before it is stopped: finishing is what empties it.

    Args:
        volume: the source.
        kept: snapshots of it that must not overflow.
        limits: what is too full.

    Raises:
        UsageError: the command that extends is no command.
    """
    gauges: list[Gauge] = []
    if volume.is_thin:
        pool = find_pool(volume.number) if volume.number else None
        gauges = [pool_gauge(pool)] if pool else []
    else:
        stores = [(one, _whole(volume, one)) for one in kept if one.is_classic_snapshot]
        gauges = [until_whole(store_gauge(one), whole) for one, whole in stores if one.size < whole]
    limit = limits.limit
    if gauges and not volume.is_thin:
        limit = max(limit, 50.0 + max(gauge.read()[1].percent for gauge in gauges) / 2)
    return limits.watch(gauges, limit=limit)


def once_each(watches: Iterable[FillWatch]) -> list[FillWatch]:
    """Return those that look at something that none before them does: two would make room in one pool at once."""
    kept, seen = [], set[str]()
    for watch in watches:
        volumes = {gauge.volume for gauge in watch.gauges}
        if not volumes <= seen:
            kept.append(watch)
            seen |= volumes
    return kept


def watching(report: Report, *watches: FillWatch) -> Report:
    """Return a report that looks at the fill each time something is told."""

    def tell(progress: Progress) -> None:
        for watch in watches:
            try:
                watch.check()
            except LvmsyncError:
                watch.is_known = True
                raise
        report(progress)

    return tell


@contextmanager
def looked_at(*watches: FillWatch) -> Iterator[None]:
    """Look in the background, too, while the block works: it may wait for a line, and is broken off then, if need be.

    It is not if it has learned by itself what is too full: then it waits until the target is as it was before.

    Raises:
        LvmsyncError: what `FillWatch.check` raises.
    """
    watches = tuple(watch for watch in watches if watch.gauges)
    if not watches:
        yield
        return
    is_over, is_done = threading.Event(), False

    def look() -> None:
        while not is_over.wait(min(watch.every for watch in watches)):
            for watch in watches:
                try:
                    watch.check()
                except LvmsyncError:
                    if not is_over.wait(_GRACE) and not watch.is_known:
                        break_off()
                    return

    with breaking_off() as break_off:
        thread = threading.Thread(target=look, name="fill", daemon=True)
        thread.start()
        try:
            yield
            is_done = True
        finally:
            is_over.set()
            thread.join()
    for watch in watches:
        if watch.failure and not is_done:
            raise watch.failure


def _whole(volume: LogicalVolume, snapshot: LogicalVolume) -> int:
    """Return the bytes of a store that holds every chunk of its origin; where that is not known, more than any has."""
    chunk = chunk_size(snapshot)
    return whole_store(volume.size, chunk) if chunk else 1 << 63


def chunk_size(snapshot: LogicalVolume) -> int:
    """Return the bytes of a classic snapshot's chunk; 0 where the kernel has none."""
    kept = dm.find_snapshot(snapshot.number)
    return kept.chunk if kept else 0
