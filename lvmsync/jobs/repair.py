"""Make a target the copy of a source again, whatever it holds: compare, and send only what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.leaves import compare_device
from lvmsync.jobs.progress import Receipt, Report, Stopwatch
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.choose import POINT
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.opening import open_first
from lvmsync.jobs.replica.replica import Replica, open_replica
from lvmsync.jobs.samples import take_samples
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.standing import Standing
from lvmsync.jobs.verify import require_valid
from lvmsync.names import Volume, WholeDevice
from lvmsync.sources import Reading, open_source
from lvmsync.sources.source import Source
from lvmsync.stream.frames import Sample
from lvmsync.system import activation, lvm
from lvmsync.system.device import Device
from lvmsync.system.lvm import LogicalVolume


def repair(
    agent: Agent,
    target: str,
    whole: Source,
    stream: StreamOptions,
    report: Report,
    *,
    orders: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Receipt:
    """Bring a target to what a source holds, and send only what differs.

    A receive that broke off is finished or undone first, whatever it was.

    Args:
        agent: on the target's machine.
        target: VG/LV or path there.
        whole: all that the source holds.
        stream: how the stream is written.
        report: takes the progress.
        orders: options of the receive (see `Agent.receive`).
        dry_run: only say how much differs.

    Raises:
        DeviceError: the target is not there, in use or too small, or one of both was written to meanwhile.
        ConflictError: the target belongs to a group whose copy was not finished.
    """
    watch = Stopwatch()
    if not isinstance(whole.data, Device):
        raise UsageError(f"{whole.name}: it is not on a device or in a file that can be compared")
    notes = _settle(agent, target, whole.size, dry_run=dry_run)
    found = compare_device(whole.data, whole.size, lambda size, seed: agent.begin_leaves(target, size, seed), report)
    differing = replace(
        whole,
        kind="compare",
        base=None,
        changes=found.differing,
        holes=whole.holes & found.differing,
        is_full=False,
        notes=(),
    )
    if dry_run:
        return Receipt(
            job="repair", source=whole.name, target=agent.place, bytes=found.differing.total_bytes,
            extents=len(found.differing), size=whole.size, seconds=round(watch.seconds, 3), dry_run=True, notes=notes,
        )  # fmt: skip
    samples = _unchanged_samples(whole, found.differing)
    receipt = agent.receive(target, differing, stream, report, orders=orders, samples=samples)
    return replace(receipt, job="repair", seconds=round(watch.seconds, 3), notes=[*notes, *receipt.notes])


def repair_volume(
    agent: Agent,
    target: str,
    volume: LogicalVolume,
    place: str,
    state: Path,
    options: PassOptions,
    report: Report,
    *,
    dry_run: bool = False,
) -> Receipt:
    """Bring a target to what a volume holds now, with a snapshot that is its base from then on.

    Args:
        agent: on the target's machine.
        target: VG/LV or path there.
        volume: the source.
        place: the target as its user named it.
        state: the state folder of this machine.
        options: how.
        report: takes the progress.
        dry_run: only say how much differs, from the volume as it is being written to.

    Raises:
        LvmsyncError: as of `repair`; the target is as it was, or the next sync goes on.
    """
    with open_replica(agent, volume, target, place, state, is_dry=dry_run) as replica:
        if dry_run:
            with open_source(WholeDevice(Volume(volume.full_name), None), Reading(frozen=True)) as live:
                receipt = repair(agent, target, live, options.stream, report, dry_run=True)
            receipt.notes.append(f"{volume.full_name} itself was read: what is being written to it counts as differing")
            return receipt
        groups = replica.find_groups()
        standing = agent.standing(target)
        _require_fit(standing, volume.size, agent.place)  # before anything is made
        identity = standing.identity
        is_read = Event()
        with _new_head(replica, volume, options, is_read) as head, open_first(volume, head) as whole:

            def confirm() -> None:
                whole.confirm()
                is_read.set()  # the end of the stream is sent next

            wanted = replace(whole, confirm=confirm)
            receipt = repair(agent, target, wanted, options.stream, report, orders=options.orders)
        notes = [
            f"{place} is at another moment now than the other copies of group '{group}': run 'lvmsync sync --group"
            f" {group}' with all of its volumes before they are used together"
            for group in groups
        ]
        notes += replica.promote(head, replica.list_snapshots(), identity)
    return replace(receipt, kind="repair", snapshot=head.full_name, notes=[*receipt.notes, *notes])


def _unchanged_samples(whole: Source, differing: ChangeMap) -> list[Sample]:
    """Return samples of what both sides hold: a target that is written to after the comparison may show it by them."""
    samples = take_samples(whole.data, differing, whole.size)
    places = np.array([(one.offset, one.offset + one.length) for one in samples], np.uint64).reshape(-1, 1, 2)
    return [one for one, place in zip(samples, places, strict=True) if not differing.overlaps(place[:, 0], place[:, 1])]


@contextmanager
def open_whole(word: str, *, frozen: bool = False) -> Iterator[Source]:
    """Open all of a device, file or snapshot; of a snapshot of LVM with the point that names its state for good.

    Args:
        word: VG/LV or path.
        frozen: the user's word that nobody writes to it meanwhile.

    Raises:
        DeviceError, CommandError: it is in use, not there, or cannot be read.
    """
    volume = lvm.find_named(Volume(word))
    with ExitStack() as stack:
        if volume:
            volume = stack.enter_context(activation.activated(volume))
        name = Volume(volume.full_name if volume else word)
        source = stack.enter_context(open_source(WholeDevice(name, None), Reading(frozen=frozen)))
        if volume and "snapshot" in volume.role and "r" in volume.attr[1:2]:
            source = replace(source, head=Point(f"{POINT}{volume.id}", None, volume.time))

        def confirm() -> None:
            source.confirm()
            if volume:
                require_valid(volume)

        yield replace(source, name=word, confirm=confirm)


@contextmanager
def _new_head(replica: Replica, volume: LogicalVolume, options: PassOptions, is_read: Event) -> Iterator[LogicalVolume]:
    """Take the snapshot that is compared and sent; removed again unless the target may hold it (``is_read``)."""
    head = snapshots.take_head(volume, replica.id, store=options.store, chunk=options.chunk)
    try:
        replica.notebook.write(head=head.id, head_look=None)
        yield head
    except BaseException as error:
        if is_read.is_set():  # its receipt may have been lost: the next run finds out
            error.add_note(f"{head.full_name} is kept: the target may hold it, and the next sync finds out")
        elif isinstance(error, LvmsyncError):
            for note in snapshots.remove([head]):
                error.add_note(note)
        else:  # called off: nothing more is waited for
            error.add_note(f"{head.full_name} is left; the next sync or 'lvmsync cleanup --remove' removes it")
        raise


def _settle(agent: Agent, target: str, size: int, *, dry_run: bool) -> list[str]:
    """Refuse a target that cannot be repaired, and end a receive that broke off; return what was done."""
    standing = agent.standing(target)
    _require_fit(standing, size, agent.place)
    open_one = standing.transaction
    if open_one is None:
        return []
    if open_one.group:
        raise ConflictError(
            f"{agent.place} belongs to a group ({open_one.group}) whose copy was not finished: run that sync again, or"
            " 'lvmsync recover' on the target"
        )
    if dry_run:
        return [f"{agent.place} is in the middle of a receive that began {open_one.began}, which would be ended first"]
    done = agent.recover(target, give_up=True)
    return [f"a receive that had begun {open_one.began} was ended first: {', '.join(done.notes)}"]


def _require_fit(standing: Standing, size: int, place: str) -> None:
    if not standing.exists:
        raise DeviceError(f"{place}: there is no such device or file; 'lvmsync sync --create' makes one")
    if standing.in_use:
        raise DeviceError(f"{place} is in use: {standing.in_use}")
    if standing.size is not None and standing.size < size:
        raise DeviceError(f"{place} has {standing.size} bytes and the source has {size}: too small; extend it first")
