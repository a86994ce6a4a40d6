"""Is the copy what it should be? Both sides hash what they hold, and only digests travel; nothing is changed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, UsageError, VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.leaves import Compared, compare_device
from lvmsync.jobs.progress import Report, Stopwatch
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.choose import POINT
from lvmsync.jobs.standing import Standing
from lvmsync.names import Volume
from lvmsync.sources.head import open_head
from lvmsync.sources.source import Reading, Source
from lvmsync.system import activation, dm, lvm
from lvmsync.system.device import Device
from lvmsync.system.lvm import LogicalVolume

_SHOWN = 3  # ranges that differ, in a message


@dataclass(frozen=True)
class Verdict:
    """What a comparison of a source with its copy has found.

    Attributes:
        source: what was compared, and in which state.
        target: what with.
        size: bytes of the source.
        far_size: bytes of the target.
        looked: bytes that were compared.
        differing: the blocks of 4 KiB that differ.
        root: of the source's tree of digests; empty where only some ranges were compared.
        far_root: the same of the target's.
        seconds: it took.
        notes: what the user should know, a sentence each.
    """

    source: str
    target: str
    size: int
    far_size: int
    looked: int
    differing: ChangeMap
    root: str
    far_root: str
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether the target holds what the source does, wherever it was compared."""
        return not len(self.differing)

    def require_equal(self) -> None:
        """Raise VerifyError, with the first ranges that differ, if the target is not what it should be."""
        if self.is_equal:
            return
        ranges = [f"{length} bytes at {offset}" for offset, length in list(self.differing_first())]
        more = f", and {len(self.differing) - _SHOWN} more ranges" if len(self.differing) > _SHOWN else ""
        raise VerifyError(
            f"{self.target} is not {self.source}: {self.differing.total_bytes} of {self.looked} bytes differ"
            f" ({', '.join(ranges)}{more}): do not use it; 'lvmsync repair' sends what differs",
            offset=int(self.differing.offsets[0]),
        )

    def differing_first(self) -> ChangeMap:
        """Return the first few ranges that differ."""
        return ChangeMap(self.differing.offsets[:_SHOWN], self.differing.ends[:_SHOWN])


def verify_whole(agent: Agent, target: str, word: str, report: Report, *, frozen: bool = False) -> Verdict:
    """Compare all of a device, file or snapshot with a target.

    Args:
        agent: on the target's machine.
        target: VG/LV or path there.
        word: the source: VG/LV or path here.
        report: takes the progress.
        frozen: the user's word that nobody writes to the source meanwhile.

    Raises:
        DeviceError: one side is in use, not there, or was written to meanwhile.
        ConflictError: the target is in the middle of a receive.
    """
    watch = Stopwatch()
    notes = require_at_rest(agent, target)
    volume = lvm.find_named(Volume(word))
    with ExitStack() as stack:
        if volume:
            volume = stack.enter_context(activation.activated(volume))
        name = Volume(volume.full_name if volume else word)
        device, written = stack.enter_context(open_head(name, Reading(frozen=frozen)))
        found = compare_device(device, device.size, lambda size, seed: agent.begin_leaves(target, size, seed), report)
        written.confirm()
        if volume:
            require_valid(volume)
    return _judge(word, found, found.size, watch, notes)


def verify_changes(agent: Agent, target: str, source: Source, report: Report) -> Verdict:
    """Compare what a delta carries with a target, which should hold it: only the ranges that changed.

    Args:
        agent: on the target's machine.
        target: VG/LV or path there.
        source: the delta, open.
        report: takes the progress.

    Raises:
        UsageError: its data is on no device.
        DeviceError, ConflictError: as of `verify_whole`; or nothing changed, so nothing would be compared.
        VerifyError: the target is too small to be a copy.
    """
    watch = Stopwatch()
    notes = require_at_rest(agent, target)
    if not isinstance(source.data, Device):
        raise UsageError(f"{source.name}: where its data is was not said; name it with -r")
    standing = agent.standing(target)
    if standing.size is not None and standing.size < source.size:
        raise VerifyError(
            f"{agent.place} has {standing.size} bytes and {source.name} has {source.size}: it is no copy of that",
            device=target,
        )
    if not len(source.changes):
        raise ConflictError(
            f"{source.name}: nothing changed, so there is nothing to compare, and whether {agent.place} is a copy is"
            " not known; leave --changed out to compare everything"
        )
    found = compare_device(
        source.data,
        source.size,
        lambda size, seed: agent.begin_leaves(target, size, seed),
        report,
        within=source.changes,
    )
    source.confirm()
    return _judge(f"{source.name} where it changed", found, source.changes.total_bytes, watch, notes)


def verify_volume(agent: Agent, target: str, volume: LogicalVolume, report: Report) -> Verdict:
    """Compare the snapshot of a volume that a target should hold with that target; if it does not, no delta is taken.

    Args:
        agent: on the target's machine.
        target: VG/LV or path there.
        volume: whose snapshots lvmsync takes.
        report: takes the progress.

    Raises:
        ConflictError: the target is at no state that a snapshot of ours still holds, or in the middle of a receive.
        DeviceError: one side is in use, not there, or was written to meanwhile.
        ChangesLost: the snapshot has overflowed.
    """
    watch = Stopwatch()
    before = agent.standing(target)
    base = find_base(volume, before, agent.place)
    notes = require_at_rest(agent, target)
    with activation.activated(base) as active, open_head(Volume(active.full_name), Reading(frozen=True)) as (device, _):
        found = compare_device(device, device.size, lambda size, seed: agent.begin_leaves(target, size, seed), report)
        require_valid(active)
    if len(found.differing):
        notes += _doubt(agent, target, before)
    taken = f" of {base.time}" if base.time else ""
    return _judge(f"{volume.full_name} as of {base.full_name}{taken}", found, found.size, watch, notes)


def distrust(agent: Agent, target: str) -> list[str]:
    """Let a target that differs take no delta until it is mended; return what should be known if that failed."""
    try:
        agent.distrust(target)
    except LvmsyncError as error:
        return [_unnoted(agent, error)]
    return []


def _doubt(agent: Agent, target: str, before: Standing) -> list[str]:
    """Do as `distrust`, of a target that is at the state that it was compared with.

    Raises:
        ConflictError: another run has copied to it meanwhile.
    """
    try:
        now = agent.standing(target)
    except LvmsyncError as error:
        return [_unnoted(agent, error)]
    if now.transaction or now.point != before.point:
        raise ConflictError(f"{agent.place} was copied to by another run while it was compared; run this again")
    return distrust(agent, target)


def _unnoted(agent: Agent, error: LvmsyncError) -> str:
    return f"that {agent.place} differs could not be noted there, so the next sync will not know it: {error}"


def find_base(volume: LogicalVolume, standing: Standing, place: str) -> LogicalVolume:
    """Return the snapshot of ours that holds the state which a target is at.

    Raises:
        ConflictError: there is none.
    """
    point = standing.point.id if standing.point else None
    told = lvm.list_volumes(volume.group) if point else []
    replica = snapshots.find_replica(volume, [point], told) if point else None
    for one in snapshots.list_kept(volume, replica, told) if replica else ():
        if f"{POINT}{one.id}" == point:
            return one
    raise ConflictError(
        f"{place} is at {point or 'no point that is known'}, and no snapshot of {volume.full_name} holds that state, so"
        f" there is nothing to compare with: 'lvmsync repair {volume.full_name} {place}' makes it a copy again",
        device=volume.full_name,
    )


def require_at_rest(agent: Agent, target: str) -> list[str]:
    """Refuse a target that is not there, in use, or half changed; return what else should be known, a sentence each.

    Raises:
        DeviceError: it is not there, or in use.
        ConflictError: it is in the middle of a receive.
    """
    standing = agent.standing(target)
    place = agent.place
    if standing.transaction:
        raise ConflictError(
            f"{place} is in the middle of a receive that began {standing.transaction.began}: run that sync again to"
            " finish it, or 'lvmsync recover' there"
        )
    if not standing.exists:
        raise DeviceError(f"{place}: there is no such device or file")
    if standing.in_use:
        raise DeviceError(f"{place} is in use: {standing.in_use}")
    notes = []
    if standing.dirty:
        notes.append(f"an earlier write to {place} failed, or it was found to differ: what it holds was not known")
    if standing.written == "yes":
        notes.append(f"{place} was written to after lvmsync was done with it")
    return notes


def require_valid(volume: LogicalVolume) -> None:
    """Raise ChangesLost if a classic snapshot overflowed while it was read: it gave anything, then."""
    kept = dm.find_snapshot(volume.number)
    if kept:
        kept.read_usage()


def _judge(source: str, found: Compared, looked: int, watch: Stopwatch, notes: list[str]) -> Verdict:
    if found.far_size > found.size:
        notes = [*notes, f"{found.place} has {found.far_size} bytes; what is past {found.size} was not compared"]
    return Verdict(
        source, found.place, found.size, found.far_size, looked, found.differing, found.root, found.far_root,
        round(watch.seconds, 3), notes,
    )  # fmt: skip
