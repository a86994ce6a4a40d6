"""Targets that are made for a first copy: volumes and image files, and the note that they hold nothing yet.

By that note the first copy keeps no undo: there is nothing to go back to, and it would be as large as the volume.

A volume has an identity only once it is there, so STATE/making/NAME says before that it is being made. After a crash in
between it counts for a volume with our tag that nobody has written to in this boot; any other keeps its undo.
"""

from __future__ import annotations

import stat
from pathlib import Path

from lvmsync.errors import DeviceError, LvmsyncError
from lvmsync.jobs.headroom import mapped_bytes
from lvmsync.names import Volume
from lvmsync.system import identity, lvm, lvm_commands, seen
from lvmsync.system.device import Device, open_device
from lvmsync.system.ledger import file_name, make_folders, open_ledger, remove_file, replace_file
from lvmsync.system.lvm import LogicalVolume
from lvmsync.targets.block import BlockTarget, open_target

_BY_LVM = 128
"""Sectors of a new volume that LVM itself writes, at the most: it zeroes the first, and wipes signatures."""


def create_volume(name: str, size: int, pool: str | None, state: Path) -> None:
    """Make a volume of LVM as `lvm_commands.create_volume` does, and note that it holds nothing.

    One that a killed run had made, large enough and untouched, is taken.

    Args:
        name: VG/LV.
        size: bytes.
        pool: VG/POOL, for a thin volume.
        state: the state folder.

    Raises:
        LvmsyncError: as there, or the note could not be made; then the volume is removed again.
    """
    making = _making(state, name)
    made = _find_left(name, size, state)
    try:
        if made is None:
            _write(making)
            made = lvm_commands.create_volume(name, size, pool=pool)
        try:
            with open_device(Volume(name).path) as device:
                _note(state, identity.canonical_name(device.name, device.fd), device.fd, device.size)
        except BaseException:
            lvm_commands.remove_volume(made)
            raise
    finally:
        remove_file(making)


def find_left(device: BlockTarget | Device, state: Path) -> LogicalVolume | None:
    """Return a volume by its open device, if a run of ours that was killed had made it, and nobody wrote to it."""
    if not any((state / "making").glob("*")):
        return None
    try:
        volume = _volume_of(device)
        if volume is None or lvm_commands.CREATED_TAG not in volume.tags:
            return None
        is_of_this_boot = _making(state, volume.full_name).read_text().strip() == identity.boot_id()
        return volume if is_of_this_boot and _is_untouched(volume, device) else None
    except (LvmsyncError, OSError, ValueError):  # then it is as any other
        return None


def list_half_made(state: Path) -> list[LogicalVolume]:
    """Return the volumes that are being made just now, or whose maker was killed before it could note what they are.

    Raises:
        CommandError: lvs failed.
    """
    if not any((state / "making").glob("*")):
        return []
    made = [one for one in lvm.list_volumes() if lvm_commands.CREATED_TAG in one.tags and one.number]
    return [one for one in made if _making(state, one.full_name).exists() and _is_new(one)]


def _is_new(volume: LogicalVolume) -> bool:
    try:
        with open_device(Volume(volume.full_name).path) as device:
            return _is_untouched(volume, device)
    except LvmsyncError:
        return False


def create_file(path: str, size: int, state: Path) -> None:
    """Make an image file, and note that it holds nothing; an empty one, as a crash in here leaves it, is taken.

    Raises:
        LvmsyncError: it is there already, or cannot be made.
    """
    with open_target(path, create=not _is_empty(path)) as target:
        try:
            target.resize(size)
            target.sync()
            _note(state, target.canonical, target.fd, size)
        except BaseException:
            target.remove()
            raise


def _find_left(name: str, size: int, state: Path) -> LogicalVolume | None:
    path = Volume(name).path
    if not Path(path).exists():
        return None
    with open_target(path) as target:
        return find_left(target, state) if target.size >= size else None


def _volume_of(device: BlockTarget | Device) -> LogicalVolume | None:
    ids = lvm.parse_dm_uuid(identity.find_dm_uuid(device.name))
    return lvm.find_volume_by_id(ids[0]) if ids and not ids[1] else None


def _is_untouched(volume: LogicalVolume, device: BlockTarget | Device) -> bool:
    """Tell whether nothing was written to a volume since it was set up, in this boot, by LVM."""
    if volume.is_thin:
        return volume.data_percent == 0 and mapped_bytes(device.number) == 0  # the one is rounded
    look = seen.look(device.fd)
    return look is not None and int(look["sectors written"]) <= _BY_LVM


def _making(state: Path, name: str) -> Path:
    return state / "making" / file_name(name)


def _write(making: Path) -> None:
    try:
        make_folders(making.parent)
        replace_file(making, identity.boot_id())
    except OSError as error:
        raise DeviceError(f"cannot write {making}: {error.strerror}", device=str(making)) from error


def _is_empty(path: str) -> bool:
    try:
        state = Path(path).lstat()
    except OSError:
        return False
    return stat.S_ISREG(state.st_mode) and state.st_size == 0


def _note(state: Path, name: str, fd: int, size: int) -> None:
    with open_ledger(state, name, identity.identify(fd), size) as ledger:
        look = seen.look_when_settled(fd)
        ledger.write(made=True, seen=look, point=None, held=None, transaction=None, dirty=False, traces=(), group=None)
        ledger.sweep()
