"""What an image is before it is filled, and what has to be done. Looking changes nothing.

The point that an image is at is the newest of our snapshots: ``import-diff`` makes it behind the last byte, so it is
the commit. What is written to the image itself (its head) is not in it. A mark on it says that we are filling it:
what the head holds besides is ours then, and the snapshot before it is gone back to. Without the mark it is somebody
else's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lvmsync.errors import ConflictError, DeviceError, UsageError
from lvmsync.images import OWN, RbdImage, point_id, snapshot_name
from lvmsync.sources.source import Source
from lvmsync.system import rbd
from lvmsync.system.rbd import ImageState, Snap

MARK = "lvmsync.filling"
"""The key of the mark; its value is the name of the snapshot that is to come."""
MADE = "lvmsync.made"
"""The key of what tells our newest snapshot from another one of its name: its number, and the name."""


@dataclass(frozen=True)
class Found:
    """An image as it is.

    Attributes:
        state: its size and snapshots; None: it is not there.
        mark: name of the snapshot that a run was making; None: no run was cut off.
        is_clean: whether its head holds what the newest of our snapshots does; without one, whether it is empty.
        users: who has it open; None: nobody.
        made: the value of `MADE`; None: no run of ours has ended.
    """

    state: ImageState | None = None
    mark: str | None = None
    is_clean: bool = True
    users: str | None = None
    made: str | None = None

    @property
    def own(self) -> tuple[Snap, ...]:
        """Our snapshots, oldest first."""
        return tuple(snap for snap in self.state.snaps if snap.name.startswith(OWN)) if self.state else ()

    @property
    def newest(self) -> Snap | None:
        """The snapshot that the image is at."""
        return self.own[-1] if self.own else None

    @property
    def forged(self) -> Snap | None:
        """The newest of our snapshots, if somebody has removed ours and made another one of its name."""
        newest = self.newest
        if newest is None or self.mark == newest.name or self.made is None:
            return None
        number, _, name = self.made.partition(" ")
        return newest if name == newest.name and number != str(newest.id) else None


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        name: of the snapshot that the image will be at.
        creates: the image is made.
        is_blank: it reads as zeros everywhere, so that zeros need not be written.
        base: the snapshot that the diff starts from; None: a full copy.
        rolls_back: the head is brought back to ``base`` first.
        is_there: nothing is to be done: the image is at that point.
        notes: what the user should know.
    """

    name: str
    creates: bool = False
    is_blank: bool = False
    base: Snap | None = None
    rolls_back: bool = False
    is_there: bool = False
    notes: tuple[str, ...] = ()


def look(image: RbdImage) -> Found:
    """Return what an image is.

    Raises:
        LvmsyncError: it cannot be found out.
    """
    state = rbd.look_up(image)
    if state is None:
        return Found()
    users = rbd.find_users(image)  # first: our own looking is not to be found
    found = Found(state, rbd.read_mark(image, MARK), users=users, made=rbd.read_mark(image, MADE))
    newest = found.newest
    is_same_size = newest is None or newest.size == state.size
    # Of whole objects: more may be told than was changed, but never less. None is proof.
    is_clean = (
        is_same_size and rbd.list_extents(image, None, newest.name if newest else None, whole_objects=True).is_empty
    )
    return replace(found, is_clean=is_clean)


def made_value(snap: Snap) -> str:
    """Return the value of `MADE` for a snapshot."""
    return f"{snap.id} {snap.name}"


def choose(image: RbdImage, found: Found, source: Source, *, may_create: bool, ignore_base: bool) -> Plan:
    """Decide what is to be done.

    Args:
        image: the target.
        found: what it is.
        source: what is to be sent; its head has an id.
        may_create: an image that is not there is made.
        ignore_base: the user's word that what somebody else wrote to it may be lost.

    Raises:
        DeviceError: it is not there, too large, or in use.
        ConflictError: it is not at the point that the changes start from, or holds what would be lost.
        UsageError: the source does not say where its changes start.
    """
    assert source.head is not None
    name, newest = snapshot_name(source.head.id), found.newest
    if not source.is_full and source.base is None:
        raise UsageError(
            f"the source does not say which state it starts from, so its changes cannot be sent to {image}: use"
            " full:DEVICE"
        )
    if found.state is None:
        if not source.is_full:
            raise ConflictError(
                f"there is no image {image} that the changes could go on: send it whole with full:DEVICE"
            )
        if not may_create:
            raise DeviceError(f"there is no image {image}; make it, or give --create", device=str(image))
        return Plan(name, creates=True, is_blank=True)
    if found.users:
        raise DeviceError(
            f"{image} is in use: {found.users}; nothing was changed. Stop what uses it, or unmap it there",
            device=str(image),
        )
    if found.forged and not (source.is_full and ignore_base):
        raise ConflictError(
            f"{image}: the snapshot {found.forged.name} is not the one that lvmsync made: that was removed, and another"
            " one made under its name, so what the image holds is not known; send it whole with full:DEVICE and"
            " --ignore-base",
            device=str(image),
        )
    size = newest.size if newest and found.mark else found.state.size  # a run that was cut off may have made it larger
    if size > source.size:
        raise DeviceError(
            f"{image} has {size} bytes and {source.name} has {source.size}: it is not made smaller. If it is the right"
            f" one, 'rbd resize --allow-shrink --size {source.size}B {image.spec}' does that",
            device=str(image),
        )
    if newest and newest.name == name and not found.forged and (found.is_clean or found.mark):
        return Plan(name, base=newest, rolls_back=not found.is_clean, is_there=True)
    if found.state.find(name):
        raise ConflictError(f"{image} was at that state before ({name}), and has gone on from there", device=str(image))
    if not found.is_clean and not found.mark and not ignore_base:
        since = f"was written to after {newest.name}" if newest else "holds data that lvmsync did not write"
        raise ConflictError(
            f"{image} {since}, and that would be lost; if it may be, give --ignore-base", device=str(image)
        )
    notes = _notes(image, found)
    if source.is_full:
        return Plan(name, is_blank=found.is_clean and newest is None, notes=notes)
    base = source.base
    assert base is not None
    if newest is None or newest.name != snapshot_name(base.id):
        at = f"is at {point_id(newest.name) or newest.name}" if newest else "was never filled by lvmsync"
        raise ConflictError(
            f"{image} {at}, and the changes start from {base.id}: send it whole with full:DEVICE, and go on from there",
            device=str(image),
        )
    return Plan(name, base=newest, rolls_back=not found.is_clean, notes=notes)


def _notes(image: RbdImage, found: Found) -> tuple[str, ...]:
    if found.is_clean or not found.newest:
        return ()
    why = "an earlier run was cut off" if found.mark else "what was written to it since is lost, as --ignore-base says"
    return (f"{image} was brought back to {found.newest.name} first: {why}",)
