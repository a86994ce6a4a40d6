"""The difference storage of a snapshot of blksnap: where the module saves what is overwritten while it is held.

v7 and up are given a folder, a file or a spare device and take what they need, up to a limit. v1 is given
ranges of sectors of a block device: those of a spare one, or those that a file of ours takes on its device.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvmsync.errors import DeviceError, UsageError
from lvmsync.formats.blksnap_abi import SECTOR, Abi
from lvmsync.jobs.blksnap_place import find_file_device, is_in_use, require_apart, require_no_target
from lvmsync.jobs.blksnap_spares import is_as_left, is_blank
from lvmsync.names import parse_volume
from lvmsync.system.blksnap import Control, DeviceName, name_device
from lvmsync.system.device import open_device, opening_failed
from lvmsync.system.fiemap import DEVICE_KINDS, find_file_extents
from lvmsync.system.ioctl import is_realtime, set_immutable
from lvmsync.system.mounts import list_mounts

LEAST = 16 << 20
"""Bytes that a difference storage must have."""
SHARE = 10
"""Of the devices, so much percent is taken where no limit is given."""
PORTION = 64 << 20
"""Bytes that v1 is given at a time, at the least."""
_SKIPPED = 1 << 20  # of a spare device: so that what begins there, a label or a superblock, survives a mistake


@dataclass(frozen=True)
class Room:
    """Where the difference storage is to be.

    Attributes:
        word: path of a folder or a spare device.
        limit: bytes that may be taken; None: a share of the devices.
        overwrite: whether a spare device may be overwritten that holds something.
    """

    word: str
    limit: int | None
    overwrite: bool = False


@dataclass
class Storage:
    """Room for a snapshot.

    Attributes:
        path: what v7 and up are told; None on v1.
        limit: bytes that may be taken.
        device: where the ranges of v1 are.
        left: of those, what was not given yet: offset and length in bytes.
        file: that is made for it by `prepare`, and to be removed with the snapshot; None: there is none.
        given: bytes that v1 was given.
        spare: the spare device, if it is one.
    """

    path: str | None
    limit: int
    device: DeviceName | None = None
    left: list[tuple[int, int]] = field(default_factory=list)
    file: str | None = None
    given: int = 0
    spare: DeviceName | None = None

    def prepare(self) -> None:
        """Make the file that gives v1 its room, if there is to be one; it was noted before.

        Raises:
            DeviceError: there is no room, or the file system does not tell where the file lies.
        """
        if self.file is not None:
            self.left = _make_file(Path(self.file), self.limit)

    def append(self, control: Control, snapshot: str, wanted: int) -> int:
        """Give a snapshot of v1 more room, and return how many bytes it was: fewer than wanted at the end."""
        ranges: list[tuple[int, int]] = []
        missing = max(wanted, PORTION)
        while self.left and missing > 0:
            offset, length = self.left.pop(0)
            piece = min(length, -(-missing // SECTOR) * SECTOR)
            ranges.append((offset, piece))
            missing -= piece
            if piece < length:
                self.left.insert(0, (offset + piece, length - piece))
        if not ranges:
            return 0
        assert self.device is not None
        control.append_storage(snapshot, self.device, ranges)
        got = sum(length for _, length in ranges)
        self.given += got
        return got


def choose_storage(
    abi: Abi, room: Room, devices: Sequence[DeviceName], state: Path, targets: Sequence[str] = ()
) -> Storage:
    """Return the storage that a user names; on v1 a file is made for it.

    Args:
        abi: of the module.
        room: what the user said.
        devices: to be held.
        state: the state folder, which remembers spare devices that were used.
        targets: paths of the targets on this machine.

    Raises:
        UsageError: neither a folder nor a device, a limit that is too small, or it is a target.
        DeviceError: it lies on what is to be held, is in use, or has not enough room.
    """
    word, limit = room.word, room.limit
    if limit is not None and limit < LEAST:
        raise UsageError(f"--limit {limit}: a difference storage has {LEAST} bytes at the least")
    path = os.path.realpath(parse_volume(word).path)
    try:
        found = Path(path).stat()
    except OSError as error:
        raise opening_failed(path, error) from error
    if stat.S_ISBLK(found.st_mode):
        device = name_device(path)
        require_apart(device.number, devices, device.path)
        require_no_target(device, targets)
        return _choose_device(abi, device, room, state)
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(
            f"--storage {word}: name a folder, in which room is taken, or a spare block device; not a file, which would"
            " be overwritten"
        )
    require_apart(find_file_device(path), devices, word)
    system = os.statvfs(path)
    free = system.f_bavail * system.f_frsize
    wanted = limit or min(max(LEAST, sum(_size(device) for device in devices) * SHARE // 100), free // 2)
    if wanted < LEAST or wanted > free:
        raise DeviceError(
            f"{path} has {free} bytes free, and the difference storage needs {max(wanted, LEAST)}: make room there,"
            " name another place, or give a smaller --limit",
            device=path,
        )
    if abi is not Abi.V1:
        return Storage(path, wanted)
    file = os.path.join(path, f".lvmsync-blksnap-{uuid.uuid4().hex[:12]}")
    return Storage(None, wanted, _device_of(path), file=file)


def _choose_device(abi: Abi, device: DeviceName, room: Room, state: Path) -> Storage:
    if is_in_use(device.number):
        raise DeviceError(f"{device.path} is in use; name a spare device, or a folder", device=device.path)
    with open_device(device.path, exclusive=True) as opened:
        size = opened.size
        if not (room.overwrite or is_blank(opened) or is_as_left(state, opened)):
            raise DeviceError(
                f"{device.path} holds something (its first block is not zeros), and would be overwritten; if it may be,"
                " give --overwrite-storage",
                device=device.path,
            )
    length = min(size - _SKIPPED if abi is Abi.V1 else size, room.limit or size) // SECTOR * SECTOR
    if length < LEAST:
        raise DeviceError(f"{device.path} has room for {length} bytes, and needs {LEAST}", device=device.path)
    if abi is not Abi.V1:
        return Storage(device.path, length, spare=device)
    return Storage(None, length, device, [(_SKIPPED, length)], spare=device)


def _make_file(path: Path, size: int) -> list[tuple[int, int]]:
    """Make a file that has its room on its device, and return where: offset and length in bytes."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
            # The module writes to these sectors, whoever has them: nobody else may get them while it does.
            set_immutable(fd, is_immutable=True)
            is_elsewhere = is_realtime(fd)
        finally:
            os.close(fd)
    except OSError as error:
        reason = "there is no room" if error.errno == errno.ENOSPC else error.strerror
        raise DeviceError(
            f"cannot make a difference storage of {size} bytes, {path}: {reason}", device=str(path)
        ) from error
    found = find_file_extents(str(path))
    if found is None or found.total_bytes < size or is_elsewhere:
        raise DeviceError(
            f"the file system of {path.parent} does not tell where a file lies, and blksnap 6 writes there by itself;"
            " name a folder on ext4 or xfs, or a spare device",
            device=str(path.parent),
        )
    return [(extent.offset, extent.length) for extent in found]


def _device_of(folder: str) -> DeviceName:
    """Return the device whose bytes the extents of files in a folder are."""
    number = find_file_device(folder)
    kinds = [one.kind for one in list_mounts() if one.number == number]
    if number is None or not kinds or kinds[-1] not in DEVICE_KINDS:
        raise DeviceError(
            f"{folder} is on {kinds[-1] if kinds else 'no mounted device'}, whose files lie on no device that blksnap 6"
            f" could be told of; name a folder on {' or '.join(DEVICE_KINDS)}, or a spare device",
            device=folder,
        )
    node = f"/dev/block/{number[0]}:{number[1]}"  # for messages: the module is told the number
    return DeviceName(os.path.realpath(node), number)


def _size(device: DeviceName) -> int:
    with open_device(device.path) as opened:
        return opened.size
