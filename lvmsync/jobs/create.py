"""Targets that are made for a first copy: volumes and image files, and the note that they hold nothing yet.

By that note the first copy keeps no undo: there is nothing to go back to, and it would be as large as the volume.
"""

from __future__ import annotations

import stat
from pathlib import Path

from lvmsync.names import Volume
from lvmsync.system import identity, lvm_commands, seen
from lvmsync.system.device import open_device
from lvmsync.system.ledger import open_ledger
from lvmsync.targets.block import open_target


def create_volume(name: str, size: int, pool: str | None, state: Path) -> None:
    """Make a volume of LVM as `lvm_commands.create_volume` does, and note that it holds nothing.

    Args:
        name: VG/LV.
        size: bytes.
        pool: VG/POOL, for a thin volume.
        state: the state folder.

    Raises:
        LvmsyncError: as there, or the note could not be made; then the volume is removed again.
    """
    made = lvm_commands.create_volume(name, size, pool=pool)
    try:
        with open_device(Volume(name).path) as device:
            _note(state, identity.canonical_name(device.name, device.fd), device.fd, device.size)
    except BaseException:
        lvm_commands.remove_volume(made)
        raise


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
