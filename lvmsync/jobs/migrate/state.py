"""The journal of a migration: what it was doing, for whoever comes after it was cut off.

    STATE/migrations/ID/lock       held by the migration while it runs
                       journal.json    replaced by rename at each step, before the step is taken

ID is a name made of the volume's id and the target's word, so a pair has one journal. It is removed when the
migration is over: one that is there, and is not locked, was cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.fields import read_fields
from lvmsync.system.json_file import read_json
from lvmsync.system.ledger import file_name, is_locked, open_lock, remove_file, replace_file

VERSION = 1

PASSES = "passes"  # the source is in use, as ever
STOPPING = "stopping"  # the stop command is running
STOPPED = "stopped"  # it has returned
FENCED = "fenced"  # the source is read-only, too
SENT = "sent"  # the target is at the cut
STARTING = "starting"  # the start command may have begun
STARTED = "started"  # it has returned: the target is in use now

STEPS = (PASSES, STOPPING, STOPPED, FENCED, SENT, STARTING, STARTED)
"""In the order of a migration."""


@dataclass(frozen=True)
class Note:
    """What a journal holds.

    Attributes:
        source: VG/LV, as it was named.
        volume_id: its LVM id.
        target: as it was named.
        step: one of `STEPS`.
        is_fenced: whether the source may be read-only by our hand.
        stop: the command that stops the source's user, in words for people.
        restart: the command that starts it again; empty if none was given.
        domain: name of the libvirt domain; empty if none.
        uri: where libvirt has it; empty for its default.
        start: the command on the target's side; empty if none.
        times: step -> when it was begun, UTC.
        downtime: seconds, once it is over.
        predicted: seconds, from right before the stop.
        is_back: it was a way back: ``source`` is on another machine, and ``target`` on this one.
    """

    source: str
    volume_id: str
    target: str
    step: str = PASSES
    is_fenced: bool = False
    stop: str = ""
    restart: str = ""
    domain: str = ""
    uri: str = ""
    start: str = ""
    times: dict[str, str] = field(default_factory=dict)
    downtime: float | None = None
    predicted: float | None = None
    is_back: bool = False

    @property
    def words(self) -> str:
        """The words of the command line that mean this pair."""
        return f"--back {self.target} {self.source}" if self.is_back else f"{self.source} {self.target}"

    @property
    def has_stopped(self) -> bool:
        """Whether the source's user may be stopped."""
        return STEPS.index(self.step) >= STEPS.index(STOPPING)

    @property
    def may_run_there(self) -> bool:
        """Whether the target may be in use by now; not after a start command that is known to have failed."""
        return STEPS.index(self.step) >= STEPS.index(STARTING)

    @property
    def may_have_way_back(self) -> bool:
        """Whether a snapshot of the target for ``migrate --back`` may have been taken."""
        return STEPS.index(self.step) >= STEPS.index(SENT) and not self.is_back


class Journal:
    """The journal of one migration, locked; made by `open_journal`.

    Attributes:
        before: what a migration of the same pair that was cut off has left; None if it left nothing.
        note: as last written.
    """

    def __init__(self, folder: Path, note: Note, before: Note | None) -> None:
        self._path = folder / "journal.json"
        self.note = note
        self.before = before

    def enter(self, step: str, **facts: Any) -> None:
        """Write down, durably, that a step is about to be taken.

        Raises:
            DeviceError: it cannot be written.
        """
        times = {**self.note.times, step: datetime.now(UTC).isoformat(timespec="seconds")}
        self.note = replace(self.note, step=step, times=times, **facts)
        try:
            replace_file(self._path, json.dumps({"version": VERSION, **asdict(self.note)}, indent=1))
        except OSError as error:
            raise DeviceError(
                f"cannot write the migration's journal {self._path}: {error.strerror}", device=str(self._path)
            ) from error

    def close(self) -> None:
        """Remove the journal: there is nothing left to tell."""
        remove_file(self._path)


@contextlib.contextmanager
def open_journal(state: Path, note: Note) -> Iterator[Journal]:
    """Lock the journal of a pair and yield it. What an earlier migration left stays until something is written.

    Args:
        state: the state folder.
        note: of the migration that begins; not written yet.

    Raises:
        ConflictError: such a migration is running.
        FormatError: the journal that was left cannot be read.
    """
    folder = state / "migrations" / file_name(f"{note.volume_id} {note.target}")
    lock = open_lock(folder, state)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"{note.source} is being migrated to {note.target} by another lvmsync; wait for it to end"
            ) from error
        yield Journal(folder, note, _read(folder / "journal.json"))
    finally:
        os.close(lock)


@contextlib.contextmanager
def only_migration(state: Path, note: Note) -> Iterator[None]:
    """Hold off every other migration of the same volume, whatever its target is called, for the time of the block.

    Args:
        state: the state folder.
        note: of the migration that begins, or is settled.

    Raises:
        ConflictError: one is running.
    """
    lock = open_lock(state / "migrations" / file_name(f"volume {note.volume_id}"), state)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            name = note.target if note.is_back else note.source
            raise ConflictError(f"{name} is being migrated by another lvmsync; wait for it to end") from error
        yield
    finally:
        os.close(lock)


def refuse_others(state: Path, note: Note) -> None:
    """Refuse a volume of which another migration was cut off in its downtime: two users could be started.

    Args:
        state: the state folder.
        note: of the migration that begins, under `only_migration`.

    Raises:
        ConflictError: there is one.
        FormatError: its journal cannot be read.
    """
    for other in list_cut_off(state):
        if other.volume_id == note.volume_id and other.has_stopped:
            raise ConflictError(describe(other), device=other.source)


def list_cut_off(state: Path) -> list[Note]:
    """Return the journals of migrations that do not run any more; nothing is changed.

    Raises:
        FormatError: one of them cannot be read.
    """
    found = []
    for path in sorted((state / "migrations").glob("*/journal.json")):
        if not is_locked(path.with_name("lock")):
            note = _read(path)
            if note:
                found.append(note)
    return found


def describe(note: Note) -> str:
    """Return what a migration that was cut off has left, and what is to be done, in one sentence."""
    which = f"a migration of {note.source} to {note.target}"
    pair = note.words
    if not note.has_stopped:
        return (
            f"{which} ended in its passes ({note.times.get(PASSES, 'time unknown')}): its source was never stopped; run"
            " it again to go on"
        )
    fenced = f" {note.source} may have been made read-only." if note.is_fenced else ""
    if note.may_run_there:
        return (
            f"{which} was cut off at {note.times.get(note.step)} (step '{note.step}'), when the start command may have"
            f" run: look there.{fenced} If it runs on the target, run 'lvmsync migrate --finish {pair}'; if you are"
            f" sure that it does not, 'lvmsync migrate --abort --force {pair}'"
        )
    how = note.restart or (f"virsh start {note.domain}" if note.domain else "")
    words = f"starts it again ({how})" if how else "tells how to start it again"
    return (
        f"{which} was cut off at {note.times.get(note.step)} (step '{note.step}'), with its source stopped; nothing"
        f" runs on the target.{fenced} 'lvmsync migrate --abort {pair}' makes {note.source} writable and {words}"
    )


def _read(path: Path) -> Note | None:
    return read_json(path, _parse, name="journal")


def _parse(values: Any) -> Note:
    if values.pop("version") != VERSION:
        raise ValueError("written by another version")
    note = Note(**read_fields(Note, values))
    if note.step not in STEPS:
        raise ValueError(f"no step is called {note.step!r}")
    return note
