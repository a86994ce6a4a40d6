"""A volume here and its target, locked for the time of a run; and its snapshots, found by tags and LVM ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.itself import refuse_itself, refuse_kin
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.record import Notebook, open_record
from lvmsync.jobs.standing import Unfinished
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.lvm_commands import replica_tag


class Replica:
    """A volume here and its target, locked; made by `open_replica`.

    Attributes:
        notebook: what is remembered of it.
        target: VG/LV or path, on the agent's machine.
        found: the target's unfinished transaction, as it was found.
    """

    def __init__(self, notebook: Notebook, target: str, found: Unfinished | None = None) -> None:
        self.notebook = notebook
        self.target = target
        self.found = found

    @property
    def id(self) -> str:
        """What its snapshots are tagged with."""
        return self.notebook.record.id

    def find_volume(self, told: Iterable[LogicalVolume] | None = None) -> LogicalVolume:
        """Return the source as it is now: by its LVM id, whatever it is called.

        Args:
            told: what LVM told of all volumes just now; None: it is asked.

        Raises:
            DeviceError: it is gone, or not active.
        """
        record = self.notebook.record
        volume = lvm.find_volume_by_id(record.source_id, lvm.list_volumes() if told is None else told)
        if volume is None:
            raise DeviceError(f"{record.source} is gone", device=record.source)
        if volume.number is None:
            raise DeviceError(
                f"{volume.full_name} is not active; run 'lvchange -ay {volume.full_name}'", device=volume.full_name
            )
        return volume

    def list_snapshots(self, told: Iterable[LogicalVolume] | None = None) -> list[LogicalVolume]:
        """Return its snapshots, oldest first.

        Args:
            told: what LVM told just now, and not before the replica was locked; None: it is asked.
        """
        told = lvm.list_volumes() if told is None else list(told)
        return snapshots.list_kept(self.find_volume(told), self.id, told)

    def require_alone(self, told: Iterable[LogicalVolume] | None = None) -> None:
        """Refuse a volume that is kept at one moment with others: brought up to date alone it would be at another one.

        Args:
            told: as of `list_snapshots`.

        Raises:
            ConflictError: it is.
        """
        for one, group in self._list_grouped(told):
            record = self.notebook.record
            raise ConflictError(
                f"{record.target} is kept at one moment with other volumes, as group '{group}': run 'lvmsync sync"
                f" --group {group}' with all of them, or take it out of the group with 'lvchange --deltag"
                f" {snapshots.GROUP_TAG}{group} {one.full_name}'",
                device=record.source,
            )

    def find_groups(self) -> list[str]:
        """Return the names of the groups with which the target is kept at one moment: one, or none."""
        return [group for _, group in self._list_grouped(None)]

    def _list_grouped(self, told: Iterable[LogicalVolume] | None) -> list[tuple[LogicalVolume, str]]:
        """Return the bases that belong to a group, and its name."""
        bases = [one for one in self.list_snapshots(told) if snapshots.role_of(one) == snapshots.BASE]
        return [(one, group) for one in bases if (group := snapshots.group_of(one))]

    def promote(self, head: LogicalVolume, kept: Iterable[LogicalVolume], identity: dict[str, str] | None) -> list[str]:
        """Make a head that the target holds the base, and remove what was there before.

        Args:
            head: the snapshot.
            kept: all snapshots of the replica.
            identity: of the target; None: not known.

        Returns:
            What the user should know, a sentence each.
        """
        notebook = self.notebook
        old = [one for one in kept if one.id != head.id and snapshots.role_of(one) in ("base", "head")]
        snapshots.promote(head)
        look = notebook.record.head_look if notebook.record.head == head.id else None
        notebook.write(
            base=head.id,
            base_look=look,
            head=None,
            head_look=None,
            identity=identity or notebook.record.identity,
            committed=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return snapshots.remove(old)


@contextmanager
def open_replica(
    agent: Agent,
    volume: LogicalVolume,
    target: str,
    place: str,
    state: Path,
    *,
    is_dry: bool = False,
    told: Sequence[LogicalVolume] | None = None,
) -> Iterator[Replica]:
    """Find the replica of a volume and a target by its snapshots or by what is remembered, and lock it.

    Args:
        agent: on the target's machine.
        volume: the source.
        target: VG/LV or path there.
        place: the target as its user named it, host and all.
        state: the state folder of this machine.
        is_dry: nothing is to be remembered.
        told: what LVM told of the volume's group a moment ago; None: it is asked. It is only good for finding the
            replica: what is there once that is locked, it does not tell.

    Raises:
        UsageError: the target is the volume itself, or one of the two is a snapshot of the other.
        ConflictError: another run works on it.
        FormatError: its record cannot be read.
    """
    standing = agent.standing(target)
    refuse_itself([(volume.id, volume.full_name)], standing, place)
    points = snapshots.points_of(standing)
    found = None if told is None else snapshots.find_replica(volume, points, told)
    if told is None or (points and not found):  # a run that has ended meanwhile has made what holds it, perhaps
        told = lvm.list_volumes(volume.group)
        found = snapshots.find_replica(volume, points, told)
    refuse_kin(volume, told, standing, place)
    with open_record(state, volume.id, volume.full_name, place, found, is_dry=is_dry) as notebook:
        try:
            yield Replica(notebook, target, standing.transaction)
        finally:
            if notebook.is_of_nothing and not is_dry:
                _forget(notebook, volume)


def _forget(notebook: Notebook, volume: LogicalVolume) -> None:
    """Remove the record of a copy that never was, since the run was refused, unless a killed run has left a head."""
    with suppress(LvmsyncError):  # a record too many does no harm
        if not any(replica_tag(notebook.record.id) in one.tags for one in lvm_commands.list_ours(volume.group)):
            notebook.forget()
