"""Which snapshot of blksnap each target is at: remembered once its copy is durable, and checked the next time.

    STATE/blksnap/bases/TARGET.json   one record a target; or a file that the user names

A copy of the image of snapshot N holds every write before it, so that its next changes are the blocks whose
byte in a later map is above N. That holds in one generation of the map only, which a reboot, a reload of the
module, a resize and the 255th snapshot all end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, FormatError
from lvmsync.formats.blksnap import MAX_NUMBER, Tracking, decide
from lvmsync.jobs.progress import Receipt
from lvmsync.names import BlockMap, SourceName
from lvmsync.sources import Reading, Source, open_source
from lvmsync.sources.blksnap import Choice, Seen, is_device, open_live, take_word
from lvmsync.system.ledger import file_name, make_folders, replace_file

_VERSION = 1
_NUMBER = "device number"  # what identifies a device that has nothing better: it may change with a reboot


@dataclass(frozen=True)
class Base:
    """The snapshot that one target is at.

    Attributes:
        target: as its user names it.
        device: path of the tracked device.
        identity: what makes it this device and no other.
        boot: id of the boot that the snapshot was taken in.
        tracking: what the module said of the device, the snapshot's number included.
        time: when: UTC, ISO 8601.
        sequence: the kernel's number of the disk being there; None: it told none.
    """

    target: str
    device: str
    identity: dict[str, str]
    boot: str
    tracking: Tracking
    time: str
    sequence: str | None = None


def blksnap_folder(state: Path) -> Path:
    """Return the folder of all that is kept about blksnap."""
    return state / "blksnap"


def list_bases(state: Path) -> list[Base]:
    """Return the records in the state folder, by target.

    Raises:
        FormatError: one cannot be read.
    """
    found = [_read(path) for path in sorted((blksnap_folder(state) / "bases").glob("*.json"))]
    return [one for one in found if one]


class Memory:
    """What one sync remembers: the snapshot that its target is at, and the one that it will be at.

    Attributes:
        is_used: whether the source starts from what is remembered.
    """

    def __init__(self, state: Path, target: str, file: Path | None = None) -> None:
        """Prepare; nothing is read yet.

        Args:
            state: the state folder.
            target: as its user names it.
            file: of the record, where the user names one.
        """
        self.is_used = False
        self._target = target
        self._path = file or blksnap_folder(state) / "bases" / f"{file_name(target)}.json"
        self._is_own = file is None
        self._next: Base | None = None

    def open(
        self,
        name: SourceName,
        reading: Reading,
        otherwise: Callable[[SourceName, Reading], AbstractContextManager[Source]] = open_source,
    ) -> AbstractContextManager[Source]:
        """Open a source for a sync: of a tracked device without since=, from the snapshot that the target is at.

        Args:
            name: of the source.
            reading: what is wanted of it.
            otherwise: opens what is no tracked device.

        Raises:
            ChangesLost: the target is of another generation.
        """
        if not isinstance(name, BlockMap) or not is_device(name):
            return otherwise(name, reading)
        return open_live(name, reading, self.choose if name.since is None else self._plan_chosen(name.since))

    def choose(self, seen: Seen) -> Choice:
        """Return where to start; see `open_live`."""
        base = self.read()
        self._plan(seen)
        if base is None:
            return Choice(None, notes=(f"No snapshot is remembered for {self._target}: everything is sent.",))
        what = f"{self._target} is at snapshot {base.tracking.number} ({base.time})"
        if base.identity != seen.identity:
            other = f"{what} of another device ({base.device}, {_words(base.identity)})"
            if _NUMBER not in {*base.identity, *seen.identity}:
                raise ConflictError(
                    f"{other}, not of {seen.device.path} ({_words(seen.identity)}): were disks swapped? If that"
                    " one is to be copied there from now on, give 'lvmsync blksnap sync --compare' once",
                    device=seen.device.path,
                )
            return Choice(None, other)
        if base.boot != seen.boot:
            return Choice(None, f"{what}, and the machine was started anew since: the map began anew as well")
        if base.sequence and seen.sequence and base.sequence != seen.sequence:
            return Choice(None, f"{what}, and {seen.device.path} was away since, where writes are not seen")
        decision = decide(base.tracking, seen.tracking)
        if decision.since is None:
            return Choice(None, f"{what}: {decision.why}")
        self.is_used = True
        return Choice(decision.since)

    def start_anew(self, seen: Seen) -> Choice:
        """Return that everything is to be compared, whatever is remembered."""
        self._plan(seen)
        return Choice(None, "A comparison was asked for")

    def read(self) -> Base | None:
        """Return what is remembered of the target; None: nothing.

        Raises:
            FormatError: it cannot be read.
            ConflictError: it is of another target.
        """
        base = _read(self._path)
        if base and base.target != self._target:
            raise ConflictError(
                f"{self._path} is of the target {base.target}, not of {self._target}; name another file with --base",
                device=str(self._path),
            )
        return base

    def remember(self, receipt: Receipt) -> Receipt:
        """Remember the snapshot that the target is at now, if its copy is durable; return the receipt with notes."""
        if receipt.dry_run or self._next is None or not (receipt.confirmed and receipt.durable):
            return receipt
        new, number = self._next, self._next.tracking.number
        try:
            if self._is_own:
                make_folders(self._path.parent)
            replace_file(self._path, json.dumps({"version": _VERSION, **asdict(new)}, indent=1))
        except OSError as error:
            raise DeviceError(
                f"the copy is right, but its snapshot {number} cannot be written to {self._path}: {error.strerror}; the"
                " next sync sends these changes again",
                device=str(self._path),
            ) from error
        # After 255 the numbers begin again, in the very generation that it says: `decide` sees to that.
        then = (
            "compares all of it, for the count begins anew"
            if number == MAX_NUMBER
            else "sends what is written after it"
        )
        note = f"{self._target} is at snapshot {number} now; the next sync {then}."
        return replace(receipt, notes=[*receipt.notes, note])

    def _plan_chosen(self, since: int) -> Callable[[Seen], Choice]:
        def choose(seen: Seen) -> Choice:
            self._plan(seen)
            return take_word(since, seen)

        return choose

    def _plan(self, seen: Seen) -> None:
        """Note what will be remembered when all has gone well."""
        if not seen.is_own:
            return  # between that data and the snapshot there may have been writes
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self._next = Base(self._target, seen.device.path, seen.identity, seen.boot, seen.tracking, time, seen.sequence)


def _words(identity: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in identity.items())


def _read(path: Path) -> Base | None:
    try:
        values = json.loads(path.read_text())
        if values.pop("version") != _VERSION:
            raise ValueError("written by another version")
        tracking = Tracking(**values.pop("tracking"))
        numbers = [tracking.number, tracking.block_size, tracking.block_count, tracking.capacity]
        base = Base(tracking=tracking, **values)
        words = [base.target, base.device, base.boot, base.time, tracking.generation]
        words += [base.sequence or "", *base.identity, *base.identity.values()]
        if not all(type(one) is int and one >= 0 for one in numbers) or not all(isinstance(one, str) for one in words):
            raise ValueError("not what lvmsync writes")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{path} cannot be read ({error}); move it away, and everything is sent once", device=str(path)
        ) from error
    return base
