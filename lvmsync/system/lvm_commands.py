"""What lvmsync changes in LVM: snapshots of its own, tags, volumes that it was asked to make.

One command at a time (a lock of ours), each to its end: a signal waits, and a command that takes too long is left
to run, since a killed lvcreate may leave an origin suspended. What is removed or tagged is named by its LVM id in
the very command, so that another volume which has got the name meanwhile is not touched.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lvmsync.errors import CommandError, ConflictError, DeviceError, UsageError
from lvmsync.system import lvm, lvm_lock
from lvmsync.system.command import run_to_end
from lvmsync.system.lvm import Group, LogicalVolume
from lvmsync.system.lvm_made import find_made
from lvmsync.system.snapshot_advice import advise_snapshot, require_room, round_up
from lvmsync.system.suspend import is_suspended

TAG = "lvmsync"
"""What every snapshot of ours carries."""

CREATED_TAG = "lvmsync.created"
"""What a volume carries that was made by `create_volume`, until its maker takes the tag off."""

MOUNT_TAG = f"{TAG}.mount="
"""What the tag of a mirror's snapshot begins with that is below a past state which is mounted; its id follows."""

TRIES, WAIT = 3, 0.2
"""How often, and how many seconds apart, a command is tried whose device is open: udev opens devices for a moment.

lvremove itself tries for 5 s (``activation/retry_deactivation``).
"""

_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.\-/=!:&#]{0,1023}")
_CHANGED = re.compile(r"^ *Logical volume \S+ changed\.?$", re.MULTILINE)
_REMOVED = re.compile(r"^ *Logical volume \S+ successfully removed\.?$", re.MULTILINE)
"""What lvchange and lvremove print of a volume that they were given by its id, and have found, and are done with.

Source: LVM2 v2.03.16, tools/lvchange.c (after the commit), lib/metadata/lv_manip.c. Where it is not printed (``silent``
in lvm.conf), or in other words, LVM is asked.
"""
_BUSY = re.compile(r"in use|busy|open failed|can't get lock|cannot get lock|unable to deactivate", re.IGNORECASE)


def replica_tag(replica: str) -> str:
    """Return the tag of all snapshots of one replica."""
    return f"{TAG}.replica={replica}"


def role_tag(role: str) -> str:
    """Return the tag that says what a snapshot is for: base, head or back."""
    return f"{TAG}.role={role}"


def id_tag(volume_id: str) -> str:
    """Return the tag that only the volume with this id has by right: a copied one tells of another volume."""
    return f"{TAG}.id={volume_id}"


def origin_tag(volume_id: str) -> str:
    """Return the tag that says which volume a snapshot was taken of."""
    return f"{TAG}.origin={volume_id}"


def is_ours(volume: LogicalVolume) -> bool:
    """Tell whether a volume is a snapshot with our tag, and read-only as ours are: tags are copied easily.

    One of ours that somebody made writable may hold anything since, so it is of no use to us either. LVM forgets of
    which volume a thin one was taken when that is removed, or rolled back by a merge: then `id_tag` proves it.
    """
    if TAG not in volume.tags or volume.attr[1:2] == "w":
        return False
    return "snapshot" in volume.role or (volume.is_thin and id_tag(volume.id) in volume.tags)


def is_of_mount(volume: LogicalVolume) -> bool:
    """Tell whether a snapshot was taken for a past state that is mounted, and so is no replica's."""
    return any(tag.startswith(MOUNT_TAG) for tag in volume.tags)


def is_stray(volume: LogicalVolume) -> bool:
    """Tell whether a volume has our tag, and may be a thin snapshot of ours whose volume LVM has forgotten."""
    is_tagged = TAG in volume.tags and any(tag.startswith(role_tag("")) for tag in volume.tags)
    has_lost = volume.is_thin and "snapshot" not in volume.role
    return is_tagged and has_lost and volume.attr[1:2] != "w" and not is_ours(volume)


def is_taken_of(snapshot: LogicalVolume, volume: LogicalVolume) -> bool:
    """Tell whether a snapshot of ours was taken of a volume, if need be by its tag; then both are in one pool still."""
    if snapshot.origin_id:
        return snapshot.origin_id == volume.id
    return bool(volume.pool_id) and snapshot.pool_id == volume.pool_id and origin_tag(volume.id) in snapshot.tags


def list_ours(group: str | None = None) -> list[LogicalVolume]:
    """Return all snapshots that carry our tag, of one volume group or of all.

    Raises:
        CommandError: lvs failed, or there is no such group.
    """
    return [volume for volume in lvm.list_volumes(group) if is_ours(volume)]


def take_snapshot(
    volume: LogicalVolume,
    name: str,
    *,
    tags: Iterable[str],
    size: int | None = None,
    chunk: int | None = None,
    told: Sequence[LogicalVolume] | None = None,
    group: Group | None = None,
    active: bool = False,
) -> LogicalVolume:
    """Take a read-only snapshot of a volume, tagged as ours in the same step.

    A thin volume gets a thin snapshot, which is left inactive; another volume gets a classic one, which is active.

    Args:
        volume: of which.
        name: of the snapshot, in the same group.
        tags: besides `TAG`.
        size: bytes of a classic snapshot's store; None: as `advise_snapshot` says. LVM makes it no larger than needed.
        chunk: bytes that a classic snapshot keeps at a time, a power of two from 4 KiB to 512 KiB; None: advised.
        told: what LVM told of the group's volumes just now; None: it is asked.
        group: what it told of the group itself; None: it is asked.
        active: whether a thin one is made active.

    Raises:
        UsageError: a name or tag that LVM does not take.
        ConflictError: there is a volume of that name already.
        DeviceError: the volume group has too little room, or the volume is suspended.
        CommandError: lvcreate failed; nothing was made.
    """
    argv = snapshot_command(volume, name, tags=tags, size=size, chunk=chunk, group=group, active=active)
    require_going_on(volume)
    full_name, marks = f"{volume.group}/{name}", {TAG, *tags}
    with lvm_lock.lvm_locked():
        _create(argv, full_name, marks, told)
        return find_made(volume, name, marks) or lvm.find_volume(full_name)


def leave_snapshot(
    volume: LogicalVolume, name: str, *, tags: Iterable[str], told: Sequence[LogicalVolume] | None = None
) -> LogicalVolume | None:
    """Take a snapshot as `take_snapshot` does, for later: where only LVM can tell what was made, it is not asked.

    Returns:
        The snapshot; None if it was taken, and `list_ours` will tell of it.
    """
    argv = snapshot_command(volume, name, tags=tags, group=volume.room if told is not None else None)
    require_going_on(volume)
    with lvm_lock.lvm_locked():
        _create(argv, f"{volume.group}/{name}", {TAG, *tags}, told)
        return find_made(volume, name, {TAG, *tags})


def require_going_on(volume: LogicalVolume) -> None:
    """Raise if a volume is suspended: of a thin one LVM then makes a snapshot that its pool knows nothing of.

    Raises:
        DeviceError: it is.
    """
    if volume.number and is_suspended(volume.number):
        raise DeviceError(
            f"{volume.full_name} is suspended by another program, or by one that was killed; see 'lvmsync cleanup', or"
            f" run 'dmsetup resume -j {volume.number[0]} -m {volume.number[1]}'",
            device=volume.full_name,
        )


def snapshot_command(
    volume: LogicalVolume,
    name: str,
    *,
    tags: Iterable[str],
    size: int | None = None,
    chunk: int | None = None,
    group: Group | None = None,
    active: bool = False,
) -> list[str]:
    """Return the command of `take_snapshot`; errors as there, and none of lvcreate's."""
    argv = ["lvcreate", "-y", "-s", "-pr", "-n", _checked(name, _NAME, "name")]
    for tag in sorted({TAG, *tags}):
        argv += ["--addtag", _checked(tag, _TAG, "tag")]
    if volume.is_thin:
        return [*argv, "-ky", *(("-ay", "-K") if active else ()), volume.full_name]
    if size is None or chunk is None:
        advice = advise_snapshot(volume, size=size, chunk=chunk, group=group)
        size, chunk = advice.size, advice.chunk
    return [*argv, "-c", f"{chunk}b", "-L", f"{round_up(size, 512)}b", volume.full_name]


def remove_snapshot(volume: LogicalVolume) -> None:
    """Remove a snapshot of ours; one that is gone already is no error.

    Raises:
        ConflictError: it is not ours, or no snapshot.
        CommandError: lvremove failed, or the snapshot stayed in use.
    """
    if not is_ours(volume):
        raise ConflictError(
            f"{volume.full_name} is not a read-only snapshot with the tag '{TAG}', so lvmsync does not remove it",
            device=volume.full_name,
        )
    _remove(volume, TAG)


def remove_held(snapshot: LogicalVolume) -> None:
    """Remove a snapshot of ours as `remove_snapshot` does, by a caller that has `lvm_lock.lvm_locked`."""
    _run_remove(snapshot, TAG)


def change_tags(volume: LogicalVolume, add: Iterable[str] = (), drop: Iterable[str] = ()) -> LogicalVolume:
    """Add and take off tags in one step, which a crash leaves undone or done; return the volume with its new tags.

    Raises:
        UsageError: a tag that LVM does not take.
        DeviceError: the volume is gone.
        CommandError: lvchange failed.
    """
    added, dropped = {_checked(tag, _TAG, "tag") for tag in add}, {_checked(tag, _TAG, "tag") for tag in drop}
    words = [word for tag in sorted(added) for word in ("--addtag", tag)]
    words += [word for tag in sorted(dropped - added) for word in ("--deltag", tag)]
    if words:
        printed = lvm_lock.change(["lvchange", "-y", *words, "-S", _with_id(volume), volume.full_name])
        if _CHANGED.search(printed):
            return replace(volume, tags=(volume.tags - dropped) | added)
    found = lvm.find_volume_by_id(volume.id)
    if found is None or not added <= found.tags or (dropped - added) & found.tags:
        what = "is gone" if found is None else f"has the tags {', '.join(sorted(found.tags)) or '(none)'} now"
        raise DeviceError(
            f"{volume.full_name} was not tagged as wanted: it {what}; another program changes it at the same time",
            device=volume.full_name,
        )
    return found


def create_volume(name: str, size: int, *, pool: str | None = None) -> LogicalVolume:
    """Make a volume, tagged with `CREATED_TAG`; LVM rounds its size up to whole extents.

    Args:
        name: ``VG/LV``.
        size: bytes.
        pool: ``VG/POOL`` or the pool's name, for a thin volume; None: a linear one.

    Raises:
        UsageError: a name that LVM does not take.
        ConflictError: there is a volume of that name already.
        DeviceError: the volume group has too little room, or the pool does not zero its blocks.
        CommandError: lvcreate failed; nothing was made.
    """
    group, _, short = name.partition("/")
    argv = ["lvcreate", "-y", "-n", _checked(short, _NAME, "name"), "--addtag", CREATED_TAG]
    if pool is None:
        require_room(_checked(group, _NAME, "group"), size, f"the volume '{short}'")
        argv += ["-L", f"{round_up(size, 512)}b", group]
    else:
        in_group, _, pool_name = pool.rpartition("/")
        if in_group not in ("", group):
            raise UsageError(f"the pool {pool} is not in the group of {name}; name one of '{group}'")
        told = lvm.find_volume(f"{group}/{pool_name}")
        if "pool" in told.layout and told.attr[7:8] != "z":  # of what is no pool, lvcreate says so
            raise not_zeroing(told.full_name)
        argv += ["-V", f"{round_up(size, 512)}b", "--thinpool", f"{group}/{_checked(pool_name, _NAME, 'pool')}"]
    with lvm_lock.lvm_locked():
        _create(argv, name, {CREATED_TAG})
        return lvm.find_volume(name)


def not_zeroing(pool: str) -> DeviceError:
    """Return the refusal of a target in a pool that does not zero what it gives out.

    A write of less than a block then leaves anything in the rest of it, which read as zeros before; no map tells.
    """
    return DeviceError(
        f"thin pool {pool} does not zero its blocks before it gives them out, so next to what is written the copy would"
        " hold what somebody else wrote there once; nothing was written. Run 'lvchange -Zy VG/POOL' for it first",
        device=pool,
    )


def remove_volume(volume: LogicalVolume) -> None:
    """Remove a volume that still carries `CREATED_TAG`; one that is gone already is no error.

    Raises:
        ConflictError: it does not.
        CommandError: lvremove failed, or the volume stayed in use.
    """
    if CREATED_TAG not in volume.tags:
        raise ConflictError(
            f"{volume.full_name} has no tag '{CREATED_TAG}', so lvmsync does not remove it", device=volume.full_name
        )
    _remove(volume, CREATED_TAG)


def extend_volume(volume: LogicalVolume, by: int) -> LogicalVolume:
    """Make a volume, or the store of a snapshot, larger by ``by`` bytes at least; return it as it is then.

    LVM makes a store no larger than what its origin can ever need.

    Raises:
        DeviceError: the volume group has too little room, or the volume is gone.
        CommandError: lvextend failed, or the store is as large as it can be.
    """
    require_room(volume.group, by, f"more of {volume.full_name}")
    lvm_lock.change(["lvextend", "-y", "-L", f"+{round_up(by, 512)}b", volume.full_name])
    found = lvm.find_volume_by_id(volume.id)
    if found is None:
        raise DeviceError(f"{volume.full_name} is gone", device=volume.full_name)
    return found


def set_writable(volume: LogicalVolume, *, is_writable: bool) -> None:
    """Let a volume be written to, or not; one that is so already is left alone. It may be in use.

    Raises:
        DeviceError: it is gone, or another program changes it at the same time.
        CommandError: lvchange failed.
    """
    failure: CommandError | None = None
    try:
        words = ["-y", "-prw" if is_writable else "-pr", "-S", _with_id(volume)]
        if _CHANGED.search(lvm_lock.change(["lvchange", *words, volume.full_name])):
            return
    except CommandError as error:  # it is so already, perhaps
        failure = error
    found = lvm.find_volume_by_id(volume.id)
    if found is None:
        raise DeviceError(f"{volume.full_name} is gone", device=volume.full_name)
    if found.attr[1:2] != ("w" if is_writable else "r"):  # R: only this activation is read-only
        wanted = "writable" if is_writable else "read-only"
        raise failure or DeviceError(f"{volume.full_name} did not become {wanted}", device=volume.full_name)


def set_active(volume: LogicalVolume, *, is_active: bool) -> None:
    """Activate or deactivate a volume, with its classic snapshots.

    Raises:
        CommandError: lvchange failed: it is in use, say.
    """
    words = ["-ay", "-K"] if is_active else ["-an"]
    lvm_lock.change(["lvchange", "-y", *words, "-S", _with_id(volume), volume.full_name])


def _create(argv: list[str], name: str, tags: Iterable[str], told: Sequence[LogicalVolume] | None = None) -> None:
    """Run lvcreate with the lock held; what it left half made is removed: what was not there in ``told``, or before."""
    before = _find(name, told)
    if before:
        raise ConflictError(f"there is a volume {name} already; choose another name", device=name)
    for tries_left in reversed(range(3)):
        try:
            run_to_end(argv, timeout=lvm_lock.TIMEOUT)
            return
        except CommandError as error:
            # Of that name another run may have made one since LVM was asked: that is not ours to remove.
            rest = None if "already exists" in str(error) else _find(name)
            if rest and set(tags) <= rest.tags:
                _run_remove(rest, next(iter(tags)))
            if not tries_left or not _BUSY.search(str(error)):
                raise
            time.sleep(WAIT)


def _find(name: str, told: Sequence[LogicalVolume] | None = None) -> LogicalVolume | None:
    group = name.partition("/")[0]
    told = lvm.list_volumes(group) if told is None else told
    return next((one for one in told if one.full_name == name), None)


def _remove(volume: LogicalVolume, tag: str) -> None:
    with lvm_lock.lvm_locked():
        _run_remove(volume, tag)


def _run_remove(volume: LogicalVolume, tag: str) -> None:
    """Run lvremove until the volume is gone; the lock is held."""
    for tries_left in reversed(range(TRIES)):
        failure: CommandError | None = None
        try:
            printed = run_to_end(
                ["lvremove", "-y", "-S", f"{_with_id(volume)} && lv_tags={{{tag}}}", volume.full_name],
                timeout=lvm_lock.TIMEOUT,
            )
            if _REMOVED.search(printed):
                return
        except CommandError as error:
            failure = error
        left = lvm.find_volume_by_id(volume.id)
        if left is None:
            return
        if tag not in left.tags:
            raise ConflictError(
                f"{left.full_name} has lost its tag '{tag}' meanwhile, so lvmsync does not remove it",
                device=left.full_name,
            )
        is_renamed = left.full_name != volume.full_name
        if failure and (not tries_left or not (is_renamed or _BUSY.search(str(failure)))):
            raise failure
        volume = left
        time.sleep(WAIT)
    raise CommandError(f"lvremove says that it removed {volume.full_name}, and it is there; try it by hand")


def _with_id(volume: LogicalVolume) -> str:
    """Return the words of LVM's selection that mean this very volume."""
    return f"lv_uuid={lvm.hyphenate(volume.id[32:])} && vg_uuid={lvm.hyphenate(volume.id[:32])}"


def _checked(word: str, grammar: re.Pattern[str], what: str) -> str:
    if not grammar.fullmatch(word) or word in (".", ".."):
        raise UsageError(f"'{word}' is no {what} that LVM takes")
    return word
