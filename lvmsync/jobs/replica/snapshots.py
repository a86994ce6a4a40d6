"""The snapshots that a replica keeps on the source's machine: found by tag and LVM id, never by name.

Tags say whose a snapshot is (`replica_tag`), what it is for (`role_tag`), of which volume it was taken (`origin_tag`)
and how large that was; those of a base say which snapshot they were meant for (`id_tag`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lvmsync.errors import CommandError, DeviceError, LvmsyncError, UsageError
from lvmsync.formats.snapshot import INSTEAD
from lvmsync.jobs.replica.choose import HOLDERS, POINT, Kept
from lvmsync.jobs.standing import Standing
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.fill import store_fill
from lvmsync.system.lvm import Group, LogicalVolume
from lvmsync.system.lvm_commands import id_tag, is_ours, is_taken_of, origin_tag, replica_tag, role_tag
from lvmsync.system.snapshot_advice import advise_snapshot

GROUP_TAG = f"{lvm_commands.TAG}.group="
"""What the tag begins with of a snapshot that was taken together with others; the name of their group follows."""

BASE, HEAD = "base", "head"
"""What a snapshot is for: the target holds it; it is being sent."""

_REPLICA, _ROLE, _ORIGIN, _SIZE = replica_tag(""), role_tag(""), origin_tag(""), "lvmsync.size="
_CUT = f"{lvm_commands.TAG}.cut="
_LEAST = 4 << 20  # bytes of a store
_LONGEST = 100  # letters of a volume's name that go into its snapshot's


def find_source(word: str, told: Sequence[LogicalVolume] | None = None) -> LogicalVolume:
    """Return the volume that is to be copied.

    Args:
        word: VG/LV, or its path under /dev.
        told: what LVM told of its group just now; None: it is asked.

    Raises:
        UsageError: it is no volume of LVM, or one that has no snapshots.
        DeviceError, CommandError: there is none, or lvs failed.
    """
    from lvmsync.names import parse_volume

    volume = lvm.find_named(parse_volume(word), told)
    if volume is None:
        raise UsageError(f"{word} is no volume of LVM, so no snapshot of it can be taken; use full:{word} or compare:")
    why = refusal(volume)
    if why:
        raise UsageError(f"{volume.full_name} {why}", device=volume.full_name)
    return volume


def refusal(volume: LogicalVolume) -> str:
    """Return why no snapshots of a volume can be taken; empty if they can."""
    if "pool" in volume.layout:
        return "is a pool, and no volume with data of its own; name a volume in it"
    if "private" in volume.role:
        return "is a part of another volume; name that"
    if volume.is_classic_snapshot:
        return "is a classic snapshot, and there are no snapshots of snapshots; name its origin to have it managed"
    if volume.is_merging:
        return "is being merged with a snapshot, or will be when it is activated; wait for that to end"
    if "cow" in volume.role or "vorigin" in volume.role:
        return "is a sparse volume, of which LVM takes no snapshot"
    return ""


def points_of(standing: Standing) -> set[str]:
    """Return the points by which a target may be known as a copy of ours."""
    open_one = standing.transaction
    found = [standing.point.id if standing.point else None]
    if open_one:
        found += [open_one.base, open_one.head]
    return {point for point in found if point is not None}


def is_managed(volume: LogicalVolume) -> bool:
    """Tell whether ``sync`` makes the snapshots of a volume: it is none itself."""
    return not volume.is_classic_snapshot and "thinsnapshot" not in volume.role


def list_kept(volume: LogicalVolume, replica: str, told: Iterable[LogicalVolume] | None = None) -> list[LogicalVolume]:
    """Return the snapshots of a volume that carry a replica's tag, oldest first.

    Args:
        volume: the source.
        replica: whose they are.
        told: what LVM told of the volume's group just now; None: it is asked.
    """
    ours = lvm_commands.list_ours(volume.group) if told is None else [one for one in told if is_ours(one)]
    kept = [one for one in ours if is_taken_of(one, volume) and replica_tag(replica) in one.tags]
    return sorted(kept, key=lambda one: one.created or 0)


def find_replica(
    volume: LogicalVolume, points: Iterable[str], told: Iterable[LogicalVolume] | None = None
) -> str | None:
    """Return the id of the replica whose snapshot holds one of these points; None if none of ours does.

    Args:
        volume: the source.
        points: by which a target is known.
        told: what LVM told of the volume's group just now; None: it is asked.
    """
    wanted = set(points)
    for one in lvm_commands.list_ours(volume.group) if told is None else filter(is_ours, told):
        if is_taken_of(one, volume) and f"{POINT}{one.id}" in wanted and role_of(one) in HOLDERS:
            return replica_of(one)
    return None


def replica_of(volume: LogicalVolume) -> str | None:
    """Return the id of the replica that a snapshot belongs to."""
    return _tagged(volume, _REPLICA)


def source_of(volume: LogicalVolume) -> str:
    """Return the LVM id of the volume that a snapshot was taken of; empty if nothing tells."""
    return volume.origin_id or _tagged(volume, _ORIGIN) or ""


def role_of(volume: LogicalVolume) -> str:
    """Return what a snapshot is for."""
    return _tagged(volume, _ROLE) or ""


def group_tags(group: str, cut: str) -> frozenset[str]:
    """Return the tags of a snapshot that was taken together with others.

    Args:
        group: its name.
        cut: id of that moment.
    """
    return frozenset({f"{GROUP_TAG}{group}", f"{_CUT}{cut}"})


def group_of(volume: LogicalVolume) -> str | None:
    """Return the name of the group that a snapshot was taken for."""
    return _tagged(volume, GROUP_TAG)


def cut_of(volume: LogicalVolume) -> str | None:
    """Return the id of the cut that a snapshot is of."""
    return _tagged(volume, _CUT)


def describe(volume: LogicalVolume) -> Kept:
    """Return a snapshot as `choose` needs it, with what is wrong with it."""
    size = _tagged(volume, _SIZE)
    return Kept(
        volume.id,
        volume.full_name,
        role_of(volume),
        int(size) if size and size.isdecimal() else None,
        _trouble(volume),
    )


def take_head(
    volume: LogicalVolume,
    replica: str,
    *,
    store: int | None = None,
    chunk: int | None = None,
    told: Sequence[LogicalVolume] | None = None,
    active: bool = False,
) -> LogicalVolume:
    """Take the snapshot that will be sent.

    Args:
        volume: of which.
        replica: whose it is.
        store: bytes of a classic snapshot's store; None: advised.
        chunk: bytes of its chunks; None: advised.
        told: what LVM told of the volume's group just now, and of the volume itself; None: it is asked.
        active: whether a thin one is made active.

    Raises:
        DeviceError: the volume group has too little room.
        CommandError: lvcreate failed; nothing was made.
    """
    group: Group | None = None
    if not volume.is_thin and (store is None or chunk is None):
        group = (volume.room if told is not None else None) or lvm.read_group(volume.group)
        store = choose_store(volume, chunk, group) if store is None else store
    return lvm_commands.take_snapshot(
        volume, head_name(volume), tags=head_tags(volume, replica), size=store, chunk=chunk, told=told, group=group,
        active=active,
    )  # fmt: skip


def choose_store(volume: LogicalVolume, chunk: int | None = None, group: Group | None = None) -> int | None:
    """Return how large the store of a new head is made, so that there is room for the next one; None: as advised.

    Base and head are there at the same time, so one takes half of what its volume group has free at the most.

    Args:
        volume: of which.
        chunk: bytes of its chunks; None: advised.
        group: what LVM told of its volume group just now; None: it is asked.

    Raises:
        DeviceError: the volume group has too little room.
        CommandError: vgs failed.
    """
    group = group or lvm.read_group(volume.group)
    half = group.free // 2 // group.extent_size * group.extent_size
    try:
        if advise_snapshot(volume, chunk=chunk, group=group).size <= half:
            return None
    except DeviceError:
        if half < _LEAST:
            raise
    return half if half >= _LEAST else None


def head_name(volume: LogicalVolume) -> str:
    """Return a name for a new head of a volume."""
    return f"{volume.name[:_LONGEST]}.lvmsync.{secrets.token_hex(4)}"


def head_tags(volume: LogicalVolume, replica: str) -> frozenset[str]:
    """Return the tags of a new head."""
    return frozenset({replica_tag(replica), role_tag(HEAD), origin_tag(volume.id), f"{_SIZE}{volume.size}"})


@contextmanager
def quiet(volumes: Sequence[LogicalVolume], *, limit: float | None = None) -> Iterator[dict[str, str]]:
    """Freeze all file systems that lie deeper on volumes, for the time of the block; yield a note of which.

    The notes are by id of the volume that each is of; one on which nothing lies has none, unless that is so of all.

    Of one on a volume itself the kernel does that as it takes the snapshot, and refuses to if it is frozen already.
    It does not for one on an encrypted device in between.

    Args:
        volumes: of which snapshots are taken in the block.
        limit: seconds after which they are thawed, whatever happens; None: the usual.

    Raises:
        DeviceError: one of them cannot be frozen, or all were thawed before the block ended.
    """
    from lvmsync.system.freeze import LIMIT, frozen
    from lvmsync.system.mounts import find_mounts_above

    own: dict[str, list[str]] = {one.id: [] for one in volumes}
    deep: list[str] = []
    for one in volumes:
        if one.number:
            own[one.id] = list(dict.fromkeys(mount.point for mount in find_mounts_above(one.number)))
            deep += [mount.point for mount in find_mounts_above(one.number, with_own=False)]
    points = list(dict.fromkeys(deep))
    if not any(own.values()):
        yield {one.id: f"nothing that is mounted lies on {one.full_name}, so nothing was frozen" for one in volumes}
        return
    with ExitStack() as stack:
        if points:
            stack.enter_context(frozen(points, limit=LIMIT if limit is None else limit))
        yield {one: f"frozen while the snapshot was taken: {', '.join(found)}" for one, found in own.items() if found}


def promote(head: LogicalVolume) -> LogicalVolume:
    """Make a head the base, in one step: the target holds it now."""
    return lvm_commands.change_tags(head, [role_tag(BASE), id_tag(head.id)], [role_tag(HEAD)])


def remove(volumes: Iterable[LogicalVolume]) -> list[str]:
    """Remove snapshots that nothing needs; return what could not be removed, a sentence each."""
    notes = []
    for volume in volumes:
        try:
            lvm_commands.remove_snapshot(volume)
        except LvmsyncError as error:
            notes.append(f"{volume.full_name} is not needed any more and could not be removed ({error})")
    return notes


def _trouble(volume: LogicalVolume) -> str:
    """Return why the changes since a snapshot was taken cannot be had; empty if they can."""
    if not volume.is_classic_snapshot:
        return ""
    try:
        lvm.require_usable_snapshot(volume)
        store_fill(volume)  # raises if it has overflowed
    except CommandError:
        raise
    except LvmsyncError as error:
        # Whoever tells it names the snapshot, and a way out that leads on from here.
        words = str(error).removesuffix(f"; {INSTEAD}").removeprefix(f"{volume.full_name}: ")
        return f"it {words.removeprefix(volume.full_name).lstrip()}" if words.startswith(volume.full_name) else words
    return ""


def _tagged(volume: LogicalVolume, beginning: str) -> str | None:
    return next((tag.removeprefix(beginning) for tag in sorted(volume.tags) if tag.startswith(beginning)), None)
