"""Volumes: pools and stores that fill up, snapshots that are broken, groups without room for the next snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from lvmsync.errors import DeviceError
from lvmsync.jobs.doctor.findings import Finding
from lvmsync.jobs.replica.record import Record
from lvmsync.system import dm, lvm
from lvmsync.system.fill_watch import LIMIT
from lvmsync.system.lvm import Group, LogicalVolume
from lvmsync.system.lvm_commands import is_ours, is_taken_of, replica_tag
from lvmsync.system.snapshot_advice import MIN_CHUNK, advise, whole_store
from lvmsync.system.suspend import is_suspended
from lvmsync.units import size_words

NEARLY = 80.0
"""Percent from which on a pool or store is worth a word."""

_LEAST_METADATA = 4 << 20  # bytes that a pool's metadata are made larger by


def check_volumes(volumes: Sequence[LogicalVolume]) -> Iterator[Finding]:
    """Yield what is wrong with pools and classic snapshots.

    Args:
        volumes: of one or more whole groups, hidden ones included.
    """
    for volume in volumes:
        if {"thin", "pool"} <= volume.layout:
            yield from _check_pool(volume, volumes)
        elif volume.is_classic_snapshot:
            yield from _check_store(volume, volumes)


def _check_pool(pool: LogicalVolume, volumes: Sequence[LogicalVolume]) -> Iterator[Finding]:
    name = pool.full_name
    if pool.data_percent is not None and pool.data_percent >= NEARLY:
        yield Finding(
            "full",
            name,
            f"the thin pool's data are {pool.data_percent:.1f}% full: when none is left, all its volumes fail",
            f"lvextend -l +25%LV {name}",
            pool.data_percent >= LIMIT,
        )
    if pool.metadata_percent is not None and pool.metadata_percent >= NEARLY:
        hidden = (one.size for one in volumes if (one.group, one.name) == (pool.group, f"{pool.name}_tmeta"))
        more = max(next(hidden, 0) // 2, _LEAST_METADATA) >> 20
        yield Finding(
            "full",
            name,
            f"the thin pool's metadata are {pool.metadata_percent:.1f}% full: when none is left, all its volumes fail",
            f"lvextend --poolmetadatasize +{more}M {name}",
            pool.metadata_percent >= LIMIT,
        )


def _check_store(snapshot: LogicalVolume, volumes: Sequence[LogicalVolume]) -> Iterator[Finding]:
    name = snapshot.full_name
    if snapshot.trouble and not snapshot.is_merging:
        ours = is_ours(snapshot)
        yield Finding(
            "broken",
            name,
            f"LVM says '{snapshot.trouble}': what it held is lost, and a delta cannot start from it",
            "'lvmsync repair SOURCE TARGET' makes a new base" if ours else f"lvremove {name}",
        )
        return
    origin = next((one for one in volumes if (one.group, one.name) == (snapshot.group, snapshot.origin)), None)
    holds_all = origin is not None and snapshot.size >= whole_store(origin.size, MIN_CHUNK)
    if snapshot.data_percent is not None and snapshot.data_percent >= NEARLY and not holds_all:
        yield Finding(
            "full",
            name,
            f"the snapshot's store is {snapshot.data_percent:.1f}% full: when it is full the snapshot is lost",
            f"lvextend -l +25%LV {name}",
        )


def check_room(
    records: Iterable[Record], volumes: Sequence[LogicalVolume], groups: Iterable[Group]
) -> Iterator[Finding]:
    """Yield which replicas have no room for their next snapshot, or no source any more."""
    free = {group.name: group.free for group in groups}
    by_id = {volume.id: volume for volume in volumes}
    for record in records:
        volume = by_id.get(record.source_id)
        if volume is None:
            tag = replica_tag(record.id)
            left = ", ".join(one.full_name for one in volumes if is_ours(one) and tag in one.tags)
            step = f"lvmsync cleanup --replica {record.id}"
            yield Finding(
                "broken",
                record.source,
                f"the volume whose copy is {record.target} is gone" + (f", and {left} is left of it" if left else ""),
                f"if it is not needed any more, for good: {step}" if left else step,
            )
        elif not volume.is_thin and advise(volume.size, free.get(volume.group, 0)) is None:
            yield Finding(
                "full",
                volume.group,
                f"{size_words(free.get(volume.group, 0))} are free, too few for the next snapshot of"
                f" {volume.full_name} ({size_words(volume.size)})",
                f"vgextend {volume.group} DISK",
            )


def check_suspended(
    devices: Iterable[dm.Mapped], look: Callable[[dm.Number], bool] = is_suspended
) -> Iterator[Finding]:
    """Yield the mapped devices that are suspended."""
    for device in devices:
        if look(device.number):
            yield _suspended(device.path, device.name)


def _suspended(what: str, name: str) -> Finding:
    problem = "the device is suspended: who reads or writes it waits"
    return Finding("broken", what, problem, f"dmsetup resume {name}", is_fatal=True)


def check_before(volume: LogicalVolume, told: Sequence[LogicalVolume] | None = None) -> list[str]:
    """Look, before a job, at what a volume needs: its pool, its group's snapshots, and that nothing holds it.

    Args:
        volume: the source of the job, or its target on this machine.
        told: what LVM told of its group just now; None: it is asked.

    Returns:
        What the user should know, a sentence each.

    Raises:
        DeviceError: the job should not begin; the message has what mends it.
        CommandError: lvs failed.
    """
    volumes = lvm.list_volumes(volume.group) if told is None else [one for one in told if one.group == volume.group]
    mine = [
        one
        for one in volumes
        if one.name == volume.pool or (is_ours(one) and is_taken_of(one, volume)) or one.name.endswith("_tmeta")
    ]
    found = list(check_volumes([*mine, *(one for one in volumes if one.id == volume.id)]))
    if volume.number and is_suspended(volume.number):
        found.append(
            Finding("broken", volume.full_name, "it is suspended", f"dmsetup resume /dev/{volume.full_name}", True)
        )
    for one in found:
        if one.is_fatal:
            raise DeviceError(f"{one.what}: {one.problem}; mend that first: {one.remedy}", device=one.what)
    return [str(one) for one in found]
