"""What this machine remembers of the runs that take a source into an archive, and of the timer that starts them.

    STATE/archives/NAME-HASH/lock         held by the run that is at work
                             record.json  when it ran, how that ended, and what the archive was then
                             timer.json   what starts it (see `jobs.archive.timer`)

The record is replaced by rename: when a run begins, and when it ends. One that has begun and not ended, and holds no
lock any more, was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.fields import read_fields
from lvmsync.names import SourceName, Volume
from lvmsync.places import FolderPlace, Place
from lvmsync.system.json_file import read_json
from lvmsync.system.ledger import file_name, is_locked, open_lock, remove_file, replace_file

VERSION = 1


@dataclass(frozen=True)
class Task:
    """A source that is taken into an archive.

    Attributes:
        archive: where that lies, the same word whichever way the user wrote it.
        source: the same.
    """

    archive: str
    source: str

    @classmethod
    def of(cls, place: Place, source: SourceName) -> Task:
        """Return the task of an archive's place and a source."""
        if isinstance(source, Volume):
            return cls(archive_word(place), source.lvm_name or os.path.abspath(source.path))  # noqa: PTH100  # a link is a name
        return cls(archive_word(place), source.word)

    @property
    def key(self) -> str:
        """A name for files: readable, and no other task's."""
        return file_name(json.dumps([self.source, self.archive]))

    @property
    def word(self) -> str:
        """What messages call it."""
        return f"{self.source} into {self.archive}"


@dataclass(frozen=True)
class RunRecord:
    """What is remembered of the runs of a task. All times are UTC, ISO 8601.

    Attributes:
        archive, source: of the task.
        began: when the last run began.
        ended: when that ended; None: it has not, or was killed.
        status: the exit status that it ended with.
        line: why it failed; None if it did not.
        seconds: it took.
        bytes: bytes of changes that it took.
        succeeded: when the last one ended that did not fail.
        failed: when the last one ended that did.
        failed_status: exit status of that.
        failed_line: why it failed.
        newest: time of the archive's newest point, as it was last read.
        points: how many the archive had then.
        stored: bytes of its members then.
    """

    archive: str
    source: str
    began: str | None = None
    ended: str | None = None
    status: int | None = None
    line: str | None = None
    seconds: float = 0.0
    bytes: int = 0
    succeeded: str | None = None
    failed: str | None = None
    failed_status: int | None = None
    failed_line: str | None = None
    newest: str | None = None
    points: int | None = None
    stored: int | None = None

    @property
    def task(self) -> Task:
        """What it is of."""
        return Task(self.archive, self.source)


@dataclass(frozen=True)
class TimerNote:
    """What starts the runs of a task.

    Attributes:
        archive, source: of the task.
        files: paths of its unit files, or of its crontab.
        every: how often, as the user wrote it.
        seconds: the longest time between two of its starts; None: not known.
        jitter: seconds that each is put off at the most.
        installed: when it was installed, UTC, ISO 8601.
    """

    archive: str
    source: str
    files: tuple[str, ...]
    every: str
    seconds: int | None
    jitter: int
    installed: str


@dataclass(frozen=True)
class TaskState:
    """A task, as it stands.

    Attributes:
        folder: of its record.
        task: what it is.
        record: of its runs; None: there was none.
        timer: what starts them; None: nothing that we have installed.
        is_running: whether a run is at work now.
    """

    folder: Path
    task: Task
    record: RunRecord | None
    timer: TimerNote | None
    is_running: bool

    @property
    def is_cut_off(self) -> bool:
        """Whether the last run was killed before it could say how it ended."""
        return not self.is_running and self.record is not None and bool(self.record.began) and not self.record.ended


def archive_word(place: Place) -> str:
    """Return the one word for where an archive lies."""
    return str(Path(place.path).resolve()) if isinstance(place, FolderPlace) else str(place)


def task_folder(state: Path, task: Task) -> Path:
    """Return the folder of a task in the state folder."""
    return state / "archives" / task.key


@contextmanager
def lock_task(state: Path, task: Task) -> Iterator[Path]:
    """Hold the lock of a task, and yield its folder.

    Raises:
        ConflictError: another run is at work.
        DeviceError: the state folder cannot be written.
    """
    folder = task_folder(state, task)
    lock = open_lock(folder, state)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another run takes {task.word} just now: nothing was done; wait for it to end", device=task.source
            ) from error
        yield folder
    finally:
        os.close(lock)


def list_tasks(state: Path, archive: str) -> list[TaskState]:
    """Return the tasks of an archive (see `archive_word`) that this machine knows of.

    Raises:
        FormatError: a record cannot be read.
    """
    found = [read_task(folder) for folder in sorted((state / "archives").glob("*"))]
    return [one for one in found if one and one.task.archive == archive]


def read_task(folder: Path) -> TaskState | None:
    """Return the task of a folder, as it stands; None where nothing is remembered of it.

    Raises:
        FormatError: what is remembered cannot be read.
    """
    is_running = is_locked(folder / "lock")  # before the record: a run that ends just now has written it
    record = read_note(folder / "record.json", RunRecord)
    timer = read_note(folder / "timer.json", TimerNote)
    known = record or timer
    return TaskState(folder, Task(known.archive, known.source), record, timer, is_running) if known else None


T = TypeVar("T", RunRecord, TimerNote)


def read_note(path: Path, kind: type[T]) -> T | None:
    """Return what a file holds; None where there is none.

    Raises:
        FormatError: it cannot be read, or is something else.
    """
    return read_json(path, lambda values: _parse(values, kind))


def write_json(path: Path, value: RunRecord | TimerNote) -> None:
    """Replace a file, durably and at once.

    Raises:
        DeviceError: it cannot be written.
    """
    try:
        replace_file(path, json.dumps({"version": VERSION, **asdict(value)}, indent=1))
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}", device=str(path)) from error


def forget_timer(state: Path, task: Task) -> None:
    """Remove what is remembered of a task's timer."""
    remove_file(task_folder(state, task) / "timer.json")


def _parse(values: dict[str, Any], kind: type[T]) -> T:
    if values.pop("version") != VERSION:
        raise ValueError("written by another version")
    unknown = values.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"'{min(unknown)}' is unknown")
    found = read_fields(kind, values)
    if "files" in found:
        found["files"] = tuple(found["files"])
        if not all(isinstance(one, str) for one in found["files"]):
            raise ValueError("'files' is not possible")
    return kind(**found)
