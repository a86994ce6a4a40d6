"""Snapshots of several volumes at one instant: a write that ended before is in it, and none that came after.

All origins are suspended by `suspend`, so that no write ends from then on, on any of them. Meanwhile:

- A classic snapshot is made by LVM. It finds the origin suspended already, and resumes it with the snapshot above it
  while the others still stand still; so the snapshot shows the origin as it was suspended.
- LVM must not be asked for a thin snapshot of an origin that we have suspended: it then never sends the pool its
  message, and its metadata and the pool's disagree from then on. So LVM makes the snapshot before, inactive, and all
  that is done meanwhile is to let it begin anew: delete its thin device and snapshot the origin's once more, under
  the same number. That takes two messages to the pool, and the pool's transaction id, by which LVM tells whether it
  and the pool agree, is not touched.

Until all is done each snapshot carries `PENDING_TAG`: one that is found with it later is of no use, and to be removed.
A file system that was frozen with fsfreeze is not for this: the kernel refuses to suspend its device, and lvcreate
ends halfway. Devices are suspended with the file systems on them, which does the same.

All this was tried with LVM 2.03.16 on Linux 6.1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, UsageError
from lvmsync.system import dm, lvm, lvm_commands, lvm_lock
from lvmsync.system.command import run_to_end
from lvmsync.system.ledger import state_folder
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.mounts import list_mounts
from lvmsync.system.suspend import LIMIT, suspended

PENDING_TAG = f"{lvm_commands.TAG}.pending"
"""What a snapshot carries until all of its cut are there."""


@dataclass(frozen=True)
class Order:
    """One snapshot that is wanted; see `lvm_commands.take_snapshot`."""

    volume: LogicalVolume
    name: str
    tags: frozenset[str] = frozenset()
    size: int | None = None
    chunk: int | None = None


def cut_together(
    orders: Sequence[Order],
    *,
    limit: float = LIMIT,
    around: AbstractContextManager[object] | None = None,
    tell_still: Callable[[float], None] = lambda seconds: None,
) -> list[LogicalVolume]:
    """Take snapshots of several volumes at one instant; file systems on them are frozen meanwhile, and so whole.

    Args:
        orders: one for each volume.
        limit: seconds that the volumes stand still at most.
        around: entered right before they are suspended, and left when they go on: it freezes what lies on them.
        tell_still: told for how many seconds they did.

    Returns:
        The snapshots, in the order of ``orders``; all of them, or none was made.

    Raises:
        UsageError: the same volume twice, or one that lvmsync or LVM itself needs to run.
        ConflictError: there is a volume of such a name already.
        DeviceError: a volume is not active or suspended already, a group has too little room, or the limit was over
            before all was done.
        CommandError: lvcreate failed.
    """
    numbers = [_number(one.volume) for one in orders]
    if len(set(numbers)) < len(numbers):
        raise UsageError("a volume is named twice; name each once")
    _require_not_needed(orders)
    for one in orders:
        lvm_commands.require_going_on(one.volume)
    commands = [(one, _command(one)) for one in orders]
    with lvm_lock.lvm_locked():
        _require_free_names(orders)
        try:
            for order, command in commands:
                if order.volume.is_thin:
                    run_to_end(command, timeout=lvm_lock.TIMEOUT)
            ready = [order for order in orders if order.volume.is_thin]
            thin = [(order, snapshot, _pool_of(order)) for order, snapshot in zip(ready, _find(ready), strict=True)]
            began = time.monotonic()
            with around or nullcontext(), suspended(numbers, limit=limit):
                for order, snapshot, pool in thin:
                    dm.send_message(pool, f"delete {snapshot.thin_id}")
                    dm.send_message(pool, f"create_snap {snapshot.thin_id} {order.volume.thin_id}")
                for order, command in commands:
                    if not order.volume.is_thin:
                        run_to_end(command, timeout=lvm_lock.TIMEOUT)
            tell_still(time.monotonic() - began)
            found = _find(orders)
        except BaseException as error:
            _remove_made(orders, error)
            raise
    return [lvm_commands.change_tags(one, drop=[PENDING_TAG]) for one in found]


def _command(order: Order) -> list[str]:
    tags = {*order.tags, PENDING_TAG}
    words = lvm_commands.snapshot_command(order.volume, order.name, tags=tags, size=order.size, chunk=order.chunk)
    # -An: LVM keeps no copy of its metadata under /etc, which may be on a volume that stands still.
    return [words[0], "-An", *words[1:]]


def _pool_of(order: Order) -> dm.Mapped:
    for device in dm.list_devices():
        if lvm.parse_dm_uuid(device.uuid) == (order.volume.pool_id, "-tpool"):
            return device
    raise DeviceError(f"the pool of {order.volume.full_name} is not active", device=order.volume.full_name)


def _number(volume: LogicalVolume) -> dm.Number:
    if volume.number is None:
        raise DeviceError(f"{volume.full_name} is not active; run 'lvchange -ay {volume.full_name}'")
    return volume.number


def _require_free_names(orders: Iterable[Order]) -> None:
    for group in {one.volume.group for one in orders}:
        taken = {volume.name for volume in lvm.list_volumes(group)}
        for one in orders:
            if one.volume.group == group and one.name in taken:
                name = f"{group}/{one.name}"
                raise ConflictError(f"there is a volume {name} already; choose another name", device=name)


def _require_not_needed(orders: Sequence[Order]) -> None:
    """Raise if a program could not be started, or a lock not be taken, while these volumes stand still."""
    needed = [Path(path).resolve() for path in ("/", "/usr", "/etc", sys.prefix, state_folder(), __file__)]
    mounts = list_mounts()
    by_number = {one.volume.number: one.volume for one in orders}
    for path in needed:
        around = [mount for mount in mounts if path.is_relative_to(mount.point)]
        mount = max(around, key=lambda one: len(one.point), default=None)
        below = _below(mount.number) if mount else set()
        volume = next((by_number[number] for number in below if number in by_number), None)
        if volume and mount:
            raise UsageError(
                f"{volume.full_name} holds {mount.point}, which lvmsync and LVM need while they take snapshots"
                " together; sync that volume by itself",
                device=volume.full_name,
            )


def _below(number: dm.Number) -> set[dm.Number]:
    """Return a device and all that it lies on."""
    found, open_ = set(), [number]
    while open_:
        one = open_.pop()
        if one not in found:
            found.add(one)
            open_ += dm.list_below(one)
    return found


def _find(orders: Sequence[Order]) -> list[LogicalVolume]:
    """Return the snapshots as they are now, by one call of lvs for each group."""
    told = {group: lvm.list_volumes(group) for group in {one.volume.group for one in orders}}
    made = [lvm.find_volume(f"{one.volume.group}/{one.name}", told[one.volume.group]) for one in orders]
    for one in made:
        if not one.is_thin:
            lvm.require_usable_snapshot(one)
        elif one.number is not None:
            raise DeviceError(f"{one.full_name} was activated meanwhile; does another program do so?")
    return made


def _remove_made(orders: Iterable[Order], error: BaseException) -> None:
    """Remove those that were made; what is in the way is said with the error."""
    for one in orders:
        try:
            for volume in lvm.list_volumes(one.volume.group):
                is_new = volume.name == one.name and volume.origin_id == one.volume.id
                if is_new and {lvm_commands.TAG, *one.tags} <= volume.tags:
                    lvm_commands.remove_held(volume)
        except LvmsyncError as failure:
            error.add_note(f"{one.volume.group}/{one.name} could not be removed ({failure}): see 'lvmsync cleanup'")
