"""What is refused of a stream before anything is written: the wrong size, the wrong base, a target that has changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from lvmsync.errors import ConflictError, DeviceError, UsageError
from lvmsync.history import UNNAMED, Point
from lvmsync.jobs.samples import check_samples, find_different
from lvmsync.jobs.traces import find_lost
from lvmsync.jobs.way_back import find_place, find_saved
from lvmsync.stream.frames import DELTA, FULL, SNAPBACK, Header, Sample
from lvmsync.system import record as records
from lvmsync.system import seen
from lvmsync.system.ledger import Ledger
from lvmsync.targets.block import BlockTarget

if TYPE_CHECKING:
    from lvmsync.jobs.receive import ReceiveOptions


@dataclass(frozen=True)
class Checks:
    """One stream, held against the target that it is for.

    Attributes:
        options: of the receive.
        header: of the stream.
        version: of its format.
        target: claimed.
        ledger: of the target, locked.
        written: whether the target was written to since its ledger entry was.
        look: what it looks like now.
    """

    options: ReceiveOptions
    header: Header
    version: int
    target: BlockTarget
    ledger: Ledger
    written: seen.Written
    look: dict[str, str] | None

    def run(self) -> list[str]:
        """Check everything, and return what the user should know.

        Raises:
            DeviceError: the target is too small.
            ConflictError: it is not what the changes start from, or another transaction is open than this goes on with.
        """
        self._check_open()
        notes = self._check_size()
        if self.target.created and self.header.intent == DELTA:
            notes.append(f"{self.target.name} is new: it holds the changes alone, and zeros elsewhere")
        if self.version == 3:
            notes.append("a PROTO[3] stream has no size, checksums or end mark: whether it is whole cannot be known")
        if self.header.resume is None:
            self._check_dirty()
            notes += [*self._check_held(), *self._check_base(), *self._check_written()]
            self._check_traces()
            self._check_samples(self.header.samples)
        return notes

    def check_resumed(self) -> None:
        """Hold a target whose transaction goes on against the samples of its base.

        What lay past the place where it goes on is as it was by now; below it, what is in the undo was changed.

        Raises:
            ConflictError: somebody else wrote to it.
        """
        note = self.ledger.record.transaction
        if note and note.undo:  # else nothing was saved, so what was changed is not known
            saved = find_saved(note, self.header.samples)
            self._check_samples([one for one in self.header.samples if one not in saved])

    def _check_open(self) -> None:
        """Refuse to begin while a transaction is open, and to go on with another one than that."""
        note, name = self.ledger.record.transaction, self.target.name
        if note is None:
            if self.header.resume is None:
                return
            raise self._refuse(
                f"{name} has no unfinished transaction, and the stream goes on with {self.header.transaction}: it is"
                " done, or was undone; begin anew"
            )
        if self.header.resume is not None:
            self._check_resumed(note)
        elif not (self.options.restart and _may_be_begun_anew(note) and self.header.intent == FULL):
            way = "send the same again to go on with it, or run" if note.resumable else "run"
            raise self._refuse(
                f"{name} has an unfinished transaction of {note.began}: {way} 'lvmsync recover {name}' first"
            )

    def _check_resumed(self, note: records.Transaction) -> None:
        """Believe nothing of what the stream says about the open transaction: it must say what the ledger does."""
        header, name = self.header, self.target.name
        if not note.resumable or note.phase != "applying":
            raise self._refuse(
                f"the unfinished transaction of {name} cannot be gone on with: run 'lvmsync recover {name}' first"
            )
        snapback = self.options.snapback
        pairs = {
            "transaction": (note.id, header.transaction),
            "base": (_id(note.base), _id(header.base)),
            "head": (_id(note.point), _id(header.head)),
            "kind": (note.intent, header.intent),
            "size": (note.size, header.size),
            "place": (self._find_offset(), header.resume),
            "group": (note.group, self.options.group),
            "archive": (note.archive, self.options.archive or note.archive),
            "snapback": (note.snapback, str(snapback.absolute()) if snapback else note.snapback),
        }
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise self._refuse(
                    f"the unfinished transaction of {name} has {what} {ours}, and the stream goes on with {what}"
                    f" {theirs}: ask where it stands and send that, or run 'lvmsync recover {name}' and begin anew"
                )
        if self.options.atomic:
            raise UsageError(f"{name}: an unfinished transaction cannot be gone on with and be --atomic")
        if self.written == "yes":
            raise self._refuse(
                f"{self._what_was_written()}, and its transaction is unfinished: it cannot be gone on with; run"
                f" 'lvmsync recover {name}', and begin anew"
            )
        self._check_traces_of(note)

    def _find_offset(self) -> int:
        return find_place(self.ledger.record, self.ledger.folder, seen.life(self.target.fd)).offset

    def _check_size(self) -> list[str]:
        header, target = self.header, self.target
        if header.size is None or target.created or target.size == header.size:
            return []
        if target.size > header.size:
            return [f"{target.name} is larger than the source; what is past {header.size} is left alone"]
        if not self.options.allow_smaller:
            raise DeviceError(
                f"{target.name} has {target.size} bytes and the source has {header.size}: too small (or the wrong"
                " one); extend it, or give --allow-smaller-target to drop what is past its end",
                device=target.name,
            )
        return []

    def _check_dirty(self) -> None:
        """Refuse changes of a target that nobody knows the content of."""
        header, name = self.header, self.target.name
        if not self.ledger.record.dirty or header.intent == FULL or header.source == "compare":
            return
        if not self.options.ignore_base:
            raise self._refuse(
                f"{name} is not whole: a copy to it was given up, or could not be made durable, or it was found to"
                " differ; bring it up to date"
                " with 'lvmsync repair' or 'compare:', or copy it anew"
            )

    def _check_held(self) -> list[str]:
        """Refuse a delta for a target that has grown since it was too small for its source."""
        header, held, target = self.header, self.ledger.record.held, self.target
        if held is None or target.size <= held or header.intent != DELTA or header.source == "compare":
            return []
        if self.options.ignore_base:
            return [f"{target.name}: that it holds the base behind byte {held} is your word"]
        raise self._refuse(
            f"{target.name} had {held} bytes when what lay behind them was dropped, and has {target.size}"
            " now: its new part was never copied; bring it up to date with 'compare:'"
        )

    def _check_base(self) -> list[str]:
        """Compare the point that the target is at with the one that the stream starts from."""
        header, options, name = self.header, self.options, self.target.name
        point = self.ledger.record.point
        if header.base is None:
            # A comparison starts from what the target holds, whatever that is.
            if header.intent == DELTA and header.source not in (None, "compare") and point is not None:
                return [
                    f"{name} is at point {point.id}, and the stream does not say what it starts from: that"
                    " it holds the base is your word"
                ]
            return []
        if point is None:
            if options.require_base and not options.ignore_base:
                raise self._conflict("no point that is known", header.base)
            return [f"nothing is known of {name} yet: that it holds the base is your word"]
        if _can_take(point, header, header.base):
            return []
        # Where nothing says that it is wrong, the user may know better: it is noted.
        is_word = header.intent == DELTA and _is_unknown(point, header, header.base)
        if options.ignore_base or (is_word and not options.require_base):
            return [
                f"{name} is at point {point.id}, and the stream starts from {header.base.id}: that it"
                " holds the base is your word"
            ]
        raise self._conflict(f"point {point.id}", header.base)

    def _check_written(self) -> list[str]:
        """Refuse, or note, that somebody wrote to a target that should hold the base."""
        base = self.header.base
        if self.written != "yes" or base is None or self.ledger.record.point is None:
            return []
        if self.options.require_base and not self.options.ignore_base:
            raise self._refuse(
                f"{self._what_was_written()}, and the stream starts from {base.id}: what it holds now is not known;"
                " bring it up to date with 'lvmsync repair' or 'compare:'"
            )
        return [f"{self._what_was_written()}: that it still holds the base is your word"]

    def _what_was_written(self) -> str:
        before = self.ledger.record.seen
        assert before is not None
        assert self.look is not None
        return f"{self.target.name} was written to since (its {seen.describe(before, self.look)})"

    def _check_samples(self, samples: Iterable[Sample]) -> None:
        if self.options.ignore_base or self.target.created:
            return
        size = self.target.size
        inside = [one for one in samples if one.offset + one.length <= size]
        check_samples(self.target, inside, _base_words(self.header.base))

    def _check_traces(self) -> None:
        """Refuse a target that does not hold any more what was changed last: somebody brought an older state back."""
        header, record = self.header, self.ledger.record
        point, base = record.point, header.base
        if point is None or base is None or header.intent == FULL or self.options.ignore_base:
            return
        if not _can_take(point, header, base):
            return  # that it holds the base is the user's word, whatever it was left with
        inside = [one for one in record.traces if one.offset + one.length <= self.target.size]
        found = find_different(self.target, inside)
        if found:
            raise self._refuse(
                f"{self.target.name} was at point {point.id}, and does not hold it any more: {_both(*found)}. Was a"
                " snapshot merged into it, or a backup brought back? Bring it up to date with 'lvmsync repair' or"
                " 'compare:'"
            )

    def _check_traces_of(self, note: records.Transaction) -> None:
        """Refuse to go on if what was written before is not there any more."""
        found = find_lost(self.target, self.ledger)
        if found:
            name = self.target.name
            way = f"run 'lvmsync recover {name}', and begin anew" if note.undo else "begin anew, with --full"
            raise self._refuse(
                f"{name} was written to while its transaction was unfinished: {_both(*found)}. It cannot be gone on"
                f" with: {way}"
            )

    def _refuse(self, message: str) -> ConflictError:
        return ConflictError(message, device=self.target.name)

    def _conflict(self, found: str, base: Point) -> ConflictError:
        name = self.target.name
        if self.header.intent == SNAPBACK:
            step = "this snapback undoes another change; apply the newer snapbacks first"
        elif self.header.source == "era":
            step = "it was made anew, brought back, or written from elsewhere; send all of it with since=0"
        else:
            step = "bring it up to date with 'compare:', and start the next delta from a snapshot of that state"
        return self._refuse(
            f"{name} is at {found}, and the stream starts from {base.id}: {step}, or give --ignore-base if it surely"
            " holds that base"
        )


def _may_be_begun_anew(note: records.Transaction) -> bool:
    """Tell whether nothing is lost by a first copy in the place of the open transaction."""
    return note.intent == FULL and note.phase == "applying" and note.undo is None


def _base_words(base: Point | None) -> str:
    if base is None:
        return "the source, which were the same when both were compared,"
    time = f" (of {base.time})" if base.time else ""
    return f"the base {base.id}{time} that the changes start from"


def _both(sample: Sample, found: str) -> str:
    offset, length, digest = sample
    return f"the {length} bytes at {offset} have the digest {found}, and what was written there has {digest}"


def _id(point: Point | None) -> str | None:
    return point.id if point else None


def _can_take(point: Point, header: Header, base: Point) -> bool:
    """Tell whether a target at ``point`` becomes the head by a delta that starts from ``base``.

    At that very point it does. Behind it, only if the delta holds all that came since the base as well. A
    classic snapshot's does, unless it leads back: its exceptions only grow. So do changes that are counted, at
    a later point of the same history, up to the head. That of a thin snapshot does not: what was mapped since,
    and is unmapped again, is not in it. Neither does what was held against the base, for what came and went
    since is not in it. At the very head already it stays that, if the head is a snapshot that nobody writes to: a run
    that was cut short after the target was done is repeated so.
    """
    if base.id == point.id:
        return True
    if header.intent != DELTA or header.minimal:
        return False
    if header.head and point.id == header.head.id and point.id.startswith(_FROZEN):
        return True
    if header.source == "snapshot":
        return base.id == point.parent and not _is_later(point, header.head)
    since, now, head = _counted(base), _counted(point), _counted(header.head)
    if since is None or now is None or head is None or not since[0] == now[0] == head[0]:
        return False
    return since[1] <= now[1] <= head[1]


def _is_unknown(point: Point, header: Header, base: Point) -> bool:
    """Tell whether nothing says that a target at ``point`` does *not* hold ``base``.

    A full copy and a comparison leave a point that only says that nobody named it; what starts from such a point starts
    from that one and no other. Between two snapshots of LVM the
    changes of a classic one hold all that is needed if it is the older one, and if they do not lead back: what lies
    between the target's point and a later base would be missing.
    """
    if base.id.startswith(UNNAMED):
        return False
    if point.id.startswith(UNNAMED):
        return True
    if header.source == "era":
        since, now = _counted(base), _counted(point)
        return since is None or now is None or since[0] != now[0]
    if _is_later(base, point) or _is_later(point, header.head):
        return False
    return header.source == "snapshot" and not header.minimal


def _is_later(one: Point, other: Point | None) -> bool:
    """Tell whether a snapshot of LVM was surely taken after another one."""
    if other is None or not one.id.startswith(_SNAPSHOT) or not other.id.startswith(_SNAPSHOT):
        return False
    try:
        return datetime.fromisoformat(one.time or "") > datetime.fromisoformat(other.time or "")
    except (TypeError, ValueError):  # a time is not known, or of no zone
        return False


_SNAPSHOT = "lv:"
"""What the ids of points begin with that are snapshots of LVM."""

_FROZEN = "dattobd/"
"""What the ids of points begin with that are one very snapshot, which does not change."""

_COUNTED = ("era:", "dattobd:", "blksnap:")
"""What the ids of points begin with that end in the number of an era or a snapshot, which only grows."""


_MOST_DIGITS = 20
"""Of such a number: it has 64 bits at the most."""


def _counted(point: Point | None) -> tuple[str, int] | None:
    """Return history and number of a point that has them; None if it has not."""
    life, _, number = point.id.rpartition(":") if point else ("", "", "")
    is_counted = life.startswith(_COUNTED) and number.isdecimal() and len(number) <= _MOST_DIGITS
    return (life, int(number)) if is_counted else None
