"""What a sync would do, how much that is, and whether there is room for it on both sides. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lvmsync.errors import LvmsyncError
from lvmsync.extents import ChangeMap
from lvmsync.formats.snapshot import ENTRY_SIZE
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.doctor.volumes import check_before
from lvmsync.jobs.replica.choose import Kind
from lvmsync.jobs.replica.copy import PassOptions, plan_pass
from lvmsync.jobs.replica.record import Record
from lvmsync.jobs.replica.replica import open_replica
from lvmsync.jobs.standing import Standing
from lvmsync.names import Volume
from lvmsync.sources import Reading, open_source
from lvmsync.sources.source import Source
from lvmsync.system import lvm
from lvmsync.system.fill_watch import LIMIT
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.snapshot_advice import MAX_CHUNK, MIN_CHUNK, SnapshotAdvice, advise
from lvmsync.units import size_words

REFUSED = "refused"
"""What would be done where nothing would be."""

_TABLE = 16  # bytes that a range of a delta costs on the line, besides its data


@dataclass(frozen=True)
class ChunkCost:
    """What changes would cost a snapshot with chunks of another size.

    Attributes:
        chunk: bytes.
        bytes: that would count as changed, be copied before the first write to them, and be sent.
        store: bytes of the store that they fill, its tables included.
        times: how many times more that is than what is known to have changed.
    """

    chunk: int
    bytes: int
    store: int
    times: float


@dataclass
class Forecast:
    """What would be done; sizes in bytes.

    Attributes:
        source: what would be sent.
        target: where to.
        kind: "first", "delta", "resume", "nothing", "refused", or the kind of the source that tells its changes.
        error: why it would be refused.
        size: of the source.
        changed_bytes: that would be sent; None: not known.
        extents: in so many ranges.
        granularity: that the tracker tells apart.
        wire_bytes: over the line, at the most: before compression, and with zeros counted.
        rate: bytes of changes a second in the last run that could tell; None: there was none.
        seconds: that it would take; None: not known.
        standing: of the target.
        undo_bytes: that the target's side keeps of what is overwritten.
        pool_bytes: that the target's pool may have to give, at the most.
        snapshot: advice for the next snapshot's store; None: it has none, or there is no room.
        chunks: what the same changes would have cost with other chunks, as far as the map tells.
        notes: what the user should know, a sentence each.
        problems: what would stop it on the way, or may, a sentence each.
    """

    source: str
    target: str
    kind: str
    size: int
    standing: Standing | None = None
    error: LvmsyncError | None = None
    changed_bytes: int | None = None
    extents: int = 0
    granularity: int | None = None
    wire_bytes: int | None = None
    rate: float | None = None
    seconds: float | None = None
    undo_bytes: int = 0
    pool_bytes: int = 0
    snapshot: SnapshotAdvice | None = None
    chunks: list[ChunkCost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan_volume(
    agent: Agent,
    volume: LogicalVolume,
    target: str,
    place: str,
    state: Path,
    options: PassOptions,
    told: Sequence[LogicalVolume] | None = None,
) -> Forecast:
    """Return what a sync of a volume would do.

    Args:
        agent: on the target's machine.
        volume: whose snapshots lvmsync takes.
        target: VG/LV or path there.
        place: the target as its user named it.
        state: the state folder of this machine.
        options: how it would be copied.
        told: what LVM told of the volume's group just now; None: it is asked.

    Raises:
        PeerError, TransportError: the target's side cannot be asked.
    """
    found = Forecast(volume.full_name, place, REFUSED, volume.size, standing=agent.standing(target))
    try:
        told = lvm.list_volumes(volume.group) if told is None else told
        found.notes += check_before(volume, told)
        with open_replica(agent, volume, target, place, state, is_dry=True, told=told) as replica:
            here = lvm.list_volumes(volume.group)  # again, now that it is locked
            if not options.cuts:
                replica.require_alone(here)
            record = replica.notebook.record
            plan, found.standing = plan_pass(replica, agent, options, here)
        found.kind = plan.kind.value
        found.notes += plan.notes
        known = plan.base or (plan.head if plan.kind is Kind.COMMITTED else None)
        if plan.kind is Kind.RESUME and found.standing.transaction:
            left = max(volume.size - found.standing.transaction.offset, 0)
            found.changed_bytes, found.extents = left, 1
        elif known:
            # LVM may have forgotten what a thin base was taken of.
            newer = volume.full_name if volume.is_thin else None
            reading = Reading(data_source=newer, with_data=False, frozen=True, volumes=tuple(here), is_later=True)
            with open_source(Volume(known.name), reading) as source:
                _count(found, source.changes, source.granularity)
            if plan.kind is Kind.COMMITTED:
                found.kind = Kind.DELTA.value
                found.notes.append(f"{place} is at {known.name} already; only its receipt had been lost")
            if not found.changed_bytes:
                found.kind = "nothing"
        else:
            mapped = volume.data_percent if volume.is_thin else None
            found.changed_bytes = volume.size if mapped is None else round(volume.size * mapped / 100)
            found.extents = 1
    except LvmsyncError as error:
        found.error, found.kind = error, REFUSED
        return found
    _look_ahead(found, record)
    if not volume.is_thin:
        _advise(found, volume, options)
    return found


def plan_source(agent: Agent, target: str, source: Source, check: Callable[[Source], None]) -> Forecast:
    """Return what a sync of a source that tells its changes by itself would do.

    Args:
        agent: on the target's machine.
        target: VG/LV or path there.
        source: with its map alone (`Reading.with_data`).
        check: raises what the receiver would refuse it with.
    """
    found = Forecast(source.name, agent.place, source.kind, source.size, standing=agent.standing(target))
    found.notes += source.notes
    _count(found, source.changes, source.granularity)
    if not found.changed_bytes:
        found.kind = "nothing"
    try:
        check(source)
    except LvmsyncError as error:
        found.error, found.kind = error, REFUSED
        return found
    _look_ahead(found, None)
    return found


def weigh_chunks(changes: ChangeMap, granularity: int) -> list[ChunkCost]:
    """Return what the same changes would have cost with each size of chunks that the map can tell of.

    Smaller chunks than those that the map was made with may cost less; it does not know.
    """
    changed = changes.total_bytes
    costs = []
    chunk = MIN_CHUNK
    while chunk <= MAX_CHUNK and changed:
        if chunk >= granularity:
            unit = np.uint64(chunk)
            firsts, lasts = changes.offsets // unit, (changes.ends - np.uint64(1)) // unit
            shared = int((firsts[1:] == lasts[:-1]).sum())  # of two extents that follow each other
            count = int((lasts - firsts).sum()) + len(changes) - shared
            tables = count // (chunk // ENTRY_SIZE) + 1
            costs.append(
                ChunkCost(chunk, count * chunk, (1 + tables + count) * chunk, round(count * chunk / changed, 2))
            )
        chunk *= 2
    return costs


def _count(found: Forecast, changes: ChangeMap, granularity: int) -> None:
    found.changed_bytes, found.extents, found.granularity = changes.total_bytes, len(changes), granularity
    found.chunks = weigh_chunks(changes, granularity)


def _look_ahead(found: Forecast, record: Record | None) -> None:
    """Add what it costs on the line and on the target's side, and whether there is room."""
    changed, standing = found.changed_bytes or 0, found.standing
    found.wire_bytes = changed + found.extents * _TABLE
    if record and record.rate:
        found.rate = record.rate
        found.seconds = round(changed / record.rate, 1)
    if standing is None or not changed:
        return
    open_one = standing.transaction
    if standing.exists and not standing.made and (open_one is None or open_one.can_go_back):
        found.undo_bytes = changed
        if standing.undo_free is not None and standing.undo_free < changed:
            found.problems.append(
                f"the target's side keeps what is overwritten, {size_words(changed)} at the most, and its state folder"
                f" has {size_words(standing.undo_free)} free"
            )
    if standing.pool:
        pool = standing.pool
        found.pool_bytes = min(changed + found.extents * pool.chunk, -(-found.size // pool.chunk) * pool.chunk)
        room = pool.size * LIMIT / 100 - (pool.size - pool.free)
        if found.pool_bytes > room:
            found.problems.append(
                f"the target's pool {pool.name} may have to give {size_words(found.pool_bytes)}, and has"
                f" {size_words(max(room, 0))} below its limit of {LIMIT:g}%: what is mapped already is not counted"
            )


def _advise(found: Forecast, volume: LogicalVolume, options: PassOptions) -> None:
    """Add advice on the next snapshot of a volume that is not thin, or that there is no room for one."""
    free = (volume.room or lvm.read_group(volume.group)).free
    expected = found.changed_bytes if found.kind == Kind.DELTA.value else None
    found.snapshot = advise(volume.size, free, expected=expected, size=options.store, chunk=options.chunk)
    if found.kind == Kind.FIRST.value:
        found.notes.append(
            f"a snapshot of {volume.full_name} stays from then on, so LVM makes it larger only while it is inactive"
        )
    if found.snapshot is None:
        found.problems.append(
            f"the volume group '{volume.group}' has {size_words(free)} free, too few for the next snapshot of"
            f" {volume.full_name}: add a disk ('vgextend {volume.group} DISK')"
        )
