"""The source of one pass: what a head holds, or how it differs from the base."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

from lvmsync.errors import ConflictError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs.progress import Report
from lvmsync.jobs.refine import minimize
from lvmsync.jobs.replica.choose import POINT
from lvmsync.jobs.replica.proof import guard_zeros
from lvmsync.jobs.replica.snapshots import describe
from lvmsync.jobs.samples import take_samples
from lvmsync.names import Volume, WholeDevice
from lvmsync.sources import Reading, Source, open_source
from lvmsync.stream.frames import Sample
from lvmsync.system import activation, dm
from lvmsync.system.device import open_device
from lvmsync.system.lvm import LogicalVolume
from lvmsync.units import size_words

MINIMAL_UP_TO = 64 << 20
"""Bytes of changes that are compared with the base before they are sent, as long as nobody says otherwise."""

_FEW = 8  # every so many of the samples, when an unfinished delta is gone on with


@dataclass(frozen=True)
class Activity:
    """How the snapshots of a pass come to be active.

    Attributes:
        fresh: ids of those that were made active just now: they are deactivated as well.
        hold: they stay active until this ends; None: until the pass does.
    """

    fresh: Collection[str] = ()
    hold: ExitStack | None = None

    def of(self, *volumes: LogicalVolume) -> AbstractContextManager[list[LogicalVolume]]:
        """Return what yields snapshots as they are when active."""
        return activation.all_activated(volumes, fresh=self.fresh, hold=self.hold)


USUAL = Activity()
"""They are made active if they are not, and deactivated when the pass ends."""


@contextmanager
def open_first(volume: LogicalVolume, head: LogicalVolume, activity: Activity = USUAL) -> Iterator[Source]:
    """Open all that a head holds, as a source whose point is that head.

    Args:
        volume: what it is a snapshot of.
        head: the snapshot.
        activity: how it comes to be active.

    Raises:
        DeviceError, CommandError: it cannot be read.
        ChangesLost: it has overflowed.
    """
    with (
        activity.of(head) as (active,),
        open_source(WholeDevice(Volume(active.full_name), None), Reading()) as source,
    ):

        def confirm() -> None:
            source.confirm()
            kept = dm.find_snapshot(active.number)
            if kept:
                kept.read_usage()  # raises if it overflowed while it was read

        yield replace(
            source,
            name=volume.full_name,
            head=Point(f"{POINT}{head.id}", None, head.time),
            confirm=confirm,
            origin=f"/dev/{volume.full_name}",
        )


@contextmanager
def open_delta(
    volume: LogicalVolume,
    base: LogicalVolume,
    head: LogicalVolume,
    told: Sequence[LogicalVolume] | None = None,
    activity: Activity = USUAL,
) -> Iterator[Source]:
    """Open what changed from a base to a head, with the data of both.

    Args:
        volume: what both are snapshots of.
        base: the older one.
        head: the newer one, which is there already: the map is read after it was taken.
        told: what LVM told just now of the volumes of their group, these included; None: it is asked.
        activity: how the two come to be active.

    Raises:
        DeviceError, CommandError, FormatError: they cannot be read.
        ChangesLost: one of them has overflowed.
    """
    with ExitStack() as stack:
        # Kept active for both: for its map, and for its data.
        active_base, active_head = stack.enter_context(activity.of(base, head))
        now = {base.id: active_base, head.id: active_head}
        volumes = None if told is None else tuple(now.get(one.id, one) for one in told)
        reading = Reading(data_source=head.full_name, with_base=True, volumes=volumes, is_later=True)
        source = stack.enter_context(open_source(Volume(active_base.full_name), reading))
        points = source.base and source.base.id, source.head and source.head.id
        if points != (f"{POINT}{base.id}", f"{POINT}{head.id}"):
            raise ConflictError(
                f"{base.full_name} and {head.full_name} are not the snapshots that they were a moment ago; does"
                " something else make and remove snapshots of this volume? Run it again",
                device=volume.full_name,
            )
        source = _with_growth(source, base, active_head)
        yield guard_zeros(
            replace(source, name=volume.full_name, origin=f"/dev/{volume.full_name}"),
            lambda: open_device(f"/dev/{volume.full_name}"),
            lambda: _changed_since(active_head),
        )


def prepare_delta(
    source: Source, minimal: bool | None, written: str, report: Report, *, is_new: bool
) -> tuple[Source, list[Sample], list[str]]:
    """Hold a delta against its base where that is worth it; return it, samples of the base, and notes.

    Args:
        source: the delta, with the base's data.
        minimal: whether only blocks that differ are to be sent; None: where that is quick.
        written: whether the target was written to, as of `Standing`.
        report: takes the progress.
        is_new: nothing of it was sent before.
    """
    base = source.base_data
    assert base is not None
    size = min(source.size, base.size)
    if is_new:
        is_quick = 0 < source.changes.total_bytes <= MINIMAL_UP_TO
        if minimal or (minimal is None and is_quick):
            source = replace(minimize(source, report), notes=source.notes)
    is_unwatched = is_new and written == "unknown"
    changes = source.changes.clip(size)
    samples = take_samples(base, changes, size, is_unwatched=is_unwatched)
    if not is_new:  # the target was held to all of them when this began; now they are only more bytes for each cut
        return source, samples[::_FEW], []
    if not is_unwatched:
        return source, samples, []
    looked = ChangeMap.from_extents([(one.offset, one.length) for one in samples])
    left = (ChangeMap.whole(size) - looked - changes).total_bytes
    if not left:
        return source, samples, []
    note = (
        "the target was out of use since its last copy, or its machine was restarted, so nothing tells whether anything"
        f" else wrote to it: {size_words(looked.total_bytes)} of it were held against the base and are the same,"
        f" {size_words(left)} ({left / size:.1%}) were neither looked at nor overwritten; 'lvmsync verify' proves them"
    )
    return source, samples, [note]


def _with_growth(source: Source, base: LogicalVolume, head: LogicalVolume) -> Source:
    """Return the source with all that lies behind the end that the volume had when the base was taken.

    A volume that grows gets space that may hold anything, and nothing tells a snapshot of that.
    """
    was = describe(base).size
    end = source.size if was is None else min(was, source.size)
    if source.base_data is not None:
        end = min(end, source.base_data.size)
    size = max(source.size, source.data.size if head.is_classic_snapshot else source.size)
    if end >= size:
        return source
    return replace(source, size=size, changes=source.changes | ChangeMap.from_extents([(end, size - end)]))


def _changed_since(head: LogicalVolume) -> ChangeMap:
    """Return where a volume was written to after a snapshot of it was taken."""
    with open_source(Volume(head.full_name), Reading(with_data=False, frozen=True)) as source:
        return source.changes
