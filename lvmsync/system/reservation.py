"""The metadata snapshot of a thin pool or an era device: there is only one, so it is taken, noted and given back.

    STATE/reservations/NAME-HASH.lock   held by whoever works with the metadata snapshot of that device
                       NAME-HASH.json   who has it, and since when; written before it is taken

A run that is killed leaves the metadata snapshot behind, with its note. The next run finds both; it gives
back what is surely ours, and says so. One that may be another program's is never given back, only named.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ChangesLost, CommandError, ConflictError, DeviceError, LvmsyncError
from lvmsync.system import dm
from lvmsync.system.device import aligned_buffer
from lvmsync.system.ledger import file_name, is_locked, make_folders, remove_file, replace_file, state_folder
from lvmsync.system.signals import signals_deferred

LOCK_TRIES, LOCK_WAIT = 300, 0.1
"""How often, and how many seconds apart, a lock is tried that another run has: maps are read in seconds."""

_BLOCK = 4096  # bytes of a metadata block


@dataclass(frozen=True)
class Tracker:
    """How a kind of target deals with its metadata snapshot.

    Attributes:
        kind: of target, as in its table.
        take: the message that takes one.
        drop: the message that gives it back.
        held: reads the status (text, name of the device): block of the metadata snapshot, None if there is none.
    """

    kind: str
    take: str
    drop: str
    held: Callable[[str, str], int | None]


@dataclass(frozen=True)
class Owner:
    """The note of a run that takes a metadata snapshot.

    Attributes:
        device: name of the target's device.
        purpose: what the run is for, as people say it.
        pid: of the run.
        boot: id of the boot that it runs in.
        time: when it took it: UTC, ISO 8601.
        root: block of the metadata snapshot; None: it may not have been taken yet.
        content: hash of that block; another snapshot may come to be in the same block, but not with the same trees.
    """

    device: str
    purpose: str
    pid: int
    boot: str
    time: str
    root: int | None = None
    content: str | None = None

    def __str__(self) -> str:
        return f"lvmsync process {self.pid} ({self.purpose}, {self.time})"


@dataclass(frozen=True)
class Reservation:
    """A metadata snapshot that is ours for now.

    Attributes:
        root: block of the superblock's copy.
        status: of the target, just after it was taken.
        notes: what the user should know, a sentence each.
    """

    root: int
    status: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """A metadata snapshot that somebody has.

    Attributes:
        device: of the target.
        root: block of the superblock's copy.
        content: hash of that block; None: it cannot be read.
        owner: our note of it; None: another program took it, or the note is lost.
        is_running: whether a run of ours works with it at this moment.
    """

    device: dm.Mapped
    root: int
    content: str | None
    owner: Owner | None
    is_running: bool

    @property
    def is_ours(self) -> bool:
        """Whether it surely is one that a run of ours took."""
        if self.owner is None or self.content is None:
            return False
        return (self.owner.root, self.owner.content) == (self.root, self.content)

    def __str__(self) -> str:
        whose = "by another program, or a run of lvmsync whose note is lost"
        if self.owner and self.is_ours:
            whose = f"by {self.owner}"
        elif self.owner and self.owner.root is None:
            whose = f"perhaps by {self.owner}, which was cut off just then"
        return f"the metadata snapshot of {self.device.path} (block {self.root}) was taken {whose}"


@contextmanager
def reserve(device: dm.Mapped, tracker: Tracker, purpose: str) -> Iterator[Reservation]:
    """Take the metadata snapshot of a target, and give it back at the end, whatever happens.

    Args:
        device: whose first target it is.
        tracker: how that kind of target does it.
        purpose: what for, as people say it.

    Raises:
        ConflictError: another run or another program has it, or gave ours back meanwhile.
        CommandError: the kernel refused.
    """
    with _locked(device) as note:
        notes = _settle(device, tracker, note)
        root: int | None = None
        try:
            with signals_deferred():  # one that came meanwhile is raised at the end of this, inside the try
                owner = Owner(
                    device.name, purpose, os.getpid(), _boot(), datetime.now(UTC).isoformat(timespec="seconds")
                )
                note.write(owner)
                _take(device, tracker, note)
                root, status = read_held(device, tracker)
                if root is None:
                    note.remove()
                    raise DeviceError(
                        f"{device.path} has no metadata snapshot, though it was taken just now: '{status}'"
                    )
                note.write(replace(owner, root=root, content=_read_content(device, root)))
            yield Reservation(root, status, notes)
        except BaseException as error:
            if root is not None:
                try:
                    _give_back(device, tracker, note, root)
                except LvmsyncError as failure:
                    error.add_note(f"its metadata snapshot could not be given back ({failure}): see 'lvmsync cleanup'")
            raise
        _give_back(device, tracker, note, root)


def _take(device: dm.Mapped, tracker: Tracker, note: _Note) -> None:
    try:
        dm.send_message(device, tracker.take)
    except CommandError as error:
        note.remove()
        if read_held(device, tracker)[0] is not None:
            raise ConflictError(
                f"another program has just taken the metadata snapshot of {device.path}; try again later",
                device=device.path,
            ) from error
        raise


def read_held(device: dm.Mapped, tracker: Tracker) -> tuple[int | None, str]:
    """Return the block of a target's metadata snapshot (None: none is taken), and the status that says so.

    Raises:
        ChangesLost: the target has failed.
        CommandError: it is gone, or of another kind.
    """
    lines = dm.read_status(device)
    if len(lines) != 1 or lines[0].kind != tracker.kind:
        raise CommandError(
            f"{device.path}: its target is '{' '.join(line.kind for line in lines)}', not '{tracker.kind}': it was"
            " changed or removed meanwhile"
        )
    return tracker.held(lines[0].text, device.path), lines[0].text


def find_held(tracker: Tracker) -> list[Held]:
    """Return every metadata snapshot of this kind of target that is taken now."""
    found = []
    for line in dm.list_tables():
        if line.kind != tracker.kind:
            continue
        try:
            root, _ = read_held(line.device, tracker)
        except ChangesLost:  # a target that has failed takes no messages: there is nothing to give back
            continue
        if root is not None:
            note = _Note(_path(line.device))
            content = None
            with suppress(DeviceError):  # then it is not surely ours, but can be named and given back
                content = _read_content(line.device, root)
            found.append(Held(line.device, root, content, note.read(), note.is_locked()))
    return found


def release(held: Held, tracker: Tracker) -> None:
    """Give back a metadata snapshot, on the user's word that nobody works with it.

    Raises:
        ConflictError: a run of lvmsync works with it, or it is another one now.
        CommandError: the kernel refused.
    """
    with _locked(held.device) as note:
        _give_back(held.device, tracker, note, held.root)


def _settle(device: dm.Mapped, tracker: Tracker, note: _Note) -> tuple[str, ...]:
    """Deal with a metadata snapshot that is there already; we hold the lock, so no run of ours works with it."""
    root, _ = read_held(device, tracker)
    owner = note.read()
    if root is None:
        return ()
    held = Held(device, root, _read_content(device, root), owner, is_running=False)
    if not held.is_ours:
        raise ConflictError(
            f"{held}, and there can be only one; wait for that program, or if none runs give it back with"
            f" 'lvmsync cleanup --release {device.name}'",
            device=device.path,
        )
    _give_back(device, tracker, note, root)
    return (f"{held}, which ended without giving it back: it was given back now.",)


def _give_back(device: dm.Mapped, tracker: Tracker, note: _Note, root: int) -> None:
    with signals_deferred():
        now, _ = read_held(device, tracker)
        if now != root:
            note.remove()
            raise ConflictError(
                f"the metadata snapshot of {device.path} is not the one that was taken (block {now}, not {root}):"
                " another program gave it back meanwhile, so what was read may be wrong; run this again",
                device=device.path,
            )
        dm.send_message(device, tracker.drop)
        note.remove()


def _read_content(device: dm.Mapped, root: int) -> str:
    """Return the hash of the block that a metadata snapshot begins with."""
    line = next((one for one in dm.list_tables() if one.device.number == device.number), None)
    # The tables of thin pools and era devices begin with their metadata device.
    match = re.match(r"(\d+):(\d+) ", line.text) if line else None
    if match is None:
        raise CommandError(f"{device.path}: its table names no metadata device: it was changed or removed meanwhile")
    buffer = aligned_buffer(_BLOCK)
    with dm.open_number((int(match[1]), int(match[2]))) as metadata:
        metadata.read([root * _BLOCK], [_BLOCK], buffer)
    return hashlib.sha256(buffer).hexdigest()


class _Note:
    """The note about one device's metadata snapshot."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Owner | None:
        """Return who took it; None where there is no note, or none that can be read."""
        try:
            return Owner(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, owner: Owner) -> None:
        """Replace the note, durably."""
        try:
            replace_file(self._path, json.dumps(asdict(owner)))
        except OSError as error:
            raise DeviceError(f"cannot write {self._path}: {error.strerror}", device=str(self._path)) from error

    def remove(self) -> None:
        """Remove the note."""
        remove_file(self._path)

    def is_locked(self) -> bool:
        """Tell whether a run holds the lock of this device."""
        return is_locked(self._path.with_suffix(".lock"))


def _path(device: dm.Mapped) -> Path:
    return state_folder() / "reservations" / f"{file_name(device.uuid or device.name)}.json"


@contextmanager
def _locked(device: dm.Mapped) -> Iterator[_Note]:
    """Lock the note of a device, so that one run at a time takes its metadata snapshot."""
    path = _path(device)
    try:
        make_folders(path.parent)
        fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(f"cannot use the state folder: {path.parent}: {error.strerror}") from error
    try:
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not tries_left:
                    raise ConflictError(
                        f"another run of lvmsync works with the metadata snapshot of {device.path}:"
                        f" {_Note(path).read() or 'it left no note'}; try again when it has ended",
                        device=device.path,
                    ) from error
                time.sleep(LOCK_WAIT)
        yield _Note(path)
    finally:
        os.close(fd)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
