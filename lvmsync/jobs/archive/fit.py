"""Whether an archive can have what a receive will overwrite: asked before anything is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lvmsync.chain.catalogue import ArchivedPoint, Catalogue
from lvmsync.errors import ConflictError
from lvmsync.history import Point
from lvmsync.jobs.samples import find_different
from lvmsync.system import seen
from lvmsync.system.record import Record
from lvmsync.targets.block import BlockTarget


@dataclass(frozen=True)
class Lead:
    """What a receive will lead back to, as its archive has it.

    Attributes:
        before: the point; None: none that is known.
        is_needed: the archive is to have what leads there even if nothing is changed.
        notes: what the user should know, a sentence each.
    """

    before: Point | None
    is_needed: bool
    notes: tuple[str, ...] = ()


def find_lead(
    catalogue: Catalogue,
    name: str,
    target: BlockTarget,
    record: Record,
    *,
    base: Point | None,
    head: Point | None,
    written: seen.Written,
    is_kept: bool,
) -> Lead:
    """Return what a receive leads back to, if its archive can have that.

    Args:
        catalogue: of the archive.
        name: of the archive.
        target: claimed.
        record: of the target.
        base: the point that the stream starts from; None: it names none.
        head: the point that the target will be at; None: one that nothing else names.
        written: whether somebody else has written to the target since it was brought to its point.
        is_kept: whether what is overwritten will be.

    Raises:
        ConflictError: it is the archive of another device, or the target is not where it was when the archive was last
            given something.
    """
    why = _why_unknown(target, record, written, is_kept=is_kept)
    names = () if why else record.names or ((base.id,) if base else ())
    size = target.size
    found = catalogue.find(head.id) if head else None
    if found and found.size != size and found.id not in names:
        raise _wrong_size(name, found, target)
    if not names:
        why = why or "what it held before is not known"
        if catalogue.mirror is not None:
            raise ConflictError(
                f"{target.name}: {why}, so nothing would lead back to point {_words(catalogue, catalogue.mirror)},"
                f" where {name} has it: bring it back to that point, or begin another archive for it",
                device=target.name,
            )
        return Lead(None, True, (f"{target.name}: {why}: nothing leads back from the first point in {name}",))
    if not catalogue.points:
        point = record.point or base
        assert point is not None
        return Lead(point, True)
    before = _choose(catalogue, names)
    if before is None:
        newest = catalogue.points[-1]
        at = _words(catalogue, catalogue.mirror) if catalogue.mirror else "no point"
        raise ConflictError(
            f"{target.name} is at {names[0]}, which {name} does not have: its mirror is at {at}, and its newest point"
            f" is {_words(catalogue, newest.id)}. Did a sync go without --archive, or is it another device's? Import"
            " the snapback that is missing, or begin another archive",
            device=target.name,
        )
    _require_same_mirror(catalogue, name, before, target)
    if before.size > size:
        raise _wrong_size(name, before, target)
    if found and found.number < before.number:
        raise ConflictError(
            f"{name} has the state that the stream leads to as point #{found.number}, and {target.name} is at point"
            f" #{before.number}: that is the way back, which an archive has already; go without --archive",
            device=target.name,
        )
    return Lead(Point(before.id, None, before.time), before.size != size)


def device_words(identity: Mapping[str, str]) -> str:
    """Return what a catalogue calls a mirror: of a volume of LVM its id, of others what is known where it is."""
    uuid = identity.get("dm uuid")
    return uuid or ", ".join([os.uname().nodename, *(f"{key} {value}" for key, value in sorted(identity.items()))])


def _why_unknown(target: BlockTarget, record: Record, written: seen.Written, *, is_kept: bool) -> str | None:
    """Return why what a target holds is not what its point says; None: nothing speaks against it."""
    if record.dirty or record.transaction is not None:
        return "what it holds is not whole"
    if not is_kept:
        return "it holds nothing yet"
    if record.point is None:
        return None
    if written == "yes":
        return f"somebody else wrote to it since it was brought to {record.point.id}"
    inside = [one for one in record.traces if one.offset + one.length <= target.size]
    if find_different(target, inside):
        return f"it does not hold any more what was written when it was brought to {record.point.id}"
    return None


def _choose(catalogue: Catalogue, names: tuple[str, ...]) -> ArchivedPoint | None:
    """Return the point of an archive that a target is at: that of its mirror, if it is that as well."""
    order = sorted(names, key=lambda one: one != catalogue.mirror)
    return next((found for one in order if (found := catalogue.find(one))), None)


def find_name(catalogue: Catalogue, record: Record) -> str | None:
    """Return the id under which an archive has the state that a target is at; None: it does not have it."""
    found = _choose(catalogue, record.names)
    return found.id if found else None


def _require_same_mirror(catalogue: Catalogue, name: str, before: ArchivedPoint, target: BlockTarget) -> None:
    """Refuse a second mirror that is not where the archive has its own: what leads back from that would be lost.

    The mirror itself may have been led back, and goes on from there.
    """
    if catalogue.mirror in (None, before.id) or catalogue.device == device_words(target.identity):
        return
    raise ConflictError(
        f"{target.name} is at point #{before.number}, and {name} has its mirror at point"
        f" {_words(catalogue, catalogue.mirror)}: from here on nothing would lead back from there. Bring it to"
        " that point first, or begin another archive for it",
        device=target.name,
    )


def _wrong_size(name: str, point: ArchivedPoint, target: BlockTarget) -> ConflictError:
    return ConflictError(
        f"{target.name} has {target.size} bytes, and point #{point.number} of {name} is of a device of {point.size}: it"
        " is another device's archive, or its size was changed; it needs an archive of its own",
        device=target.name,
    )


def _words(catalogue: Catalogue, point_id: str | None) -> str:
    point = catalogue.find(point_id or "")
    return f"#{point.number} ({point.id})" if point else str(point_id)
