"""A past state as a source, so that whatever takes a source can be given it: a restore, a send, a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lvmsync.chain.catalogue import ArchivedPoint, Catalogue, Member
from lvmsync.chain.layers import HOLE
from lvmsync.chain.routes import Route, find_path, find_routes
from lvmsync.errors import ConflictError, VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.interfaces import Readable
from lvmsync.jobs.archive.digest import Digested
from lvmsync.jobs.archive.past import Past, open_past
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.sources.source import Source


@dataclass(frozen=True)
class Mirror:
    """A device outside of the archive that holds one of its points.

    Attributes:
        device: where it is read.
        point: id of the point.
    """

    device: Readable
    point: str


@contextmanager
def open_point(shelf: Shelf, point: ArchivedPoint, mirror: Mirror | None = None) -> Iterator[tuple[Past, ChangeMap]]:
    """Open a point for reading; yield it, and where it is known to be zeros.

    Raises:
        ConflictError: nothing leads to it, or only by way of the mirror.
        LvmsyncError: a member is missing or damaged.
    """
    with open_route(shelf, find_route(shelf.catalogue, point, mirror, shelf.store.name), point, mirror) as opened:
        yield opened


@contextmanager
def open_route(
    shelf: Shelf, route: Route, point: ArchivedPoint, mirror: Mirror | None = None
) -> Iterator[tuple[Past, ChangeMap]]:
    """Open a point for reading by one of the ways to it; yield it, and where it is known to be zeros.

    Raises:
        LvmsyncError: a member is missing or damaged.
    """
    below = mirror.device if mirror and route.mirror else None
    name = f"{shelf.store.name}, point #{point.number}"
    with open_past(shelf.store, route.members, name, point.size, below) as past:
        holes = past.segments.map(HOLE)
        if below is None:
            holes = holes | past.segments.map().complement(point.size)
        yield past, holes


@contextmanager
def open_restored(shelf: Shelf, point: ArchivedPoint, mirror: Mirror | None = None) -> Iterator[Source]:
    """Open a point as a full copy; where its digest is known, what is read is held against that at the end.

    Raises:
        LvmsyncError: as of `open_point`.
    """
    with open_point(shelf, point, mirror) as (past, holes):
        source = _source(past, None, point, ChangeMap.whole(point.size), holes)
        if point.digest is None:
            yield source
            return
        read = Digested(past, holes)

        def confirm() -> None:
            digest = read.finish()
            if digest is not None:
                require_digest(point, digest, shelf.store.name)

        yield replace(source, data=read, confirm=confirm)


@contextmanager
def open_between(shelf: Shelf, base: ArchivedPoint, head: ArchivedPoint) -> Iterator[Source]:
    """Open what leads from one point to another as one delta; newer or older, as the archive's members lead.

    Raises:
        ConflictError: no members lead there.
        LvmsyncError: a member is missing or damaged.
    """
    members = find_path(shelf.catalogue.members, base.id, head.id)
    if not members:
        raise ConflictError(
            f"{shelf.store.name}: no members lead from point #{base.number} to #{head.number}: 'lvmsync archive show'"
            " tells what there is",
            device=shelf.store.name,
        )
    with open_merged(shelf, members) as source:
        yield source


@contextmanager
def open_merged(shelf: Shelf, members: Sequence[Member]) -> Iterator[Source]:
    """Open what several members come to, one applied after the other: the last that has a byte wins.

    Args:
        shelf: the archive.
        members: each leads on from where the one before leads to; the first may be a full copy.

    Raises:
        LvmsyncError: a member is missing or damaged.
    """
    base, head = shelf.catalogue.find(members[0].base or ""), shelf.catalogue.find(members[-1].head)
    assert head is not None
    with open_past(shelf.store, members, shelf.store.name, head.size) as past:
        changes, holes = past.segments.map(), past.segments.map(HOLE)
        if base is None:
            holes = holes | changes.complement(head.size)
            changes = ChangeMap.whole(head.size)
        yield _source(past, base, head, changes, holes)


def _source(
    past: Past, base: ArchivedPoint | None, head: ArchivedPoint, changes: ChangeMap, holes: ChangeMap
) -> Source:
    return Source(
        kind="archive",
        name=past.name,
        size=past.size,
        granularity=512,
        base=Point(base.id, None, base.time) if base else None,
        head=Point(head.id, base.id if base else None, head.time),
        changes=changes,
        holes=holes,
        data=past,
        confirm=lambda: None,  # members are never changed, and the mirror is held
        is_full=base is None,
        is_minimal=base is not None,  # it leads from that very state only
    )


def find_route(catalogue: Catalogue, point: ArchivedPoint, mirror: Mirror | None, name: str) -> Route:
    """Return the way to a point.

    Raises:
        ConflictError: there is none, or only by way of a mirror that is not at hand.
    """
    mirrors = [mirror.point] if mirror else []
    route = find_routes(catalogue, mirrors).get(point.id)
    if route:
        return route
    by_mirror = find_routes(catalogue, catalogue.mirrors).get(point.id)
    if by_mirror is None:
        raise ConflictError(
            f"{name}: nothing leads to point #{point.number}: the members between it and a full copy or the mirror are"
            " not there; 'lvmsync archive show' tells what is",
            device=name,
        )
    tip = catalogue.find(by_mirror.mirror or "")
    assert tip is not None
    found = f", and the one that was given is at {mirror.point}" if mirror else ""
    raise ConflictError(
        f"{name}: point #{point.number} is reached back from the mirror, when that is at point #{tip.number}"
        f" ({tip.id}){found}: name it with --mirror DEVICE",
        device=name,
    )


def require_digest(point: ArchivedPoint, digest: str, name: str) -> None:
    """Refuse a state that is not the one that the archive had.

    Raises:
        VerifyError: it is not.
    """
    if point.digest is not None and point.digest != digest:
        raise VerifyError(
            f"{name}: point #{point.number} has the digest {digest} now, and had {point.digest}: do not use it",
            device=name,
        )
