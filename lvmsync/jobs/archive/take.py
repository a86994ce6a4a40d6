"""Taking a source's changes, or a stream that is there already, into an archive."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from lvmsync.chain.catalogue import FORWARD, REVERSE, ArchivedPoint, Catalogue, Member
from lvmsync.chain.routes import list_restorable
from lvmsync.errors import ConflictError, LvmsyncError, UsageError
from lvmsync.history import UNNAMED, Point
from lvmsync.jobs.archive.members import Written, write_member, write_source
from lvmsync.jobs.archive.shelf import Shelf, new_commit
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.send import StreamOptions
from lvmsync.sources.source import Source

_PIECE = 1 << 20


def take(shelf: Shelf, source: Source, options: StreamOptions, report: Report, *, label: str | None = None) -> Receipt:
    """Write a source's changes into an archive as a member, and return a receipt.

    Args:
        shelf: the archive.
        source: what changed.
        options: how the stream is written.
        report: takes the progress.
        label: what the user calls the point.

    Raises:
        ConflictError: the archive does not have the point that the changes start from.
        LvmsyncError: it failed; the archive is as it was.
    """
    require_label(shelf.catalogue, label)
    source = _named(source)
    assert source.head is not None
    if not source.is_full:
        if source.head.id in list_restorable(shelf.catalogue):
            return _there_already(shelf, source)
        _require_base(shelf.catalogue, source.base, shelf.store.name)
    written, receipt = write_source(shelf.store, source, options, report)
    point = replace(written.head, label=label, time=source.head.time or _now())

    def require(now: Catalogue) -> None:
        if not source.is_full:
            _require_base(now, source.base, shelf.store.name)

    notes = [*receipt.notes, *add(shelf, written, point, require=require)]
    found = shelf.catalogue.find(point.id)
    assert found is not None
    if label is not None and found.label != label:
        notes = [*notes, f"the archive had this point already, as #{found.number}: it is not called '{label}'"]
    return replace(
        receipt, job="archive take", target=f"{shelf.store.name}, point #{found.number}", point=point.id,
        durable=True, kind=written.member.way, notes=notes,
    )  # fmt: skip


def bring_in(
    shelf: Shelf,
    receive_some: Callable[[memoryview], int],
    *,
    name: str,
    label: str | None = None,
    is_new_chain: bool = False,
    most: int | None = None,
) -> Receipt:
    """Copy a stream into an archive as a member.

    Args:
        shelf: the archive.
        receive_some: as of `jobs.receive`.
        name: what messages call the stream.
        label: what the user calls the point that it leads to.
        is_new_chain: nothing in the archive need be connected with it.
        most: bytes of the stream, where that is known.

    Raises:
        StreamError: it is damaged, cut short, or has no place in an archive.
        ConflictError: neither the point that it leads from nor the one that it leads to is in the archive.
    """
    require_label(shelf.catalogue, label)
    buffer = memoryview(bytearray(_PIECE))

    def copy(send_all: Callable[[list[memoryview]], None]) -> None:
        while count := receive_some(buffer):
            send_all([buffer[:count]])

    written = write_member(shelf.store, lambda writer: copy(lambda buffers: writer.send_all(buffers)), most)
    notes = adopt(shelf, written, label=label, is_new_chain=is_new_chain)
    member = written.member
    if not _is_there(shelf.catalogue, member):
        remove(shelf, written)
        notes.append(f"{name} was in the archive already: nothing was added")
    return Receipt(
        "archive import", source=name, target=shelf.store.name, bytes=member.changed_bytes, extents=member.extents,
        wire_bytes=member.stored, size=written.header.size, digest=member.digest, point=member.head, kind=member.way,
        format=4, durable=True, notes=notes,
    )  # fmt: skip


def adopt(
    shelf: Shelf,
    written: Written,
    *,
    label: str | None = None,
    is_new_chain: bool = False,
    is_kept: bool = False,
    mirror: str | None = None,
) -> list[str]:
    """Put a member that is in the store into the catalogue; one that is there already stays as it is.

    Args:
        shelf: the archive.
        written: the member.
        label: what the user calls the point that it leads to.
        is_new_chain: nothing in the archive need be connected with it.
        is_kept: if it is refused, it is left in the store.
        mirror: as of `add`.

    Returns:
        What the user should know, a sentence each.

    Raises:
        ConflictError: nothing in the archive is connected with it, or what is has been there in another order, or is
            about a device of another size.
    """
    written = _with_known_name(written, shelf.catalogue)
    header, member = written.header, written.member
    head = replace(written.head, id=member.head, label=label)
    if member.base is None:
        return add(shelf, written, head, is_kept=is_kept)
    assert header.base is not None
    base = ArchivedPoint(member.base, 0, head.size, header.base.time, header.name, header.host)
    # Of a snapback the archive has the point that it leads back to, and of another delta the one that it leads from.
    older, newer = (head, base) if member.way == REVERSE else (base, head)
    required = Point(older.id, None, older.time)

    def require(now: Catalogue) -> None:
        is_first = (member.way == REVERSE and not now.points) or (is_new_chain and now.find(newer.id) is None)
        if now.find(older.id) is None and not is_first:
            raise _unknown(now, required, shelf.store.name)

    return add(shelf, written, older, newer, require=require, is_kept=is_kept, mirror=mirror)


def _with_known_name(written: Written, catalogue: Catalogue) -> Written:
    """Return a member that leads to a state which an archive may have under another one of its names."""
    names = (written.member.head, *written.header.names)
    known = next((one for one in names if catalogue.find(one)), written.member.head)
    return replace(written, member=replace(written.member, head=known))


def add(
    shelf: Shelf,
    written: Written,
    *points: ArchivedPoint,
    require: Callable[[Catalogue], None] = lambda _: None,
    is_kept: bool = False,
    mirror: str | None = None,
) -> list[str]:
    """Make the catalogue that has a member, unless that stream is in it already.

    Args:
        shelf: the archive.
        written: the member.
        points: where it leads from and to, oldest first, as far as they may be new.
        require: refuses a catalogue that it cannot be added to.
        is_kept: if it is refused, it is left in the store; else it is removed.
        mirror: of a snapback: what names the device that is at the point which it leads from; None: whether one is
            there still is not known, and the newest point counts that one ever was at.

    Returns:
        What the user should know, a sentence each.

    Raises:
        ConflictError: the point that it leads from is no longer there, or is another one than it says.
    """
    member = written.member
    before: set[str] = set()

    def edit(now: Catalogue) -> Catalogue:
        nonlocal before
        before = list_restorable(now)
        if any(member.name == one.name or member.digest == one.digest for one in now.members):
            return now  # an earlier try was not in vain, or it was there before
        require(now)
        more = now.with_points(*points)
        _require_place(now, more, member, shelf.store.name)
        _require_sizes(more, written, shelf.store.name)
        is_moved = member.way == REVERSE and (mirror is not None or _is_newer(more, member.base, now.mirror))
        return now.successor(
            new_commit(),
            points=more.points,
            next_number=more.next_number,
            members=(*now.members, member),
            mirror=member.base if is_moved else now.mirror,
            device=mirror if is_moved else now.device,
        )

    try:
        shelf.change(edit)
    except ConflictError:
        if not is_kept:
            remove(shelf, written)
        raise
    return _find_unreached(shelf.catalogue, before)


def add_mirror(shelf: Shelf, point: ArchivedPoint, device: str) -> None:
    """Let an archive know of a point that its mirror is at, to which no member leads.

    Args:
        shelf: the archive.
        point: that one.
        device: what names the mirror.

    Raises:
        ConflictError: the archive has a mirror already.
    """

    def edit(now: Catalogue) -> Catalogue:
        if now.mirror == point.id:
            return now
        if now.mirror is not None:
            raise ConflictError(f"{shelf.store.name} was given another mirror just now", device=shelf.store.name)
        more = now.with_points(point)
        found = more.find(point.id)
        if found is None or found.size != point.size:
            raise ConflictError(
                f"{shelf.store.name} has {point.id} as the state of a device of another size", device=shelf.store.name
            )
        return now.successor(
            new_commit(), points=more.points, next_number=more.next_number, mirror=point.id, device=device
        )

    shelf.change(edit)


def _find_unreached(catalogue: Catalogue, before: set[str]) -> list[str]:
    """Return a note about points that nothing leads to any more, or never did, though they were named just now."""
    there = list_restorable(catalogue)
    newest = catalogue.points[-1] if catalogue.points else None
    lost = [one for one in catalogue.points if one.id in before - there]
    notes = []
    if lost:
        numbers = ", ".join(f"#{one.number}" for one in lost)
        notes.append(
            f"nothing leads to {numbers} any more: the mirror has moved on without the snapback that led back there"
        )
    if newest and newest.id not in there:
        notes.append(f"point #{newest.number} cannot be restored: nothing leads to what it starts from")
    return notes


def _is_there(catalogue: Catalogue, member: Member) -> bool:
    return any(one.name == member.name for one in catalogue.members)


def _require_place(now: Catalogue, more: Catalogue, member: Member, name: str) -> None:
    """Refuse a member that leads from what is not there, or against the order of the points.

    Args:
        now: the catalogue as it is.
        more: the same with the member's points.
        member: the member.
        name: of the archive.
    """
    if member.base is None:
        return
    base, head = more.find(member.base), more.find(member.head)
    if base is None or head is None:
        raise _unknown(now, Point(member.base), name)
    if base == head or (base.number < head.number) != (member.way == FORWARD):
        raise ConflictError(
            f"{name}: the stream leads from point #{base.number} to #{head.number}, and those came in the other order:"
            " it has no place there",
            device=name,
        )


def _require_sizes(more: Catalogue, written: Written, name: str) -> None:
    """Refuse a member of a device that has another size than the archive's point: a larger mirror is another state.

    What lies behind the end of the smaller one would come from nowhere.
    """
    wrong = find_wrong_size(more, written.member, written.head.size)
    if wrong:
        raise ConflictError(
            f"{name}: point #{wrong.number} is of a device of {wrong.size} bytes, and the stream is of one of"
            f" {written.head.size}: a mirror that is larger than its source has an archive of its own",
            device=name,
        )


def find_wrong_size(catalogue: Catalogue, member: Member, size: int) -> ArchivedPoint | None:
    """Return the point of a member whose device has not the size that the member's stream says; None: they fit.

    A delta to a newer point says the size there. A snapback is of the mirror as it was when it was newer; before, that
    may have been smaller.
    """
    head, base = catalogue.find(member.head), catalogue.find(member.base or "")
    if member.way == REVERSE:
        if base is not None and base.size != size:
            return base
        return head if head is not None and head.size > size else None
    return head if head is not None and head.size != size else None


def _is_newer(catalogue: Catalogue, point_id: str | None, than: str | None) -> bool:
    new, old = catalogue.find(point_id or ""), catalogue.find(than or "")
    return old is None or (new is not None and new.number > old.number)


def remove(shelf: Shelf, written: Written) -> None:
    """Remove a member that no catalogue names; what cannot be removed is found by ``archive verify``."""
    with suppress(LvmsyncError):
        shelf.store.delete(*written.member.objects)


def require_label(catalogue: Catalogue, label: str | None) -> None:
    """Refuse a label that is another point's, or could be taken for something else.

    Raises:
        UsageError: it is.
    """
    if label is None:
        return
    is_number = label.removeprefix("#").isdecimal()
    if label == "latest" or is_number or not label.strip() or len(label) > 200 or not label.isprintable():
        raise UsageError(f"--label '{label}': a word of up to 200 characters that is no number, and not 'latest'")
    taken = next((one for one in catalogue.points if one.label == label), None)
    if taken:
        raise UsageError(f"--label '{label}': point #{taken.number} has it; choose another one")


def _named(source: Source) -> Source:
    """Return a source whose head has an id, if only one that nothing but the archive knows."""
    if source.head is not None:
        return source
    return replace(source, head=Point(f"{UNNAMED}{uuid.uuid4().hex}", None, _now()))


def _there_already(shelf: Shelf, source: Source) -> Receipt:
    assert source.head is not None
    point = shelf.catalogue.find(source.head.id)
    assert point is not None
    return Receipt(
        "archive take", source=source.name, target=f"{shelf.store.name}, point #{point.number}", size=point.size,
        point=point.id, durable=True, kind="nothing",
        notes=[*source.notes, f"the archive has this state already, as point #{point.number}: nothing was written"],
    )  # fmt: skip


def _require_base(catalogue: Catalogue, base: Point | None, name: str) -> None:
    if base is None:
        raise UsageError(
            "the source does not say which state it starts from, so its changes have no place in an archive; take all"
            " of it with full:DEVICE"
        )
    if catalogue.find(base.id) is None or base.id not in list_restorable(catalogue):
        raise _unknown(catalogue, base, name)


def _unknown(catalogue: Catalogue, base: Point, name: str) -> ConflictError:
    newest = catalogue.points[-1] if catalogue.points else None
    where = f"is at {newest.id} (point #{newest.number}, {newest.time})" if newest else "has no points yet"
    when = f" (of {base.time})" if base.time else ""
    return ConflictError(
        f"{name} {where}, and the changes start from {base.id}{when}, which it does not have: take all of the device"
        " with full:DEVICE, and go on from there",
        device=name,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
