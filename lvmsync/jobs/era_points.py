"""Which era each target of an era device is at: remembered once its copy is durable, and checked the next time.

    STATE/era/LIFE/TARGET.json   one record a target; LIFE names the history that the eras count in

A copy "at era N" holds every write of the eras before N, so that its next changes are those since N. It is
right only in the same history. So a record holds the last era of some blocks as well: one that was not
written since must still have it.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, UsageError
from lvmsync.formats.era import look_up_eras, sample_eras
from lvmsync.jobs.progress import Receipt
from lvmsync.names import EraMetadata, SourceName
from lvmsync.sources import Reading, Source, open_source
from lvmsync.sources.era import INSTEAD, Choice, Seen, open_chosen
from lvmsync.system.ledger import file_name, make_folders, remove_file, replace_file

SAMPLE = 4096
"""Blocks that a record holds the last era of."""


@dataclass(frozen=True)
class Remembered:
    """The era that one target is at.

    Attributes:
        target: as its user names it.
        life: names the history.
        era: changes since this one are what the target lacks.
        size: bytes of the device.
        granularity: bytes of a block.
        time: when: UTC, ISO 8601.
        blocks: some blocks that were not written in ``era`` or later, ascending.
        eras: the last era of each.
    """

    target: str
    life: str
    era: int
    size: int
    granularity: int
    time: str
    blocks: list[int] = field(default_factory=list)
    eras: list[int] = field(default_factory=list)


def era_folder(state: Path) -> Path:
    """Return the folder of all that is kept about era devices."""
    return state / "era"


def life_folder(state: Path, life: str) -> Path:
    """Return the folder of the records of one history."""
    return era_folder(state) / file_name(life)


def list_remembered(state: Path, life: str) -> list[Remembered]:
    """Return the records of one history, by target.

    Raises:
        FormatError: one cannot be read.
    """
    return [_read_record(path) for path in sorted(life_folder(state, life).glob("*.json"))]


def forget(state: Path, life: str) -> None:
    """Remove the records of one history."""
    folder = life_folder(state, life)
    for path in folder.glob("*.json"):
        remove_file(path)
    if folder.is_dir():
        folder.rmdir()


class Memory:
    """What one sync remembers: the era that its target is at, and the one that it will be at.

    Attributes:
        is_used: whether the source starts from what is remembered, and not from what the user said.
    """

    def __init__(self, state: Path, target: str) -> None:
        """Prepare; nothing is read yet.

        Args:
            state: the state folder.
            target: as its user names it.
        """
        self.is_used = False
        self._state = state
        self._target = target
        self._since: int | None = None
        self._next: Remembered | None = None
        self._note = ""

    def open(self, name: SourceName, reading: Reading) -> AbstractContextManager[Source]:
        """Open a source for the sync: of an era device without since=, from the era that the target is at.

        Raises:
            ConflictError: the target is of another history.
            ChangesLost: the history is not what it was.
        """
        if not isinstance(name, EraMetadata):
            return open_source(name, reading)
        self._since = name.since
        return open_chosen(name, reading, self.choose)

    def choose(self, seen: Seen) -> Choice:
        """Return where to start; see `open_chosen`."""
        if seen.life is None:
            if self._since is None:
                raise UsageError(
                    "no device uses this metadata now, so no era is remembered; write era:METADATA,since=N"
                )
            return Choice(self._since)
        since, path = self._since, self._path(seen.life)
        if since is not None:  # the user's word, also where another era is remembered
            found = _read_record(path) if path.exists() else None
            self._plan(seen)
            return Choice(since, found.size, _size_notes(found, seen)) if found else Choice(since)
        found = self._find(seen.life)
        if found is None:
            self._plan(seen)
            return Choice(0, None, (f"No era is remembered for {self._target}: everything is sent.",))
        _require_same_history(found, seen)
        self.is_used = True
        self._plan(seen)
        return Choice(found.era, found.size, _size_notes(found, seen))

    def remember(self, receipt: Receipt) -> Receipt:
        """Remember the era that the target is at now, if its copy is durable; return the receipt with notes."""
        if receipt.dry_run or not (receipt.confirmed and receipt.durable):
            return receipt
        if self._next:
            path = self._path(self._next.life)
            try:
                make_folders(path.parent)
                replace_file(path, json.dumps(asdict(self._next)))
            except OSError as error:
                raise DeviceError(
                    f"the copy is right, but its era {self._next.era} cannot be written to {path}: {error.strerror};"
                    " the next sync sends these changes again",
                    device=str(path),
                ) from error
            for other in self._others(self._next.life):
                remove_file(other)
        return replace(receipt, notes=[*receipt.notes, *([self._note] if self._note else [])])

    def _plan(self, seen: Seen) -> None:
        """Note what will be remembered when all has gone well."""
        if not seen.is_own:
            self._note = (
                "The era of this target was left as it was: between that data and the metadata snapshot there may have"
                " been writes; read from the era device itself (without -r), so that the next run starts from here."
            )
            return
        assert seen.life is not None
        blocks, eras = sample_eras(seen.metadata, seen.era, SAMPLE, seed=seen.era)
        self._next = Remembered(
            self._target,
            seen.life,
            seen.era,
            seen.size,
            seen.metadata.superblock.granularity,
            datetime.now(UTC).isoformat(timespec="seconds"),
            blocks.tolist(),
            eras.tolist(),
        )
        self._note = f"{self._target} is at era {seen.era} now; the next sync sends what was written since then."

    def _find(self, life: str) -> Remembered | None:
        """Return the record of the target; refuse one of another history."""
        path = self._path(life)
        if path.exists():
            return _read_record(path)
        for other in self._others(life):
            record = _read_record(other)
            raise ConflictError(
                f"{self._target} was at era {record.era} of another era device ({record.life}, {record.time}), not of"
                f" this one ({life}): what it lacks is not known; {INSTEAD}",
                device=self._target,
            )
        return None

    def _path(self, life: str) -> Path:
        return life_folder(self._state, life) / f"{file_name(self._target)}.json"

    def _others(self, life: str) -> list[Path]:
        """Return the records of this target in other histories."""
        own = self._path(life)
        return sorted(path for path in era_folder(self._state).glob(f"*/{own.name}") if path != own)


def _read_record(path: Path) -> Remembered:
    try:
        record = Remembered(**json.loads(path.read_text()))
        numbers = [record.era, record.size, record.granularity, *record.blocks, *record.eras]
        if len(record.blocks) != len(record.eras) or not all(isinstance(one, int) and one >= 0 for one in numbers):
            raise ValueError("not what lvmsync writes")
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path} cannot be read ({error}); move it away, and give since=0 once") from error
    return record


def _require_same_history(record: Remembered, seen: Seen) -> None:
    """Raise ChangesLost unless the metadata still counts on from where a target was left."""
    what = f"{record.target} is at era {record.era} ({record.time})"
    if record.era > seen.era:
        raise ChangesLost(
            f"{what}, and the current era is {seen.era}: the metadata was made anew, or restored from an older copy;"
            f" {INSTEAD}",
            device=record.target,
        )
    blocks, eras = np.array(record.blocks, np.uint64), np.array(record.eras, np.uint64)
    kept, now = look_up_eras(seen.metadata, blocks, record.era)
    is_other = now != eras[np.searchsorted(blocks, kept)]
    if record.granularity != seen.metadata.superblock.granularity or is_other.any():
        raise ChangesLost(
            f"{what}, and the metadata does not go on from there (of {len(kept)} blocks that were not written since,"
            f" {int(is_other.sum())} have another era): it was made anew, or restored; {INSTEAD}",
            device=record.target,
        )


def _size_notes(record: Remembered, seen: Seen) -> tuple[str, ...]:
    if record.size == seen.size:
        return ()
    if record.size < seen.size:
        return (f"The device grew from {record.size} to {seen.size} bytes: its new part counts as changed.",)
    return (f"The device shrank from {record.size} to {seen.size} bytes.",)
