"""Whether a device or file was written to since we were last done with it: what is looked at, and what that tells.

Of a block device: the sectors that were written and discarded since it was set up, which the kernel counts, and which
set-up that is (its diskseq, within one boot). Of a file: the times that the kernel changes with every write.

A mapped device can be changed from below without being counted: a snapshot that is merged into it writes to what it is
made of, and then its table is what it was before. So of a target the tables count, too, and while it is the origin of a
snapshot nothing is ever proved.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lvmsync.errors import CommandError, DeviceError
from lvmsync.system import dm
from lvmsync.system.dm import SYSFS_BLOCK
from lvmsync.system.identity import boot_id

Written = Literal["no", "yes", "unknown"]
"""Whether it was written to meanwhile: proved either way, or not known."""

_TRIES = 10
_BELOW = ("tables", "snapshots")
_NONE = "none"
_SNAPSHOTS = {"snapshot-origin", "snapshot-merge"}
_COARSE = 5  # CLOCK_REALTIME_COARSE, which Python does not name: files get their times from it


def look(fd: int) -> dict[str, str] | None:
    """Return what an open device or file looks like, all writes to it being done; None where that cannot be told."""
    state = os.fstat(fd)
    return _look_at_device(state.st_rdev) if stat.S_ISBLK(state.st_mode) else _look_at_file(state)


def look_at_target(fd: int) -> dict[str, str] | None:
    """Return what `look` does, and of a mapped device what it is made of."""
    number = os.fstat(fd).st_rdev
    found = look(fd)
    if not number or found is None or not dm.is_mapped((os.major(number), os.minor(number))):
        return found
    try:
        return {**found, **_look_below((os.major(number), os.minor(number)))}
    except CommandError:
        return None


def look_when_settled(fd: int) -> dict[str, str] | None:
    """Return what a target looks like once later writes are sure to show, for which a file's clock must have ticked."""
    for _ in range(_TRIES):
        state = os.fstat(fd)
        if stat.S_ISBLK(state.st_mode) or _now() > max(state.st_mtime_ns, state.st_ctime_ns):
            return look_at_target(fd)
        time.sleep(time.clock_getres(_COARSE))
    return None  # the times are of another clock, which is ahead


def was_written(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> Written:
    """Tell from two looks at one device or file whether it was written to in between."""
    if not before or not now or before.keys() != now.keys():
        return "unknown"
    if any(before[key] != now[key] for key in ("boot", "diskseq") if key in now):
        return "unknown"  # counted from zero since then
    if before == now:
        return "unknown" if now.get("snapshots", _NONE) != _NONE else "no"
    if all(before[key] == now[key] for key in now if key not in _BELOW):
        return "unknown"
    if "ctime" in now and (before["mtime"], before["size"]) == (now["mtime"], now["size"]):
        return "unknown"  # a new mode or owner, or a time that was put back
    return "yes"


def describe(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return the first difference of two looks, for a message."""
    key = next(key for key in now if before[key] != now[key])
    return f"{key} was {before[key]} and is {now[key]}"


def life(fd: int) -> str:
    """Return what names the time for which the kernel keeps what is written to an open device or file, synced or not.

    Within it, what a killed program has written is there. Empty where that is not known.
    """
    try:
        boot = boot_id()
    except DeviceError:
        return ""
    state = os.fstat(fd)
    if not stat.S_ISBLK(state.st_mode):
        return f"{boot} {state.st_dev}"
    return f"{boot} {state.st_rdev} {_read(_folder(state.st_rdev), 'diskseq')}"


def _look_at_device(number: int) -> dict[str, str] | None:
    """Source: Linux v6.1, Documentation/block/stat.rst; an empty flush counts as a write, but has no sectors."""
    folder = _folder(number)
    diskseq = _read(folder, "diskseq")
    if not diskseq:
        return None
    try:
        fields = (folder / "stat").read_text().split()
        if fields[6] == "0":  # nothing is counted, perhaps (whether it is, queue/iostats does not tell of all devices)
            return None
        return {
            "boot": boot_id(),
            "diskseq": diskseq,
            "sectors written": fields[6],
            "sectors discarded": fields[13] if len(fields) > 13 else "0",
        }
    except (OSError, IndexError, DeviceError):
        return None


def _look_below(number: dm.Number) -> dict[str, str]:
    """Return a digest of the tables of a mapped device and of all that it lies on, and whether snapshots are there."""
    below, todo = {number}, [number]
    while todo:
        more = [one for one in dm.list_below(todo.pop()) if one not in below]
        below.update(more)
        todo += more
    lines = [line for line in dm.list_tables() if line.device.number in below]
    texts = sorted(f"{line.device.number} {line.start} {line.length} {line.kind} {line.text}" for line in lines)
    kinds = {line.kind for line in lines} & _SNAPSHOTS
    # SHA-256, for a table may hold the key of an encrypted device.
    return {
        "tables": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32],
        "snapshots": " ".join(sorted(kinds)) or _NONE,
    }


def _look_at_file(state: os.stat_result) -> dict[str, str]:
    return {"mtime": str(state.st_mtime_ns), "ctime": str(state.st_ctime_ns), "size": str(state.st_size)}


def _folder(number: int) -> Path:
    return SYSFS_BLOCK / f"{os.major(number)}:{os.minor(number)}"


def _read(folder: Path, fact: str) -> str:
    """Return a line of sysfs about a device, or the disk of a partition; empty where there is none."""
    for place in (folder / fact, folder.resolve().parent / fact):
        try:
            return place.read_text().strip()
        except OSError:
            continue
    return ""


def _now() -> int:
    return time.clock_gettime_ns(_COARSE)
