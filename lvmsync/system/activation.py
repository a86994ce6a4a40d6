"""Volumes that are active for as long as they are needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from lvmsync.errors import CommandError, LvmsyncError
from lvmsync.system import dm, lvm
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.lvm_lock import change


@contextmanager
def activated(volume: LogicalVolume) -> Iterator[LogicalVolume]:
    """Yield a volume as it is when active; one that was not is deactivated again at the end.

    Raises:
        CommandError: lvchange failed.
    """
    with all_activated([volume]) as (active,):
        yield active


@contextmanager
def all_activated(
    volumes: Sequence[LogicalVolume], *, fresh: Collection[str] = (), hold: ExitStack | None = None
) -> Iterator[list[LogicalVolume]]:
    """Yield volumes of one group as they are when active; those that were not are deactivated again at the end.

    Args:
        volumes: of one group.
        fresh: ids of those that the caller has made active: they are deactivated as well, but for classic snapshots,
            which are active with their origin, and would be deactivated with it.
        hold: they stay active until this ends, for whoever needs them next; None: until the block ends.

    Raises:
        CommandError: lvchange failed.
    """
    ours = [one for one in volumes if one.number is None or (one.id in fresh and not one.is_classic_snapshot)]
    with ExitStack() as stack:
        if ours:
            keeper, give_back = (stack, _deactivate) if hold is None else (hold, _let_go)
            idle = [volume for volume in ours if volume.number is None]
            if idle:
                _activate(idle)
            keeper.callback(give_back, ours)
            volumes = _as_active(volumes)
        yield list(volumes)


def _activate(idle: Sequence[LogicalVolume]) -> None:
    """Activate volumes, all of them or none."""
    try:
        change(["lvchange", "-ay", "-K", *(one.full_name for one in idle)])  # -K: new thin snapshots are skipped else
    except CommandError as error:
        if len(idle) > 1:  # one of them may be active now
            try:
                _deactivate(idle)
            except LvmsyncError as failed:
                error.add_note(str(failed))
        raise


def _as_active(volumes: Sequence[LogicalVolume]) -> list[LogicalVolume]:
    """Return volumes that were activated just now with their numbers: the kernel tells them sooner than LVM."""
    if all(one.number for one in volumes):
        return list(volumes)
    devices = [(lvm.parse_dm_uuid(device.uuid), device.number) for device in dm.list_devices()]
    numbers = {ids[0]: number for ids, number in devices if ids and not ids[1]}
    if all(one.id in numbers for one in volumes):
        return [replace(one, number=numbers[one.id]) if one.number is None else one for one in volumes]
    told = lvm.list_volumes(volumes[0].group)
    return [lvm.find_volume(one.full_name, told) if one.number is None else one for one in volumes]


def _let_go(volumes: Sequence[LogicalVolume]) -> None:
    """Deactivate volumes that nobody needs any more, as far as they are there; one that stays active does no harm."""
    with suppress(LvmsyncError):
        ids = {one.id for one in volumes}
        active = [one for one in lvm.list_volumes(volumes[0].group) if one.id in ids and one.number]
        if active:
            _deactivate(active)


def _deactivate(volumes: Sequence[LogicalVolume]) -> None:
    """Deactivate volumes that were activated here, but for those that another program has open by now."""
    names = [one.full_name for one in volumes]
    try:
        change(["lvchange", "-an", *names])
    except CommandError:
        for name in names:
            number = lvm.find_volume(name).number
            mapped = dm.find_device(number)
            if number is not None and (not mapped or not mapped.open_count):
                raise  # otherwise it is in use, perhaps by another run of ours, and stays active
