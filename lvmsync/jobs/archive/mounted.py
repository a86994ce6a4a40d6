"""What is remembered of past states that are mounted: written before anything is made, removed after all is gone.

    STATE/mounts/ID.json     the record
                 ID.lock     held by whoever makes the mount, or takes it down
                 ID.cow      its store, where no other place was asked for

Devices do not outlive the boot, but files and volumes do: by the record they are found.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.fields import read_fields
from lvmsync.system import dm
from lvmsync.system.json_file import read_json
from lvmsync.system.ledger import is_locked, make_folders, remove_file, replace_file

VERSION = 1

_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Mounted:
    """One past state that is mounted, is being mounted, or was when the machine went down.

    Attributes:
        id: random; uuids, names of volumes and files have it.
        archive: what it was called when this was made.
        archive_id: as the catalogue has it.
        point: id of the point.
        number: of the point.
        size: bytes of the device.
        name: of the device.
        store: path of the store's file, or VG/LV of its volume.
        is_volume: which of both.
        boot: id of the boot that it is of.
        began: UTC, ISO 8601.
        is_writable: whether it can be written to.
        is_ready: all is made.
        directory: where it is mounted as a file system.
        mirror: canonical name of the mirror below.
        snapshot: VG/LV of the mirror's snapshot that was taken for this.
    """

    id: str
    archive: str
    archive_id: str
    point: str
    number: int
    size: int
    name: str
    store: str
    is_volume: bool
    boot: str
    began: str
    is_writable: bool = False
    is_ready: bool = False
    directory: str | None = None
    mirror: str | None = None
    snapshot: str | None = None

    @property
    def path(self) -> str:
        """Of its device."""
        return str(dm.NODES / self.name)

    def __str__(self) -> str:
        where = f", on {self.directory}" if self.directory else ""
        return f"{self.path} (point #{self.number} of {self.archive}{where})"


def record_path(state: Path, mount: str, suffix: str = "json") -> Path:
    """Return the path of a mount's file: ``json``, ``lock`` or ``cow``."""
    return state / "mounts" / f"{mount}.{suffix}"


def write_record(state: Path, record: Mounted) -> None:
    """Write a record, durably and at once.

    Raises:
        DeviceError: the state folder cannot be written.
    """
    path = record_path(state, record.id)
    try:
        make_folders(path.parent)
        replace_file(path, json.dumps({"version": VERSION, **asdict(record)}, indent=1))
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}", device=str(path)) from error


def forget(state: Path, record: Mounted) -> None:
    """Remove a record of which nothing is left, durably."""
    remove_file(record_path(state, record.id))
    remove_file(record_path(state, record.id, "lock"))


def list_mounted(state: Path) -> list[Mounted]:
    """Return all records, the oldest first.

    Raises:
        FormatError: one cannot be read.
    """
    found = [read_record(path) for path in (state / "mounts").glob("*.json")]
    return sorted((one for one in found if one), key=lambda one: (one.began, one.id))


def read_record(path: Path) -> Mounted | None:
    """Return the record in a file; None where there is no file.

    Raises:
        FormatError: it cannot be read, or is none.
    """

    def parse(values: Any) -> Mounted:
        if not isinstance(values, dict) or values.pop("version", None) != VERSION:
            raise ValueError("no record of a mount, or one of another version")
        record = Mounted(**read_fields(Mounted, values))
        if not _ID.fullmatch(record.id) or path.name != f"{record.id}.json":
            raise ValueError(f"'{record.id}' is not its id")
        return record

    return read_json(path, parse)


@contextmanager
def lock_mount(state: Path, mount: str) -> Iterator[None]:
    """Let one run at a time make a mount or take it down.

    Raises:
        ConflictError: another one does.
        DeviceError: the state folder cannot be written.
    """
    path = record_path(state, mount, "lock")
    try:
        make_folders(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}", device=str(path)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConflictError(f"another lvmsync is making mount {mount}, or takes it down; wait for it") from error
    finally:
        os.close(fd)


def is_busy(state: Path, mount: str) -> bool:
    """Tell whether a run makes a mount, or takes it down, at this moment."""
    return is_locked(record_path(state, mount, "lock"))
