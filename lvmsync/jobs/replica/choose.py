"""What the next run of a replica has to do: decided from what is there, before anything is changed.

Truth is which snapshots exist and carry the replica's tags, and what the target's ledger says. The target is at
a base of ours, or at the head that was being sent (its receipt was lost), or in the middle of one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from lvmsync.errors import ChangesLost, ConflictError, DeviceError
from lvmsync.jobs.replica.record import Record
from lvmsync.jobs.standing import Standing
from lvmsync.stream.frames import FULL

POINT = "lv:"
"""What the id of a point begins with that a snapshot of LVM holds; its LVM id follows."""


class TargetBusy(DeviceError):
    """The target is in use: by a file system, a guest, or another lvmsync."""


HOLDERS = ("base", "head", "back")
"""Roles of snapshots that a target may hold: it does, it is being sent; or ``migrate`` kept it for the way back."""


class Kind(Enum):
    """What is to be done."""

    FIRST = "first"
    """Send everything of a new head."""
    DELTA = "delta"
    """Send what changed from the base to a new head."""
    RESUME = "resume"
    """Go on with the head that was being sent."""
    COMMITTED = "committed"
    """The target is at the head already: make it the base, and choose again."""
    ROLL_BACK = "roll back"
    """Let the target go back to the base, since the head that was being sent is gone; and choose again."""
    PREPARED = "prepared"
    """The target has all of the head, and waits for the others of its group to be committed with it."""


@dataclass(frozen=True)
class Kept:
    """A snapshot of ours, as far as the choice needs it.

    Attributes:
        id: LVM id.
        name: VG/LV.
        role: "base", "head" or something else that is none of ours to use.
        size: bytes of the volume when it was taken; None: not known.
        trouble: why its changes cannot be had; empty if they can.
    """

    id: str
    name: str
    role: str
    size: int | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        kind: of it.
        base: the snapshot that the target holds; None of a first copy.
        head: the snapshot that is being sent, or that the target holds already; None: one is to be taken.
        drop: snapshots that nothing needs (any more), to be removed first.
        restart: the target's unfinished first copy is to be begun anew.
        notes: what the user should know, a sentence each.
    """

    kind: Kind
    base: Kept | None = None
    head: Kept | None = None
    drop: tuple[Kept, ...] = ()
    restart: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wish:
    """What the user wants of a run.

    Attributes:
        create: the target is made if it is not there.
        full: everything is copied, whatever the target holds.
        cuts: ids of the cuts of a group that the run may go on with.
        goes_on: a copy of everything that was not finished is gone on with though ``full`` is wanted.
    """

    create: bool = False
    full: bool = False
    cuts: frozenset[str] = frozenset()
    goes_on: bool = False


def choose(record: Record, kept: Sequence[Kept], standing: Standing, size: int, wish: Wish | None = None) -> Plan:
    """Decide what is to be done.

    Args:
        record: what is remembered.
        kept: the replica's snapshots.
        standing: what the target's side says.
        size: bytes of the source now.
        wish: what the user wants.

    Raises:
        DeviceError: the target is not there, too small, or in use.
        ConflictError: what the target holds is not what we know it to hold.
        ChangesLost: what changed since the target's state is not known any more.
    """
    wish = wish or Wish()
    if not standing.exists or (standing.is_blank and wish.create):
        return _choose_new(record, kept, standing, wish)
    _require_fit(record, standing, size)
    if standing.transaction:
        return _choose_unfinished(record, kept, standing, wish)
    if wish.full:
        return Plan(Kind.FIRST, drop=_spare(kept))
    if standing.dirty:
        raise ConflictError(
            f"{record.target} is not whole: an earlier write to it failed, or a comparison has found it to differ; run"
            f" 'lvmsync repair {record.source} {record.target}', or copy it anew with --full"
        )
    if standing.point is None:
        return _choose_unknown(record, kept, standing)
    holder = _find(kept, standing.point.id)
    if holder is None:
        raise _stranger(record, kept, standing.point.id)
    if standing.written == "yes":
        raise ConflictError(
            f"{record.target} was written to by something else after lvmsync brought it to {standing.point.id}"
            f"{_when(standing.point.time)}: its copy is spoilt; find out what writes to it, then run 'lvmsync repair"
            f" {record.source} {record.target}', or copy it anew with --full"
        )
    if holder.role == "head":
        return Plan(Kind.COMMITTED, head=holder)
    if holder.trouble:
        raise _lost(record, holder)
    _require_no_shrink(record, holder, size)
    return Plan(Kind.DELTA, base=holder, drop=_spare(kept, holder))


def _choose_new(record: Record, kept: Sequence[Kept], standing: Standing, wish: Wish) -> Plan:
    """Choose for a target that is not there."""
    if not wish.create:
        gone = f" any more, where it was at {record.committed}" if record.committed else ""
        raise DeviceError(
            f"there is no target {record.target}{gone}; make it with the size of {record.source}, or give --create"
        )
    if standing.transaction:
        raise ConflictError(
            f"{record.target} is gone, and a receive of it was not finished; run 'lvmsync recover' there first"
        )
    return Plan(Kind.FIRST, drop=_spare(kept))


def _choose_unfinished(record: Record, kept: Sequence[Kept], standing: Standing, wish: Wish) -> Plan:
    """Choose for a target that is in the middle of a receive."""
    open_one = standing.transaction
    assert open_one is not None
    if open_one.group is not None and open_one.group not in wish.cuts:
        raise ConflictError(
            f"{record.target} belongs to a group ({open_one.group}) whose copy was not finished: run that sync again,"
            " or 'lvmsync recover' on the target"
        )
    head = _find(kept, open_one.head)
    base = _find(kept, open_one.base)
    is_first = open_one.intent == FULL
    is_ours = head is not None or base is not None or _is_named(record.head, open_one.head)
    if not is_ours:
        began = f" of {open_one.began}" if open_one.began else ""
        raise ConflictError(
            f"{record.target} has an unfinished transaction{began} that is not of this replica (it leads to"
            f" {open_one.head or 'an unnamed state'}): finish it, or run 'lvmsync recover' there"
        )
    is_anew = wish.full and not (wish.goes_on and is_first and standing.written != "yes")
    may_resume = open_one.resumable and head is not None and not head.trouble and not is_anew
    if open_one.phase == "prepared" and head is not None and not head.trouble and not is_anew:
        if standing.written == "yes":
            raise ConflictError(
                f"{record.target} was written to by something else while it waited to be committed with its group; find"
                " out what writes to it, run 'lvmsync recover' there, and then 'lvmsync repair"
                f" {record.source} {record.target}'"
            )
        return Plan(Kind.PREPARED, base=base, head=head, drop=_spare(kept, base, head))
    if is_first:
        if may_resume:
            return Plan(Kind.RESUME, head=head, drop=_spare(kept, head))
        return Plan(Kind.FIRST, drop=_spare(kept), restart=True)
    if may_resume and base is not None and not base.trouble:
        return Plan(Kind.RESUME, base=base, head=head, drop=_spare(kept, base, head))
    return Plan(
        Kind.ROLL_BACK,
        base=base,
        notes=(f"what was sent to {record.target} before cannot be gone on with, so it was brought back first",),
    )


def _choose_unknown(record: Record, kept: Sequence[Kept], standing: Standing) -> Plan:
    """Choose for a target that is there, and of which its ledger knows nothing."""
    if not any(one.role == "base" for one in kept) and record.committed is None:
        if standing.other_use:
            raise ConflictError(
                f"{record.target} is no copy yet, and it is {standing.other_use}: all of that would be overwritten. Are"
                " SOURCE and TARGET the right ones, and not swapped? If it is to become the copy, run 'lvmsync sync"
                f" --full {record.source} {record.target}'"
            )
        return Plan(Kind.FIRST, drop=_spare(kept))
    if record.identity is not None and standing.identity is not None and standing.identity != record.identity:
        raise ConflictError(
            f"{record.target} is another device ({_words(standing.identity)}) than the one that held the copy"
            f" ({_words(record.identity)}): name the right one, or make this one the copy with 'lvmsync repair"
            f" {record.source} {record.target}' or --full"
        )
    raise ConflictError(
        f"nothing is known there of {record.target}, which held a copy of {record.source}"
        f"{_when(record.committed)}: its state folder was lost, or it was made anew; run 'lvmsync repair"
        f" {record.source} {record.target}' (it sends what differs), or copy it anew with --full"
    )


def _require_fit(record: Record, standing: Standing, size: int) -> None:
    """Refuse a target that cannot be written to, before anything is made for it."""
    if standing.fenced:
        raise DeviceError(
            f"{record.target} is read-only since 'migrate --back' has brought what it held home; if nothing there is"
            f" needed, 'lvmsync migrate --full' makes it writable and copies all anew, or 'lvchange -prw"
            f" {record.target.rpartition(':')[2]}' there does the first"
        )
    if standing.in_use:
        busy = TargetBusy(f"{record.target} is in use: {standing.in_use}")
        busy.transient = standing.in_use.startswith("another lvmsync")  # perhaps one whose line was cut just now
        raise busy
    if standing.size is not None and standing.size < size:
        kind = "lvextend" if standing.kind in ("thin", "thick") else "truncate" if standing.kind == "file" else None
        name = record.target.rpartition(":")[2]
        step = f"; make it larger there: '{kind} {'-L' if kind == 'lvextend' else '-s'} {size}b {name}'" if kind else ""
        raise DeviceError(
            f"{record.target} has {standing.size} bytes and {record.source} has {size}: too small"
            f"{step.replace('b ', ' ') if kind == 'truncate' else step}"
        )


def _require_no_shrink(record: Record, base: Kept, size: int) -> None:
    if base.size is not None and size < base.size:
        raise ConflictError(
            f"{record.source} has {size} bytes, and had {base.size} when {record.target} was last brought up to date: a"
            " volume that has shrunk is copied anew; make the target as small, and give --full"
        )


def _stranger(record: Record, kept: Sequence[Kept], point: str) -> ConflictError:
    bases = ", ".join(f"{POINT}{one.id} ({one.name})" for one in kept if one.role == "base") or "none"
    gone = record.base is not None and point == f"{POINT}{record.base}"
    removed = "the snapshot that held this state was removed"
    elsewhere = "it was brought up to date from elsewhere, or is the copy of another volume"
    why = removed if gone else elsewhere if record.base else f"{removed}, {elsewhere}"
    return ConflictError(
        f"{record.target} is at point {point}, and the base snapshots here are at {bases}: {why}; run 'lvmsync repair"
        f" {record.source} {record.target}' (it sends what differs), or copy it anew with --full"
    )


def _lost(record: Record, base: Kept) -> ChangesLost:
    return ChangesLost(
        f"{base.name}: {base.trouble}: what changed since {record.target} was last brought up to date is not known any"
        f" more; run 'lvmsync repair {record.source} {record.target}' (it sends what differs), or copy it anew with"
        " --full",
        device=base.name,
    )


def _find(kept: Iterable[Kept], point: str | None) -> Kept | None:
    return next((one for one in kept if point == f"{POINT}{one.id}" and one.role in HOLDERS), None)


def _is_named(volume_id: str | None, point: str | None) -> bool:
    return volume_id is not None and point == f"{POINT}{volume_id}"


def _spare(kept: Iterable[Kept], *needed: Kept | None) -> tuple[Kept, ...]:
    """Return the heads and bases that are not needed; without a base, bases stay until there is another one."""
    keep = {one.id for one in needed if one}
    roles = ("base", "head") if keep else ("head",)
    return tuple(one for one in kept if one.role in roles and one.id not in keep)


def _when(time: str | None) -> str:
    return f" ({time})" if time else ""


def _words(identity: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in identity.items())
