"""What the source's machine remembers of its replicas.

    STATE/replicas/lock            held while a replica is looked for or made
                   ID/lock         held by whoever works on the replica
                      record.json  the record; replaced by rename

A record only helps: it says which snapshots belong to which target, and what was being done. What the snapshots
hold, their tags and LVM ids say; what the target holds, its own ledger. So a lost record is found again by those.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.fields import read_fields
from lvmsync.system.json_file import read_json
from lvmsync.system.ledger import is_locked, open_lock, replace_file

VERSION = 1

_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Record:
    """A replica, as the source's machine remembers it.

    Attributes:
        id: 16 hex digits; in the tags of its snapshots.
        source_id: LVM id of the volume (64 letters), which stays when it is renamed.
        source: its name when it was last used, VG/LV.
        target: word of the target, as its user wrote it.
        identity: what made the target's device this one and no other, when it was last brought up to date.
        base: LVM id of the snapshot that the target holds, as far as we know.
        base_look: what the kernel had counted on the source right before it was taken (see `system.seen`); None: not
            known.
        head: LVM id of the snapshot that was being sent; None: none is.
        head_look: the same for that.
        cuts: how often sending it was gone on with.
        committed: when the target was last brought up to date: UTC, ISO 8601.
        rate: bytes of changes a second, in the last pass that was large enough to tell.
    """

    id: str
    source_id: str
    source: str
    target: str
    identity: dict[str, str] | None = None
    base: str | None = None
    base_look: dict[str, str] | None = None
    head: str | None = None
    head_look: dict[str, str] | None = None
    cuts: int = 0
    committed: str | None = None
    rate: float | None = None


class Notebook:
    """The record of one replica, locked; made by `open_record`.

    Attributes:
        folder: where it is.
        record: as last read or written.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record

    def write(self, **changes: Any) -> None:
        """Replace fields of the record, durably and at once.

        Raises:
            DeviceError: the state folder cannot be written.
        """
        self.record = replace(self.record, **changes)
        _write(self.folder, self.record)

    @property
    def is_of_nothing(self) -> bool:
        """Whether nothing is remembered of a copy, nor of anything that could become one."""
        record = self.record
        return record.base is None and record.head is None and record.committed is None

    def forget(self) -> None:
        """Remove the record: the replica is no more. Its lock is kept until the end."""
        try:
            (self.folder / "record.json").unlink(missing_ok=True)
        except OSError as error:
            raise DeviceError(f"cannot remove {self.folder}: {error.strerror}", device=str(self.folder)) from error


def list_records(state: Path) -> list[Record]:
    """Return what is remembered of all replicas.

    Args:
        state: the state folder.

    Raises:
        FormatError: a record cannot be read.
    """
    records = (_read(folder) for folder in sorted((state / "replicas").glob("*")) if _ID.fullmatch(folder.name))
    return [record for record in records if record]


def find_record(state: Path, source_id: str, target: str) -> Record | None:
    """Return the record of a volume (by its LVM id) and a target (by its word); None if there is none."""
    found = [one for one in list_records(state) if (one.source_id, one.target) == (source_id, target)]
    return max(found, key=lambda one: one.committed or "", default=None)


def is_busy(state: Path, replica: str) -> bool:
    """Tell whether a run works on a replica at this moment."""
    return bool(_ID.fullmatch(replica)) and is_locked(state / "replicas" / replica / "lock")


@contextmanager
def open_record(
    state: Path, source_id: str, source: str, target: str, replica: str | None = None, *, is_dry: bool = False
) -> Iterator[Notebook]:
    """Lock the record of a replica and yield it; one that has none gets a new record.

    Args:
        state: the state folder.
        source_id: LVM id of the volume.
        source: its name, VG/LV.
        target: word of the target.
        replica: id that the tags of snapshots tell; None: the one that is remembered, or a new one.
        is_dry: nothing is to be written.

    Raises:
        ConflictError: another run works on the replica.
        FormatError: a record cannot be read.
    """
    root = state / "replicas"
    looking = open_lock(root, state)
    try:
        fcntl.flock(looking, fcntl.LOCK_EX)  # for moments only
        known = find_record(state, source_id, target)
        chosen = replica or (known.id if known else secrets.token_hex(8))
        fresh = Record(chosen, source_id, source, target)
        lock = _lock(root, chosen, state, f"{source} and its copy {target}")
        try:
            record = _read(root / chosen) or fresh
            if record.source_id != source_id:
                record = fresh  # the id comes from the tags of this volume's snapshots
            record = replace(record, source=source, target=target)
            if not is_dry and (
                known is None or known.id != chosen
            ):  # so that another run of the same finds this one, and its lock
                _write(root / chosen, record)
        except BaseException:
            os.close(lock)
            raise
    finally:
        os.close(looking)
    try:
        yield Notebook(root / chosen, record)
    finally:
        try:
            _remove_empty(root, chosen, state)
        finally:
            os.close(lock)


@contextmanager
def lock_replica(state: Path, replica: str) -> Iterator[None]:
    """Hold the lock of a replica of which nothing is remembered here.

    Args:
        state: the state folder.
        replica: its id, as a tag tells it. No run has one that is none of ours.

    Raises:
        ConflictError: a run works on it.
    """
    if not _ID.fullmatch(replica):
        yield
        return
    root = state / "replicas"
    looking = open_lock(root, state)
    try:
        fcntl.flock(looking, fcntl.LOCK_EX)  # for moments only
        lock = _lock(root, replica, state, f"replica {replica}")
    finally:
        os.close(looking)
    try:
        yield
    finally:
        try:
            _remove_empty(root, replica, state)
        finally:
            os.close(lock)


def _lock(root: Path, replica: str, state: Path, what: str) -> int:
    """Lock a replica, by a caller that has the lock of all; return what is to be closed."""
    lock = open_lock(root / replica, state)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConflictError(f"another lvmsync works on {what}; wait for it to end") from error
    return lock


def _remove_empty(root: Path, replica: str, state: Path) -> None:
    """Remove the folder of a replica without a record, by the holder of its lock.

    Whoever opens that lock does so under the lock of all, and does not wait for it: nobody has it open now.
    """
    folder = root / replica
    if (folder / "record.json").exists():
        return
    looking = open_lock(root, state)
    try:
        fcntl.flock(looking, fcntl.LOCK_EX)
        with suppress(OSError):  # an empty folder more does no harm
            (folder / "lock").unlink()
            folder.rmdir()
    finally:
        os.close(looking)


def _write(folder: Path, record: Record) -> None:
    try:
        replace_file(folder / "record.json", json.dumps({"version": VERSION, **asdict(record)}, indent=1))
    except OSError as error:
        raise DeviceError(f"cannot write the record in {folder}: {error.strerror}", device=str(folder)) from error


def _read(folder: Path) -> Record | None:
    def parse(values: Any) -> Record:
        if values.pop("version") != VERSION:
            raise ValueError("written by another version")
        record = Record(**read_fields(Record, values))
        if record.id != folder.name:
            raise ValueError(f"it is of {record.id!r}")
        return record

    way = "move it away: it is found again by the tags of the snapshots"
    return read_json(folder / "record.json", parse, name="the replica's record", way=way)
