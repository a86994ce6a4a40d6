"""The snapshots of a group: how large each is, what stands still meanwhile, and all of them at one instant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lvmsync.errors import DeviceError
from lvmsync.jobs.replica import snapshots
from lvmsync.system import cut as cuts
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.quiesce import quiesced
from lvmsync.system.snapshot_advice import advise
from lvmsync.system.suspend import LIMIT
from lvmsync.units import size_words


@dataclass(frozen=True)
class Wanted:
    """A head that is wanted.

    Attributes:
        volume: of which.
        replica: whose it is.
        store: bytes of a classic snapshot's store; None: advised.
        chunk: bytes of its chunks; None: advised.
    """

    volume: LogicalVolume
    replica: str
    store: int | None = None
    chunk: int | None = None


@dataclass
class Taken:
    """The heads that were taken.

    Attributes:
        heads: in the order that they were wanted in.
        still_seconds: for how long writes to the volumes had to wait at the most.
        notes: what the user should know of a volume, a sentence, by its id.
    """

    heads: list[LogicalVolume] = field(default_factory=list)
    still_seconds: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stillness:
    """What stands still while a group is cut, besides its volumes.

    Attributes:
        freeze: file systems on devices that lie on the volumes are frozen (those on the volumes always are).
        freeze_cmd: the user's command that freezes what we cannot see, in a guest say; None: there is none.
        thaw_cmd: the one that undoes it.
        limit: seconds that anything stands still at most.
    """

    freeze: bool = False
    freeze_cmd: str | None = None
    thaw_cmd: str | None = None
    limit: float = LIMIT


def take_together(group: str, cut: str, wanted: Sequence[Wanted], stillness: Stillness) -> Taken:
    """Take the heads of a group at one instant.

    Args:
        group: its name.
        cut: id of that instant.
        wanted: one for each volume.
        stillness: what stands still meanwhile.

    Raises:
        DeviceError: a volume group has too little room, or the limit was over before all was done.
        CommandError: lvcreate, or a command of the user, failed.
    """
    taken = Taken()
    sizes = choose_stores(group, wanted)
    orders = [
        cuts.Order(
            one.volume,
            snapshots.head_name(one.volume),
            snapshots.head_tags(one.volume, one.replica) | snapshots.group_tags(group, cut),
            *size,
        )
        for one, size in zip(wanted, sizes, strict=True)
    ]

    def keep(seconds: float) -> None:
        taken.still_seconds = seconds

    around = _quiet(group, [one.volume for one in wanted], stillness, taken.notes)
    taken.heads = cuts.cut_together(orders, limit=stillness.limit, around=around, tell_still=keep)
    return taken


def choose_stores(group: str, wanted: Sequence[Wanted]) -> list[tuple[int | None, int | None]]:
    """Return size and chunk of each store: those of one volume group share what that has free. Thin ones have none.

    Args:
        group: name of the group, for messages.
        wanted: one for each volume.

    Raises:
        DeviceError: a volume group has too little room.
    """
    left = Counter(one.volume.group for one in wanted if not one.volume.is_thin)
    free = {name: _find_room(name, [one.volume for one in wanted]) for name in left}
    used: Counter[str] = Counter()
    found: list[tuple[int | None, int | None]] = []
    for one in wanted:
        if one.volume.is_thin:
            found.append((None, None))
            continue
        vg = free[one.volume.group]
        room = vg.free - used[vg.name]
        # Base and head are there at the same time, so half of it stays free where that is enough.
        for share in (room // (2 * left[vg.name]), room // left[vg.name]):
            within = share - share % vg.extent_size
            advice = advise(one.volume.size, within, size=one.store, chunk=one.chunk)
            if advice:
                break
        else:
            raise DeviceError(
                f"the volume group '{vg.name}' has {size_words(vg.free)} free, too few for snapshots of all volumes of"
                f" '{group}': add a disk ('vgextend'), or choose smaller stores with --cow-size",
                device=one.volume.full_name,
            )
        left[vg.name] -= 1
        used[vg.name] += advice.size + vg.extent_size
        found.append((advice.size, advice.chunk))
    return found


def _find_room(group: str, volumes: Sequence[LogicalVolume]) -> lvm.Group:
    """Return what a group has free: as it came with all of these volumes that are in it, or else as LVM tells now."""
    rooms = [one.room for one in volumes if one.group == group]
    return rooms[0] if rooms[0] and all(rooms) else lvm.read_group(group)


@contextmanager
def _quiet(group: str, volumes: Sequence[LogicalVolume], stillness: Stillness, notes: dict[str, str]) -> Iterator[None]:
    """Freeze what the user wants frozen, for the time of the block; note what he should know of that."""
    with ExitStack() as stack:
        if stillness.freeze_cmd and stillness.thaw_cmd:
            env = {"LVMSYNC_GROUP": group, "LVMSYNC_VOLUMES": " ".join(one.full_name for one in volumes)}
            stack.enter_context(quiesced(stillness.freeze_cmd, stillness.thaw_cmd, env=env, limit=stillness.limit))
        if stillness.freeze:
            notes.update(stack.enter_context(snapshots.quiet(volumes, limit=stillness.limit)))
        yield
