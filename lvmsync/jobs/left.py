"""Targets that were removed in the middle of a receive, and those made for a first copy that did not begin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import FormatError, LvmsyncError
from lvmsync.jobs.create import list_half_made
from lvmsync.system import identity, seen
from lvmsync.system.device import open_device
from lvmsync.system.gone import is_gone
from lvmsync.system.ledger import is_locked, open_ledger, remove_file
from lvmsync.system.record import Record, read_record


@dataclass(frozen=True)
class GoneTarget:
    """A target that is no more, and the receive that was not finished on it.

    Attributes:
        target: canonical name.
        began: when that began: UTC, ISO 8601.
    """

    target: str
    began: str

    def __str__(self) -> str:
        return f"{self.target}: it was removed in the middle of a receive that began {self.began}"


def find_gone(state: Path) -> list[GoneTarget]:
    """Return the targets that are no more for certain, and have an unfinished receive in the ledger.

    Args:
        state: the state folder.
    """
    return [
        GoneTarget(record.target, record.transaction.began)
        for record in _list_idle(state)
        if record.transaction and is_gone(record.identity)
    ]


def forget_gone(state: Path, gone: GoneTarget) -> None:
    """Remove what is kept of a target that is no more; nothing is done if it is another one by now.

    Raises:
        ConflictError: another lvmsync works on it.
        DeviceError: the state folder cannot be written.
    """
    with open_ledger(state, gone.target, None, 0) as ledger:
        note = ledger.record.transaction
        if note is None or note.began != gone.began or not is_gone(ledger.record.identity):
            return
        ledger.write(
            transaction=None, point=None, dirty=False, seen=None, held=None, made=False, traces=(), group=None,
            owed=(),  # it led back from what is no more
        )  # fmt: skip
        ledger.sweep()
        for name in ("reserve", "record.json"):
            remove_file(ledger.folder / name)


def list_unused(state: Path) -> list[str]:
    """Return the targets that were made for a first copy, of which nothing has come; one may be at it just now.

    Args:
        state: the state folder.

    Raises:
        CommandError: lvs failed.
    """
    unused = [one.target for one in _list_idle(state) if one.made and one.transaction is None and _is_unused(one)]
    return unused + [f"/dev/{one.full_name}" for one in list_half_made(state)]


def _list_idle(state: Path) -> Iterator[Record]:
    """Yield the records of targets that nobody works on."""
    for path in sorted((state / "targets").glob("*/record.json")):
        try:
            record = read_record(path)
        except FormatError:
            continue  # doctor tells of it
        if record and not is_locked(path.with_name("lock")):
            yield record


def _is_unused(record: Record) -> bool:
    """Tell whether a target that was made is there, and nobody is known to have written to it since."""
    try:
        with open_device(record.target) as device:
            is_same = identity.identify(device.fd) == record.identity
            return is_same and seen.was_written(record.seen, seen.look_at_target(device.fd)) != "yes"
    except LvmsyncError:
        return False
