"""What the state folder tells: receives and migrations that were cut off, and the folder itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lvmsync.errors import DeviceError, LvmsyncError
from lvmsync.jobs.archive.umount import describe_stale, find_stale, find_trouble, list_strangers
from lvmsync.jobs.doctor.findings import Finding
from lvmsync.jobs.left import find_gone, list_unused
from lvmsync.jobs.migrate.state import describe, list_cut_off
from lvmsync.jobs.replica.record import Record
from lvmsync.jobs.way_back import can_go_back
from lvmsync.system import ledger
from lvmsync.system.mounts import list_mounts
from lvmsync.units import size_words

_VOLATILE = ("tmpfs", "ramfs")
_LEAST_FREE = 64 << 20
_SLACK = timedelta(minutes=2)  # that clocks may differ
_SET_CLOCK = "timedatectl set-ntp true"


def check_mounts(state: Path) -> Iterator[Finding]:
    """Yield the past states that were mounted and are no more, and those that are of no use any more."""
    for record in find_stale(state):
        yield Finding("leftover", record.path, describe_stale(record), f"lvmsync archive umount {record.path}")
    for record, problem in find_trouble(state):
        yield Finding("full", record.path, problem, f"lvmsync archive umount {record.path}")
    for view in list_strangers(state):
        yield Finding(
            "leftover",
            view.path,
            "a past state that no record in this state folder knows",
            f"give the state folder that it was mounted with (--state), or run: dmsetup remove {view.name}",
        )


def check_state(state: Path) -> Iterator[Finding]:
    """Yield what is wrong with the state folder, which need not be there yet."""
    there = next(path for path in (state, *state.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding("state", str(state), "the state folder cannot be written", "run as root, or give --state DIR")
        return
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize
    if free < _LEAST_FREE:
        yield Finding(
            "state",
            str(state),
            f"its file system has {size_words(free)} free, and what a receive overwrites is kept there first",
            "make room there, or choose another folder with LVMSYNC_STATE",
        )
    kind = _file_system(there)
    if kind in _VOLATILE:
        yield Finding(
            "state",
            str(state),
            f"it is on {kind}: what each copy holds, and the way back of a receive, are forgotten at the next boot",
            "choose a folder on a disk with LVMSYNC_STATE",
        )


def _file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on; empty if that is not known."""
    real = folder.resolve()
    try:
        mounts = [mount for mount in list_mounts() if real.is_relative_to(mount.point)]
    except DeviceError:
        return ""
    # The longest; of several at one place the last one is seen.
    return max(enumerate(mounts), key=lambda pair: (len(pair[1].point), pair[0]))[1].kind if mounts else ""


def check_targets(state: Path) -> Iterator[Finding]:
    """Yield the targets of this machine that are in the middle of a receive, or whose content is not known."""
    gone = {one.target: one for one in find_gone(state)}
    for path in sorted((state / "targets").glob("*/record.json")):
        try:
            target = str(json.loads(path.read_text())["target"])
            record, _, is_busy = ledger.peek_record(state, target, None, 0)
        except (OSError, ValueError, LookupError, TypeError) as error:
            yield Finding("broken", str(path), f"the ledger cannot be read ({error})", f"mv {path} {path}.broken")
            continue
        except LvmsyncError as error:
            yield Finding("broken", str(path), str(error), f"mv {path} {path}.broken")
            continue
        note = record.transaction
        if is_busy:
            continue
        if target in gone:
            what = str(gone[target]).partition(": ")[2]
            yield Finding("leftover", target, what, "lvmsync cleanup --remove")
        elif note and note.group and note.phase == "prepared":
            yield Finding(
                "unfinished", target, f"a group's copy of {note.began} was not finished", f"lvmsync recover {target}"
            )
        elif note and note.resumable and not can_go_back(note):
            yield Finding(
                "unfinished",
                target,
                f"it holds a part of a first copy that began {note.began}, and is of no use yet",
                "run that sync again to go on with it",
            )
        elif note:
            yield Finding(
                "unfinished",
                target,
                f"a receive that began {note.began} was not finished",
                f"lvmsync recover {target}" + (", or run that sync again to go on with it" if note.resumable else ""),
            )
        elif record.owed:
            yield Finding(
                "unfinished",
                target,
                f"{record.owed[0].archive} has not been given yet what the last receive has overwritten",
                f"lvmsync recover {target}",
            )
        elif record.dirty:
            yield Finding(
                "broken",
                target,
                "a write to it failed, and what it holds is not known",
                f"run 'lvmsync repair SOURCE {target}' where its source is",
            )


def check_unused(state: Path) -> Iterator[Finding]:
    """Yield the targets that were made for a first copy, of which nothing has come."""
    for target in list_unused(state):
        step = "lvremove" if target.startswith("/dev/") else "rm"
        yield Finding(
            "unfinished",
            target,
            "it was made for a first copy that did not begin, or begins just now",
            f"run that sync again, or if nobody else uses it: {step} {target}",
        )


def check_migrations(state: Path) -> Iterator[Finding]:
    """Yield the migrations that were cut off."""
    for note in list_cut_off(state):
        what, _, remedy = describe(note).partition(": ")
        yield Finding("unfinished", note.source, what, remedy or f"lvmsync migrate {note.source} {note.target}")


def check_clock(records: Iterable[Record], now: datetime) -> Iterator[Finding]:
    """Yield whether the clock was set back behind what was done already."""
    latest = max((record.committed for record in records if record.committed), default=None)
    try:
        then = datetime.fromisoformat(latest) if latest else None
    except ValueError:
        return
    if then and then.tzinfo and then > now + _SLACK:
        here = now.isoformat(timespec="seconds")
        yield Finding("clock", here, f"a sync ended at {latest}, which is later than now", _SET_CLOCK)


def check_far_clock(told: str, now: datetime, place: str) -> Iterator[Finding]:
    """Yield whether the clock of another machine differs from ours."""
    try:
        there = datetime.fromisoformat(told)
    except ValueError:
        return
    if there.tzinfo is None:
        there = there.replace(tzinfo=UTC)
    if abs(there - now) > _SLACK:
        yield Finding(
            "clock",
            place,
            f"its clock says {told}, and this one {now.isoformat(timespec='seconds')}",
            _SET_CLOCK,
        )
