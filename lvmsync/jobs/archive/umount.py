"""Taking a past state down that is mounted, or what a crash or a reboot has left of it: only what was made for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import ChangesLost, CommandError, DeviceError, LvmsyncError
from lvmsync.formats.snapshot import parse_status
from lvmsync.jobs.archive.mounted import Mounted, forget, is_busy, list_mounted, lock_mount
from lvmsync.system import dm, lvm, lvm_commands, mounting, past_views
from lvmsync.system.identity import boot_id
from lvmsync.system.ledger import remove_file
from lvmsync.system.mounts import find_mounts_above, list_mounts
from lvmsync.system.users import find_users

FULL = (
    "its store ran full, or could not be written, so the kernel has given it up: what was read or written there since"
    " is not to be trusted; the mirror and the archive are as they were"
)


@dataclass(frozen=True)
class Taken:
    """What was taken down.

    Attributes:
        record: of the mount.
        notes: what the user should know, a sentence each.
    """

    record: Mounted
    notes: list[str]


def choose(state: Path, words: Sequence[str]) -> list[Mounted]:
    """Return the mounts that words mean: devices, directories or archives; without words all.

    Raises:
        DeviceError: a word means none.
        FormatError: a record cannot be read.
    """
    there = list_mounted(state)
    if not words:
        return there
    found: dict[str, Mounted] = {}
    for word in words:
        meant = [one for one in there if _names(one) & {word, str(Path(word).absolute()), str(Path(word).resolve())}]
        if not meant:
            known = ", ".join(map(str, there)) or "none"
            raise DeviceError(f"'{word}': no past state that is mounted there, or of that archive; mounted: {known}")
        found |= {one.id: one for one in meant}
    return list(found.values())


def umount(state: Path, record: Mounted) -> Taken:
    """Take a mount down, and forget it; what is gone already is no error.

    Raises:
        DeviceError: it is in use.
        ConflictError: another run is at it.
        CommandError: something could not be removed.
    """
    with lock_mount(state, record.id):
        return Taken(record, clear(state, record))


def clear(state: Path, record: Mounted) -> list[str]:
    """Do as `umount` for one who has the lock; return what the user should know.

    In the reverse of the order in which they are made, so that what a kill leaves is taken down the next time.
    """
    notes = []
    view = past_views.find(past_views.uuid_of(record.id))
    if view:
        if _is_full(view):
            notes.append(f"{view.path}: {FULL}")
        _unmount(record, view)
        _require_unused(view)
        past_views.remove(view)
    origin = past_views.find(past_views.uuid_of(record.id, past_views.ORIGIN))
    if origin:
        _require_unused(origin)
        past_views.remove(origin)
    if record.is_volume:
        volume = _find_volume(record.store)
        if volume and lvm_commands.CREATED_TAG in volume.tags:
            lvm_commands.remove_volume(volume)
    else:
        remove_file(Path(record.store))
    if record.snapshot:
        snapshot = _find_volume(record.snapshot)
        if snapshot and f"{lvm_commands.MOUNT_TAG}{record.id}" in snapshot.tags:
            lvm_commands.remove_snapshot(snapshot)
    forget(state, record)
    return notes


def is_there(record: Mounted) -> bool:
    """Tell whether the kernel shows a past state, made whole."""
    return record.is_ready and past_views.find(past_views.uuid_of(record.id)) is not None


def find_stale(state: Path) -> list[Mounted]:
    """Return the records of mounts that are no more, or were never made whole, and that no run is at."""
    return [one for one in list_mounted(state) if not is_busy(state, one.id) and not is_there(one)]


def describe_stale(record: Mounted) -> str:
    """Return what is to be said of a mount that is no more."""
    what = f"point #{record.number} of {record.archive}"
    if record.boot != boot_id():
        return f"{what} was mounted there before the machine was started, and its store is left"
    how = "its device is gone" if record.is_ready else "a run that was to mount it was cut off"
    return f"{what}: {how}, and what was made for it is left"


def clear_stale(state: Path, records: Iterable[Mounted]) -> list[str]:
    """Take down what is left of mounts that are no more; return what could not be, a sentence each."""
    left = []
    for record in records:
        try:
            umount(state, record)
        except LvmsyncError as error:
            left.append(str(error))
    return left


def find_trouble(state: Path) -> Iterator[tuple[Mounted, str]]:
    """Yield the mounts that are there and of no use any more, each with the reason."""
    for record in list_mounted(state):
        view = past_views.find(past_views.uuid_of(record.id))
        if not view:
            continue
        if _is_full(view):
            yield record, FULL
        snapshot = _find_volume(record.snapshot) if record.snapshot else None
        if snapshot and snapshot.trouble:
            yield (
                record,
                f"{snapshot.full_name}, the mirror's snapshot below it, is {snapshot.trouble}: its store ran full",
            )


def list_strangers(state: Path) -> list[dm.Mapped]:
    """Return the views that no record tells of: it lay in another state folder, or was lost."""
    known = {past_views.uuid_of(one.id, suffix) for one in list_mounted(state) for suffix in ("", past_views.ORIGIN)}
    return [one for one in past_views.list_views() if one.uuid not in known]


def _names(record: Mounted) -> set[str]:
    names = {record.path, record.name, record.id, record.archive, str(Path(record.archive).absolute())}
    return names | ({record.directory} if record.directory else set())


def _is_full(view: dm.Mapped) -> bool:
    lines = dm.read_status(view)
    try:
        for line in lines:
            if line.kind == "snapshot":
                parse_status(line.text, view.path)
    except ChangesLost:
        return True
    return False


def _unmount(record: Mounted, view: dm.Mapped) -> None:
    ours = [one for one in find_mounts_above(view.number) if one.point == record.directory]
    if record.directory is None or not ours:
        return
    top = [one for one in list_mounts() if one.point == record.directory][-1]
    if top not in ours:
        raise DeviceError(
            f"{top.source} was mounted on {record.directory} later, above {record.path}: unmount that first",
            device=record.path,
        )
    try:
        mounting.unmount(record.directory)
    except CommandError as error:
        users = ", ".join(find_users(view.number))
        raise DeviceError(
            f"{record.directory} is in use{f' by {users}' if users else ''}, so {record.path} was left mounted"
            f" ({error}); end that, and run 'lvmsync archive umount {record.path}' again",
            device=record.path,
        ) from error


def _require_unused(device: dm.Mapped) -> None:
    if dm.wait_until_closed(device.number):
        return
    users = [f"it is mounted on {one.point}" for one in find_mounts_above(device.number)]
    users += [f"{one} has it open" for one in find_users(device.number)]
    with suppress(OSError):
        holders = (dm.SYSFS_BLOCK / f"{device.number[0]}:{device.number[1]}" / "holders").iterdir()
        users += [f"/dev/{one.name} lies on it" for one in holders]
    raise DeviceError(
        f"{device.path} is in use: {', '.join(users) or 'something that cannot be told has it open'}; end that first",
        device=device.path,
    )


def _find_volume(name: str) -> lvm.LogicalVolume | None:
    return next((one for one in lvm.list_volumes() if one.full_name == name), None)
