"""The state folder: what lvmsync knows of each target, and the one place where a transaction is committed.

    STATE/targets/NAME-HASH/lock         held by whoever works on the target
                            record.json  the record; replaced by rename, and that rename is the commit
                            reserve      room for the next record, on a disk that an undo or a spool has filled
                            ID.undo      what transaction ID has overwritten (unless kept as a snapback)
                            ID.spool     the stream of a transaction that is staged first
                            ID.*-check   how much of either counts after a crash, with proof
                            ID.progress  how far the target is changed, as long as the machine runs
                            ID.traces    what some of the changed places hold, to go on with
    STATE/making/NAME                    a volume that is being made; it has no identity yet (see `jobs.create`)
    STATE/groups/ID.json                 a group that is committed: its prepared members go forward, not back

STATE is ``$LVMSYNC_STATE``, else ``/var/lib/lvmsync`` for root, else ``$XDG_STATE_HOME/lvmsync``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvmsync.errors import ConflictError, DeviceError, FormatError
from lvmsync.system.record import Record, read_record

_RESERVE = 128 << 10
_OF_TRANSACTIONS = (".undo", ".spool", ".undo-check", ".spool-check", ".undo-check-new", ".progress", ".traces")


def state_folder(given: str | None = None) -> Path:
    """Return the state folder: ``given``, or the default of this user."""
    chosen = given or os.environ.get("LVMSYNC_STATE")
    if chosen:
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/lvmsync")
    home = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    return Path(home) / "lvmsync"


class Ledger:
    """The record of one target, locked; made by `open_ledger`.

    Attributes:
        folder: where the record and the target's transaction files are.
        record: as last read or written.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record

    def write(self, **changes: Any) -> None:
        """Replace fields of the record, durably and at once: a crash leaves the old record or the new one.

        On a full disk the reserve is given up for it: this is for what ends or leaves a transaction.
        """
        self.record = replace(self.record, **changes)
        try:
            try:
                self._replace_record()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._reserve.exists():
                    raise
                self._reserve.unlink()
                self._replace_record()
        except OSError as error:
            raise self._failed(error) from error

    def write_ahead(self, **changes: Any) -> None:
        """Do as `write`, before a transaction begins or goes on: only with room kept for the note that ends it.

        Raises:
            DeviceError: it failed; if the record has not changed, there was no room.
        """
        try:
            self._take_reserve()
            self.record = replace(self.record, **changes)
            self._replace_record()
        except OSError as error:
            raise self._failed(error) from error

    def path(self, transaction: str, suffix: str) -> Path:
        """Return the path of a transaction's file: ``suffix`` is one of ``_OF_TRANSACTIONS``, without the dot."""
        return self.folder / f"{transaction}.{suffix}"

    def _failed(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"cannot write the ledger in {self.folder}: {error.strerror}; make room there, or mend it",
            device=str(self.folder),
        )

    @property
    def _reserve(self) -> Path:
        return self.folder / "reserve"

    def _take_reserve(self) -> None:
        """Take room for a record, so that a transaction can be closed when its own files have filled the disk."""
        fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _RESERVE)
        finally:
            os.close(fd)

    def _replace_record(self) -> None:
        replace_file(self.folder / "record.json", self.record.to_json())

    def sweep(self) -> None:
        """Remove the files of transactions that are over: a crash may have come before their removal."""
        keep = {self.record.transaction.id} if self.record.transaction else set()
        keep |= {one.id for one in self.record.owed}
        for path in self.folder.glob("*.*"):
            if path.suffix in _OF_TRANSACTIONS and path.stem not in keep:
                with contextlib.suppress(OSError):  # nothing needs it, and the next one tries again
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_ledger(state: Path, target: str, identity: dict[str, str] | None, size: int) -> Iterator[Ledger]:
    """Lock a target's ledger entry and yield it; a target that has none gets an empty record (not yet written).

    Args:
        state: the state folder; made when missing.
        target: canonical name of the target.
        identity: of the device that is there now; None: of a file that is gone, whose last record is wanted.
        size: its size in bytes.

    Raises:
        ConflictError: another lvmsync works on the target, or an unfinished transaction is of another
            device that had the same name.
        FormatError: the record cannot be read.
    """
    folder = state / "targets" / file_name(target)
    lock = open_lock(folder, state)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"another lvmsync is working on {target}; wait for it to end", device=target) from error
        record, old = _find_record(folder, Record(target, identity or {}, size))
        if old:
            _move_record(record, old, folder)
        yield Ledger(folder, record)
    finally:
        os.close(lock)


def peek_record(state: Path, target: str, identity: dict[str, str] | None, size: int) -> tuple[Record, Path, bool]:
    """Return a target's record as it is now, its folder, and whether somebody works on it; nothing is made or locked.

    Args:
        state, target, identity, size: as of `open_ledger`.

    Raises:
        ConflictError, FormatError: as `open_ledger`.
    """
    folder = state / "targets" / file_name(target)
    return _find_record(folder, Record(target, identity or {}, size))[0], folder, is_locked(folder / "lock")


def open_lock(folder: Path, state: Path) -> int:
    """Open the file that a folder of the state folder is locked by, made when missing; the caller closes it.

    Raises:
        DeviceError: the state folder cannot be written.
    """
    try:
        make_folders(folder)
        return os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(
            f"cannot use the state folder {state}: {error.strerror}; choose another with --state", device=str(state)
        ) from error


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock of a file; no if it is not there."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _find_record(folder: Path, fresh: Record) -> tuple[Record, Path | None]:
    """Return the record in ``folder`` if it is of the same device, else ``fresh``.

    Of a volume of LVM that was renamed it is the one that its old name has, at rest; that folder is returned as well.
    """
    path = folder / "record.json"
    record = read_record(path)
    if record and (record.identity == fresh.identity or not fresh.identity):
        return replace(record, size=fresh.size), None
    if record and record.transaction and not _is_gone(record):
        raise ConflictError(
            f"{fresh.target} was another device ({_words(record.identity)}) when a transaction was left unfinished on"
            f" it; now it is {_words(fresh.identity)}: bring that device back and run 'lvmsync recover', or move"
            f" {path} away",
            device=fresh.target,
        )
    if not fresh.identity.get("dm uuid", "").startswith("LVM-"):  # no other name tells of one device only
        return fresh, None
    found = [(one, path.parent) for path in folder.parent.glob("*/record.json") if (one := _read_other(path))]
    same = [(one, old) for one, old in found if one.identity == fresh.identity]
    if len(same) != 1 or same[0][0].transaction:  # of two, nobody knows which is right; and a transaction has files
        return fresh, None
    return replace(same[0][0], target=fresh.target, size=fresh.size), same[0][1]


def _is_gone(record: Record) -> bool:
    from lvmsync.system.gone import is_gone  # asks LVM, which is seldom needed

    return is_gone(record.identity)


def _read_other(path: Path) -> Record | None:
    """Return another target's record; None where it cannot be read: whoever works on that target is told."""
    try:
        return read_record(path)
    except FormatError:
        return None


def _move_record(record: Record, old: Path, folder: Path) -> None:
    """Move the record of a volume that was renamed, by the holder of its new name's lock.

    The new one comes first: a crash leaves both, and each name has its own then.

    Raises:
        ConflictError: another lvmsync works on a target of the old name.
        DeviceError: the state folder cannot be written.
    """
    try:
        lock = os.open(old / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for owed in record.owed:  # first, since under the new name they are looked for here
                with contextlib.suppress(FileNotFoundError):
                    (old / f"{owed.id}.undo").rename(folder / f"{owed.id}.undo")
            replace_file(folder / "record.json", record.to_json())
            (old / "record.json").unlink()
            sync_folder(old)
        finally:
            os.close(lock)
    except BlockingIOError as error:
        raise ConflictError(
            f"another lvmsync is working on what had the name of {record.target} before; wait for it to end",
            device=record.target,
        ) from error
    except OSError as error:
        raise DeviceError(
            f"cannot move the record of {record.target} from {old}: {error.strerror}", device=str(old)
        ) from error


def _words(identity: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in identity.items())


def file_name(word: str) -> str:
    """Return a name for a file about ``word`` (a path, a uuid): readable, and no other word's."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", word).strip("-")[-60:]
    return f"{slug}-{hashlib.sha256(word.encode()).hexdigest()[:12]}"


def replace_file(path: Path, text: str) -> None:
    """Write a line of text to a file, durably and at once: a crash leaves the old file or the new one.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def make_folders(folder: Path) -> None:
    """Make ``folder`` and what is above it, each one durable in its parent."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, durably; it may be gone already, and its folder, too.

    Raises:
        DeviceError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileNotFoundError:
        pass  # the folder is gone
    except OSError as error:
        raise DeviceError(f"cannot remove {path}: {error.strerror}", device=str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
