"""What the ledger holds of a target, and how that is read: whatever is in the file, it is what we write, or refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lvmsync.extents import MAX_SIZE
from lvmsync.fields import read_fields
from lvmsync.history import Point
from lvmsync.stream.frames import DELTA, FULL, MAX_SAMPLE, SNAPBACK, Sample
from lvmsync.system.json_file import read_json

VERSION = 1
_NEWER = frozenset(("archive", "before", "owed", "same"))
"""Fields that a record of an older lvmsync does not have."""

PHASES = ("staging", "staged", "applying", "prepared", "undoing", "undone")


@dataclass(frozen=True)
class Transaction:
    """A receive that has begun and has not been committed.

    Attributes:
        id: a random word; the names of its files begin with it.
        undo: path of the undo file; None where there is no way back, or nothing was changed yet.
        snapback: where the user wants the undo file, kept after the commit; None: it is dropped then.
        created: the target is a file that this transaction made: going back means removing it.
        spool: path of the staged stream; None where the stream is applied as it comes.
        phase: "staging": the spool grows, the target is untouched; "staged": the spool is whole and durable,
            the target is untouched; "applying": the target is being changed; "prepared": it is wholly new
            and durable, and is committed together with the others of its group; "undoing": what was
            overwritten is being written back; "undone": everything is back as
            it was, and only files are left to be removed.
        began: UTC, ISO 8601.
        extents: how many extents are durable on the target (at the last mark).
        changed_bytes: how many bytes those cover.
        point: the point that the target will be at.
        base: the point that the stream starts from; None where it names none.
        intent: of the stream.
        size: bytes of the device that the stream is of; None where it does not tell.
        resumable: a stream that is cut may be gone on with.
        offset: all changes below this byte of the device are durable on the target.
        undo_size: bytes of the undo file that were durable before those were: what they have overwritten.
        spool_size: bytes of the spool, once it is whole.
        group: id of the group that it is committed with.
        held: what the record's ``held`` will be, once it is prepared.
        is_proved: when it began, the target was known to be untouched since the record's point was committed.
        seen: the record's ``seen`` when it began; None also if nothing followed from it.
        traces: what the record's ``traces`` will be, once it is prepared.
        was_dirty: when it began, what the target holds was not known: going back does not change that.
        archive: that is to have what was overwritten, once it is committed; None: there is none.
        before: the point of that archive which it leads back to; None: to none that is known.
    """

    id: str
    undo: str | None = None
    snapback: str | None = None
    created: bool = False
    spool: str | None = None
    phase: str = "applying"
    began: str = ""
    extents: int = 0
    changed_bytes: int = 0
    point: Point | None = None
    base: Point | None = None
    intent: str = "delta"
    size: int | None = None
    resumable: bool = False
    offset: int = 0
    undo_size: int = 0
    spool_size: int = 0
    group: str | None = None
    held: int | None = None
    is_proved: bool = False
    seen: dict[str, str] | None = None
    traces: tuple[Sample, ...] = ()
    was_dirty: bool = False
    archive: str | None = None
    before: Point | None = None


@dataclass(frozen=True)
class Owed:
    """What an archive is to be given of a transaction that is committed.

    Attributes:
        id: of the transaction; its undo file is what is owed, if ``before`` says where that leads.
        archive: where that lies.
        point: the one that the target was brought to.
        before: the one that the undo leads back to; None: only that the target is at ``point`` is to be known there.
        size: bytes of the target.
    """

    id: str
    archive: str
    point: Point
    before: Point | None
    size: int


@dataclass(frozen=True)
class Record:
    """What the ledger holds of one target.

    Attributes:
        target: canonical name.
        identity: what makes it this device and no other (see `system.identity`).
        size: bytes, when it was last seen.
        point: the last committed point; None where no stream told one.
        transaction: the one that is open; None at rest.
        dirty: a sync failed, or there is no way back: what the target holds is not known.
        held: bytes of the target that the point is about, where it was smaller than its source; None: all.
        seen: what the target looked like when we were last done with it (see `system.seen`); None: not known.
        made: lvmsync made it, and nothing was committed to it since: it holds nothing to go back to.
        traces: what some of the places hold that were changed last, as long as it is at that point (see `jobs.traces`).
        group: id of the group that the point was committed with; None: it was committed alone.
        owed: what archives have not been given yet, oldest first.
        same: ids of points that are one state, nothing having been changed from one to the next: first the one that
            this is about, which holds as long as that is ``point``, then older ones.
    """

    target: str
    identity: dict[str, str]
    size: int
    point: Point | None = None
    transaction: Transaction | None = None
    dirty: bool = False
    held: int | None = None
    seen: dict[str, str] | None = None
    made: bool = False
    traces: tuple[Sample, ...] = ()
    group: str | None = None
    owed: tuple[Owed, ...] = ()
    same: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of all points that the target is at."""
        if self.point is None:
            return ()
        return self.same if self.same[:1] == (self.point.id,) else (self.point.id,)

    def to_json(self) -> str:
        """Return it as it is kept in its file; what an older lvmsync does not know only where it is needed."""
        values = asdict(self)
        for found in (values, values["transaction"] or {}):
            for name in _NEWER & found.keys():
                if not found[name]:
                    del found[name]
        return json.dumps({"version": VERSION, **values}, indent=1)


def read_record(path: Path) -> Record | None:
    """Return the record in a file; None where there is no file.

    Raises:
        FormatError: it cannot be read, or is none.
    """
    return read_json(path, _parse, name="ledger")


def _parse(values: dict[str, Any]) -> Record:
    version = values.pop("version", None) if isinstance(values, dict) else None
    if type(version) is not int or version != VERSION:
        raise ValueError("no record, or one of another version")
    found = _read_all(Record, values)
    if found["transaction"] is not None:  # an empty one is damaged, and no rest
        found["transaction"] = _parse_transaction(found["transaction"])
    found["owed"] = tuple(_parse_owed(one) for one in found.get("owed", ()))
    found["same"] = tuple(found.get("same", ()))
    if not all(isinstance(name, str) for name in found["same"]):
        raise ValueError("'same' is no list of names")
    return Record(**found)


def _parse_owed(values: dict[str, Any]) -> Owed:
    owed = Owed(**_read_all(Owed, values))
    _require_id(owed.id)
    return owed


def _parse_transaction(values: dict[str, Any]) -> Transaction:
    note = Transaction(**_read_all(Transaction, values))
    _require_id(note.id)
    if note.phase not in PHASES or note.intent not in (DELTA, FULL, SNAPBACK):
        raise ValueError(f"no transaction is {note.phase!r}, or brings {note.intent!r}")
    if note.offset > (MAX_SIZE if note.size is None else note.size):
        raise ValueError(f"a transaction of {note.size} bytes cannot stand at byte {note.offset}")
    for path in (note.undo, note.snapback, note.spool):
        if path is not None and (not path.startswith("/") or "\0" in path):
            raise ValueError(f"{path!r} is no path")
    return note


def _require_id(word: str) -> None:
    if not re.fullmatch("[0-9a-f]{1,64}", word):  # names of files begin with it
        raise ValueError(f"a transaction cannot have the id {word!r}")


def _read_all(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all fields; points and traces, which Record and Transaction share, as what they are."""
    found = read_fields(kind, values)
    wrong = {field.name for field in fields(kind)} ^ values.keys()
    if wrong - (_NEWER - values.keys()):
        raise ValueError(f"{sorted(wrong)} are missing, or unknown")
    for name in ("point", "base", "before"):
        if found.get(name) is not None:
            found[name] = Point(**_read_all(Point, found[name]))
    if "traces" in found:
        found["traces"] = tuple(_read_trace(*one) for one in found["traces"])
    return found


def _read_trace(offset: Any, length: Any, digest: Any) -> Sample:
    is_range = type(offset) is int and type(length) is int and 0 <= offset <= MAX_SIZE and 0 < length <= MAX_SAMPLE
    if not is_range or not isinstance(digest, str):
        raise ValueError(f"{[offset, length, digest]!r} is no trace")
    return Sample(offset, length, digest)
