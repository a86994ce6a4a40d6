"""What is noted of each snapshot of blksnap that lvmsync makes, so that a crash leaves nothing that nobody knows of.

    STATE/blksnap/snapshots/RUN.json    one snapshot: written before it is made, and again when its id is known
                            RUN.lock    held by the run that it is for, as long as that lives

A snapshot outlives the process that took it, and other backup programs use the same module: what no note names
is never touched.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import DeviceError, FormatError, LvmsyncError
from lvmsync.formats.blksnap_abi import Abi
from lvmsync.jobs.blksnap_points import blksnap_folder
from lvmsync.jobs.blksnap_spares import remember_spare
from lvmsync.sources.blksnap import boot_id
from lvmsync.system.blksnap import Control
from lvmsync.system.device import opening_failed
from lvmsync.system.ioctl import set_immutable
from lvmsync.system.ledger import is_locked, make_folders, remove_file, replace_file

_VERSION = 1


@dataclass(frozen=True)
class Note:
    """What is noted of one snapshot.

    Attributes:
        run: a random word, which its files are called by.
        boot: id of the boot that it was made in.
        devices: paths of what it holds.
        before: ids of the snapshots that were there already.
        id: its own; None: it was about to be made.
        keep: it is to stay until it is released; else it goes with its run.
        file: of the difference storage, to be removed with it; None: there is none, or it is not ours.
        time: when: UTC, ISO 8601.
        spare: path of the spare device that is its difference storage; None: it is not on one.
        spare_number: of that device, as MAJOR:MINOR.
        is_taken: on v1, whether it may have been taken, so that the module writes to its storage by itself.
        is_ended: on v1, whether lvmsync has begun to destroy it.
    """

    run: str
    boot: str
    devices: list[str]
    before: list[str]
    id: str | None
    keep: bool
    file: str | None
    time: str
    spare: str | None = None
    spare_number: str | None = None
    is_taken: bool = False
    is_ended: bool = False


@contextmanager
def alone(control: Control) -> Iterator[None]:
    """Wait until no other lvmsync makes or gives back a snapshot, and keep them waiting.

    Between the look at the list and the making there must be no other: on v1, the second snapshot makes the
    module forget the first. The lock is on the control node, which all have in common, whatever their state folder.
    """
    try:
        lock = os.open(control.node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise opening_failed(str(control.node), error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class Noted:
    """The note of a snapshot of this run; made by `note_snapshot`.

    Attributes:
        note: as last written.
    """

    def __init__(self, state: Path, note: Note) -> None:
        self.note = note
        self._path = _path(state, note.run)

    def write(self, **changes: object) -> None:
        """Replace fields of the note, durably and at once."""
        new = replace(self.note, **changes)  # type: ignore[arg-type]
        if not new.keep:
            self.note = new  # an id must be known even if it cannot be written: it is to be destroyed
        try:
            replace_file(self._path, json.dumps({"version": _VERSION, **asdict(new)}, indent=1))
        except OSError as error:
            raise DeviceError(f"cannot write {self._path}: {error.strerror}", device=str(self._path)) from error
        self.note = new  # kept, only if that is on disk: else nobody would know whose it is


@contextmanager
def note_snapshot(state: Path, devices: Sequence[str], before: list[str]) -> Iterator[Noted]:
    """Write the note of a snapshot that is about to be made; whoever makes it removes the note with the snapshot."""
    run = uuid.uuid4().hex
    time = datetime.now(UTC).isoformat(timespec="seconds")
    noted = Noted(state, Note(run, boot_id(), list(devices), before, None, False, None, time))
    path = _path(state, run).with_suffix(".lock")
    try:
        make_folders(path.parent)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(
            f"cannot use the state folder {state}: {error.strerror}; choose another with --state", device=str(state)
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        noted.write()
        yield noted
    finally:
        os.close(lock)


def list_notes(state: Path) -> list[Note]:
    """Return all notes, the oldest first.

    Raises:
        FormatError: one cannot be read.
    """
    found, wrong = read_notes(state)
    for error in wrong:
        raise error
    return found


def read_notes(state: Path) -> tuple[list[Note], list[FormatError]]:
    """Return the notes that can be read, the oldest first, and what is wrong with the others."""
    found, wrong = [], []
    for path in (blksnap_folder(state) / "snapshots").glob("*.json"):
        try:
            values = json.loads(path.read_text())
            if values.pop("version") != _VERSION:
                raise ValueError("written by another version")
            note = Note(**values)
            words = [*note.devices, *note.before, note.boot, note.time]
            words += [one for one in (note.id, note.file, note.spare, note.spare_number) if one is not None]
            if note.run != path.stem or not all(isinstance(one, str) for one in words):
                raise ValueError("not what lvmsync writes")
        except FileNotFoundError:
            continue  # removed just now
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            wrong.append(
                FormatError(
                    f"{path} cannot be read ({error}); see 'lvmsync blksnap status' for what is held, then move it"
                    " away",
                    device=str(path),
                )
            )
            continue
        found.append(note)
    return sorted(found, key=lambda note: note.time), wrong


def remove_note(state: Path, note: Note) -> None:
    """Remove the note of a snapshot that is gone, and its storage, if that was made for it."""
    if note.file:
        _remove_room(Path(note.file))
    path = _path(state, note.run)
    remove_file(path)
    remove_file(path.with_suffix(".lock"))


def destroy_noted(control: Control, state: Path, note: Note) -> None:
    """Destroy the snapshot of a note, and remove the note.

    On v1 it is noted before that it is us who do it: from one that is gone otherwise, the module may still write.
    """
    assert note.id is not None
    noted = Noted(state, note)
    if control.abi is Abi.V1:
        with suppress(DeviceError):  # if we live, it is not needed
            noted.write(is_ended=True)
    try:
        control.destroy(note.id)
    except LvmsyncError:
        if control.abi is Abi.V1:
            with suppress(DeviceError):
                noted.write(is_ended=False)
        raise
    if note.spare and control.abi is not Abi.V1:  # v1 leaves its beginning alone
        remember_spare(state, note.spare, note.spare_number)
    remove_note(state, note)


def is_forgotten(control: Control, note: Note, there: Sequence[str]) -> bool:
    """Tell whether the module may still write to the storage of a snapshot that it does not list any more.

    v1 forgets a snapshot when another is made: that one can be destroyed by nobody, and goes on saving what is
    overwritten. It cannot be told from one that somebody else destroyed.

    Args:
        control: to ask by.
        note: of the snapshot.
        there: ids of the snapshots that the module lists.
    """
    is_gone = note.boot == boot_id() and note.id is not None and note.id not in there
    return control.abi is Abi.V1 and is_gone and note.is_taken and not note.is_ended


def say_forgotten(note: Note) -> str:
    """Return what the user should know of a snapshot that `is_forgotten`."""
    return (
        f"The snapshot {note.id} of {', '.join(note.devices)} was ended by another program: if that made one of its"
        f" own, blksnap 6 has forgotten ours, and still writes to its difference storage {note.file or note.spare}."
        " That is left alone until the machine is booted, and then given back by the next run; if the module was loaded"
        f" anew since, 'lvmsync blksnap release --force {note.id}' does it now."
    )


def _remove_room(path: Path) -> None:
    """Remove the file of a difference storage, which was protected against that."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise opening_failed(str(path), error) from error
    try:
        with suppress(OSError):  # then it cannot be removed either
            set_immutable(fd, is_immutable=False)
    finally:
        os.close(fd)
    remove_file(path)


def is_running(state: Path, note: Note) -> bool:
    """Tell whether the run that a snapshot is for lives."""
    return is_locked(_path(state, note.run).with_suffix(".lock"))


def give_back(control: Control, state: Path) -> list[str]:
    """Destroy the snapshots that runs of lvmsync have left when they were cut short; to be called when `alone`.

    Returns:
        What was done, and what is left to the user, a sentence each.
    """
    said: list[str] = []
    notes = list_notes(state)
    named = {note.id for note in notes}
    boot = boot_id()
    for note in notes:
        there = control.list_snapshots()
        if is_forgotten(control, note, there):
            if not is_running(state, note):
                said.append(say_forgotten(note))
            continue
        if note.boot != boot or (note.id is not None and note.id not in there):
            remove_note(state, note)  # it went with the module, or somebody released it
            continue
        if note.keep or is_running(state, note):
            continue
        left = note.id or _find_unnoted(control, note, [one for one in there if one not in named], said)
        if left:
            destroy_noted(control, state, replace(note, id=left))
            said.append(
                f"The snapshot {left} of {', '.join(note.devices)}, left by a run of {note.time} that was cut short,"
                " was given back."
            )
        else:
            remove_note(state, note)
    return said


def _find_unnoted(control: Control, note: Note, ids: list[str], said: list[str]) -> str | None:
    """Return the snapshot that a run made right before it was cut short, if it surely is that.

    On v1 there is one at most, and one that was never taken is of nobody who lives: a program takes its snapshot
    as soon as it has made it. On v7 and up there may be others', and none of them is asked for its state.
    """
    new = [one for one in ids if one not in note.before]
    if not new:
        return None
    if control.abi is Abi.V1 and len(new) == 1 and not is_taken(control, new[0]):
        return new[0]
    said.append(
        f"A run of {note.time} was cut short while it made a snapshot, which may be {' or '.join(new)}: if no other"
        f" program uses blksnap, release it with 'lvmsync blksnap release --force {new[0]}'."
    )
    return None


def is_taken(control: Control, snapshot: str) -> bool:
    """Tell whether a snapshot of v1 was taken, and not just made."""
    try:
        control.images(snapshot, [])
    except DeviceError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENODEV:
            return False
        raise
    return True


def _path(state: Path, run: str) -> Path:
    return blksnap_folder(state) / "snapshots" / f"{run}.json"
