"""Spare devices that were the difference storage of a snapshot of lvmsync, so that they may be used again.

    STATE/blksnap/spares/DEVICE.json    a digest of the first block as it was when the snapshot was given back

v7 and up save old content from the first byte on, so that a spare device does not look empty afterwards. One whose
first block is as it was left then is ours still; anything else on it was written since, by somebody else.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from lvmsync.errors import LvmsyncError
from lvmsync.jobs.blksnap_points import blksnap_folder
from lvmsync.system.device import Device, open_device
from lvmsync.system.identity import identify
from lvmsync.system.ledger import file_name, make_folders, replace_file

_VERSION = 1
_FIRST = 4096


def is_blank(device: Device) -> bool:
    """Tell whether the first block of a device is zeros."""
    return not any(_read_first(device))


def is_as_left(state: Path, device: Device) -> bool:
    """Tell whether a device is as the last snapshot of ours has left it; what cannot be read is not."""
    try:
        return bool(json.loads(_path(state, device).read_text()) == _describe(device))
    except (OSError, ValueError):
        return False


def remember_spare(state: Path, path: str, number: str | None) -> None:
    """Remember how a snapshot that is gone now has left a spare device.

    If that cannot be, its user has to say the next time that it may be overwritten.

    Args:
        state: the state folder.
        path: of the device.
        number: that it had then, as MAJOR:MINOR.
    """
    with suppress(LvmsyncError, OSError), open_device(path, exclusive=True) as device:
        if device.number and number == f"{device.number[0]}:{device.number[1]}":
            record = _path(state, device)
            make_folders(record.parent)
            replace_file(record, json.dumps(_describe(device)))


def _path(state: Path, device: Device) -> Path:
    word = ", ".join(f"{key} {value}" for key, value in identify(device.fd).items())
    return blksnap_folder(state) / "spares" / f"{file_name(word)}.json"


def _describe(device: Device) -> dict[str, str | int]:
    return {"version": _VERSION, "size": device.size, "first": hashlib.sha256(_read_first(device)).hexdigest()}


def _read_first(device: Device) -> bytes:
    return bytes(device.read_bytes(0, min(device.size, _FIRST)))
