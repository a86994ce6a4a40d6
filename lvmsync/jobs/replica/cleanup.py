"""Which snapshots of ours nothing needs any more, and giving up a replica. Found by tag and LVM id, never by name.

What a target needs, only its own side knows; here the records of this machine count. So a snapshot that no record
knows is shown, and removed only with its whole replica, when its user says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import ConflictError, UsageError
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.record import Record, is_busy, list_records, lock_replica, open_record
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.cut import PENDING_TAG
from lvmsync.system.lvm import LogicalVolume

_STRAY = (
    "it carries tags of lvmsync's, and LVM does not know any more what it is a snapshot of: if nobody else needs it,"
    " remove it with lvremove"
)


@dataclass(frozen=True)
class Found:
    """A snapshot of ours.

    Attributes:
        volume: as LVM has it.
        replica: id of the replica that it belongs to; empty if its tags tell none.
        role: what it is for.
        source: VG/LV of the volume it was taken of; empty if that is gone.
        target: where the copy is; empty if no record of this machine knows.
        state: what is to be said of it, in a few words.
        is_spare: nothing needs it: it may be removed without asking.
    """

    volume: LogicalVolume
    replica: str
    role: str
    source: str
    target: str
    state: str
    is_spare: bool = False


def find_snapshots(state: Path) -> list[Found]:
    """Return all snapshots of ours on this machine, and what each is needed for.

    Args:
        state: the state folder.

    Raises:
        CommandError: lvs failed.
        FormatError: a record cannot be read.
    """
    volumes = lvm.list_volumes()
    names = {one.id: one.full_name for one in volumes}
    bases = {one.id for one in volumes if lvm_commands.is_ours(one) and snapshots.role_of(one) == snapshots.BASE}
    records = {record.id: record for record in list_records(state)}
    found = []
    for one in volumes:
        if lvm_commands.is_of_mount(one):
            continue  # it is below a past state that is mounted, of which there is a record
        if lvm_commands.is_stray(one):
            found.append(Found(one, "", snapshots.role_of(one), "", "", _STRAY))
        if not lvm_commands.is_ours(one):
            continue
        replica = snapshots.replica_of(one) or ""
        record = records.get(replica)
        is_running = is_busy(state, replica)
        text, is_spare = _judge(one, record, names, bases, is_running=is_running)
        source = names.get(snapshots.source_of(one), "")
        if not source:
            text += "; the volume that it was taken of is gone, and this may be the last of it here"
        found.append(
            Found(
                one,
                replica,
                snapshots.role_of(one),
                source,
                record.target if record else "",
                f"{text} (group {group})" if (group := snapshots.group_of(one)) else text,
                is_spare and bool(source),
            )
        )
    return found


def _judge(
    volume: LogicalVolume, record: Record | None, volumes: Mapping[str, str], bases: Set[str], *, is_running: bool
) -> tuple[str, bool]:
    """Return what is to be said of a snapshot, and whether nothing needs it.

    Args:
        volume: the snapshot.
        record: of its replica.
        volumes: names of all volumes, by id.
        bases: ids of those that targets hold, by their tags.
        is_running: whether a run works with the replica.
    """
    role, source = snapshots.role_of(volume), snapshots.source_of(volume)
    if is_running:
        return "a run works with it now", False
    if PENDING_TAG in volume.tags:
        return "of a cut of several volumes that broke off before all were taken", True
    if role == "back":
        return "kept for the way back of a migration", False
    if record is None:
        return "no record on this machine knows its replica; the target may still need it", False
    if source != record.source_id:
        return "of another volume than its replica, so somebody else's with copied tags", False
    # Its tag is changed first, once the target holds it; a run may have been killed before it could note that.
    held = record.head if record.head in bases else record.base
    if volume.id == held:
        return "what the copy holds; the next delta starts from it", False
    if volume.id == record.head:
        return "was being sent; the next run goes on with it, or removes it", False
    if role == "head":
        return "taken by a run that ended before it was sent", True
    if held not in volumes:  # a record that was restored from a backup may name one of long ago
        return "no longer known; the copy may hold it", False
    return "an older base, which a newer one has replaced", True


@dataclass(frozen=True)
class Bare:
    """A replica of which a record is there, and no snapshot.

    Attributes:
        record: of it.
        state: what is to be said of it, in a few words.
        is_spare: nothing has come of it: it may be forgotten without asking.
    """

    record: Record
    state: str
    is_spare: bool

    @property
    def remedy(self) -> str:
        """The command that forgets it."""
        if self.is_spare:
            return "lvmsync cleanup --remove"
        return f"if it is not needed: lvmsync cleanup --replica {self.record.id}"


def find_bare(state: Path, volumes: Sequence[LogicalVolume] | None = None) -> list[Bare]:
    """Return the replicas whose volume is there, and no snapshot of it that is theirs.

    Args:
        state: the state folder.
        volumes: all that LVM knows; None: it is asked.

    Raises:
        CommandError: lvs failed.
        FormatError: a record cannot be read.
    """
    records = [one for one in list_records(state) if not is_busy(state, one.id)]
    if not records:
        return []
    volumes = lvm.list_volumes() if volumes is None else volumes
    held = {snapshots.replica_of(one) for one in volumes if lvm_commands.is_ours(one)}
    there = {one.id for one in volumes}
    return [_judge_bare(one) for one in records if one.id not in held and one.source_id in there]


def _judge_bare(record: Record) -> Bare:
    if record.committed:
        return Bare(
            record,
            f"the snapshot that its copy {record.target} holds is gone: 'lvmsync repair {record.source}"
            f" {record.target}' makes a new one",
            is_spare=False,
        )
    if record.head or record.base:
        return Bare(
            record,
            f"a first copy to {record.target} was begun, and what was being sent is gone; the next run begins anew",
            is_spare=False,
        )
    return Bare(record, f"a copy to {record.target} was to be made, and nothing has come of it", is_spare=True)


def forget_bare(state: Path, bare: Bare) -> None:
    """Forget a replica of which nothing has come; nothing is done if something has by now.

    Raises:
        ConflictError: a run works on it.
        CommandError: lvs failed.
    """
    record = bare.record
    with open_record(state, record.source_id, record.source, record.target, record.id) as notebook:
        ours = (snapshots.replica_of(one) for one in lvm.list_volumes() if lvm_commands.is_ours(one))
        if notebook.is_of_nothing and record.id not in ours:
            notebook.forget()


def remove_spare(found: Sequence[Found]) -> list[str]:
    """Remove the snapshots that nothing needs; return what could not be removed, a sentence each."""
    return snapshots.remove(one.volume for one in found if one.is_spare)


def give_up(state: Path, replica: str) -> list[Found]:
    """Remove all snapshots of a replica, and its record, on the user's word that its copy is not kept up any more.

    Args:
        state: the state folder.
        replica: its id.

    Returns:
        The snapshots that were removed.

    Raises:
        UsageError: nothing on this machine has this id.
        ConflictError: a run works on it now, or a snapshot could not be removed.
    """
    record = next((one for one in list_records(state) if one.id == replica), None)
    found = [one for one in find_snapshots(state) if one.replica == replica and _is_of(one, record)]
    if not found and record is None:
        raise UsageError(f"there is no replica '{replica}' here: 'lvmsync cleanup' lists them")
    if record is None:
        with lock_replica(state, replica):
            _remove_all(found)
        return found
    with open_record(state, record.source_id, record.source, record.target, replica) as notebook:
        _remove_all(found)
        notebook.forget()
    return found


def _is_of(one: Found, record: Record | None) -> bool:
    """Tell whether a snapshot goes when its replica is given up; for the way back of a migration there is no record."""
    if record is None:
        return True
    return one.role != "back" and (not one.source or snapshots.source_of(one.volume) == record.source_id)


def _remove_all(found: Sequence[Found]) -> None:
    left = snapshots.remove(one.volume for one in found)
    if left:
        raise ConflictError("; ".join(left))
