"""Proof that an archive is whole: every byte of every member, what leads to every point, and that it leads there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from lvmsync.chain.catalogue import ArchivedPoint, Catalogue, Member
from lvmsync.chain.routes import Route, find_routes, list_detours, list_restorable
from lvmsync.errors import DeviceError, LvmsyncError
from lvmsync.jobs.archive.digest import digest_state
from lvmsync.jobs.archive.members import INDEX, STREAM, Written, put_index, read_index, read_whole
from lvmsync.jobs.archive.restore import Mirror, open_route, require_digest
from lvmsync.jobs.archive.shelf import Shelf, is_catalogue, new_commit
from lvmsync.jobs.archive.take import adopt, find_wrong_size
from lvmsync.jobs.progress import Progress, Report


@dataclass
class Verdict:
    """What was found.

    Attributes:
        members: how many were read.
        bytes: of their objects.
        restored: numbers of the points that were rebuilt.
        faults: what is wrong, a sentence each; none: the archive is whole.
        adopted: names of members that were put into the catalogue.
        notes: what is no fault, a sentence each.
    """

    members: int = 0
    bytes: int = 0
    restored: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    shelf: Shelf,
    report: Report,
    *,
    is_repairing: bool = False,
    is_restoring: bool = False,
    mirror: Mirror | None = None,
) -> Verdict:
    """Read an archive, and return what was found.

    Args:
        shelf: the archive.
        report: takes the progress.
        is_repairing: members without a catalogue are put into it, indexes that are missing are made anew, and what an
            interrupted run has left is removed.
        is_restoring: every point is rebuilt as well, and its digest compared with the one that it had.
        mirror: where points are rebuilt from that are reached back from it.
    """
    verdict = Verdict()
    catalogue = shelf.catalogue
    sizes = shelf.store.list_objects()
    total = sum(member.stored for member in catalogue.members)
    for member in catalogue.members:
        report(Progress("verifying", verdict.bytes, total))
        faults = len(verdict.faults)
        _check(shelf, member, sizes, verdict, is_repairing=is_repairing)
        if len(verdict.faults) > faults and not _is_member(shelf, member):
            del verdict.faults[faults:]  # somebody has pruned it meanwhile
        verdict.members += 1
        verdict.bytes += member.stored
    _check_ways(catalogue, verdict, mirror)
    _look_at_rest(shelf, sizes, verdict, is_repairing=is_repairing)
    if is_restoring:
        _rebuild(shelf, verdict, report, mirror)
    return verdict


def _is_member(shelf: Shelf, member: Member) -> bool:
    """Tell whether a member is one still."""
    return any(one.name == member.name for one in Shelf.open(shelf.store).catalogue.members)


def _check(shelf: Shelf, member: Member, sizes: dict[str, int], verdict: Verdict, *, is_repairing: bool) -> None:
    """Read a member from its first byte to its last."""
    where = f"{shelf.store.name}/{member.name}"
    if member.name not in sizes:
        verdict.faults.append(f"{where} is missing: {_about(shelf.catalogue, member)}")
        return
    try:
        header, index, found = read_whole(shelf.store, member.name)
    except LvmsyncError as error:
        verdict.faults.append(f"{_at(where, error)}; {_about(shelf.catalogue, member)}")
        return
    seen = replace(found.member, index=member.index, index_stored=member.index_stored, index_digest=member.index_digest)
    if member.head in header.names:
        seen = replace(seen, head=member.head)
    if seen != member:
        verdict.faults.append(
            f"{where} is another stream than the one that was written ({_difference(seen, member)});"
            f" {_about(shelf.catalogue, member)}"
        )
        return
    wrong = find_wrong_size(shelf.catalogue, member, header.size or 0)
    if wrong:
        verdict.faults.append(
            f"{where} is of a device of {header.size} bytes, and the catalogue has {wrong.size} for point"
            f" #{wrong.number}; {_about(shelf.catalogue, member)}"
        )
    data = index.dump()
    if read_index(shelf.store, member.index) == data:
        return
    words = f"{shelf.store.name}/{member.index}, the index of {member.name}, is damaged or missing"
    if not is_repairing:
        verdict.faults.append(f"{words}: --repair makes it anew")
        return
    _replace_index(shelf, member, found, data)
    verdict.notes.append(f"{words}: it was made anew")


def _at(where: str, error: LvmsyncError) -> str:
    return str(error) if str(error).startswith(where) else f"{where}: {error}"


def _difference(seen: Member, expected: Member) -> str:
    found, wanted = asdict(seen), asdict(expected)
    key = next(key for key in found if found[key] != wanted[key])
    return f"its {key} is {found[key]}, expected {wanted[key]}"


def _replace_index(shelf: Shelf, member: Member, found: Written, data: bytes) -> None:
    """Write an index anew, under a name of its own, and make the catalogue that has it."""
    name = f"{new_commit()}{INDEX}"
    shelf.store.put_new(name, data)
    new = replace(found.member, index=name)

    def edit(now: Catalogue) -> Catalogue:
        if new in now.members:
            return now
        members = tuple(new if one.name == member.name else one for one in now.members)
        return now.successor(new_commit(), members=members, doomed=(*now.doomed, member.index))

    shelf.change(edit)
    shelf.remove_doomed()


def _check_ways(catalogue: Catalogue, verdict: Verdict, mirror: Mirror | None) -> None:
    """Tell of points that nothing leads to."""
    there = set(find_routes(catalogue, [mirror.point])) if mirror else list_restorable(catalogue)
    at = catalogue.find(mirror.point) if mirror and mirror.point != catalogue.mirror else None
    where = f" while the mirror is at point #{at.number}" if at else ""
    for point in catalogue.points:
        if point.id not in there:
            verdict.faults.append(f"point #{point.number} ({point.id}) cannot be restored: nothing leads to it{where}")
    without = set(find_routes(catalogue))
    count = sum(one.id in there and one.id not in without for one in catalogue.points)
    at = catalogue.find(catalogue.mirror or "")
    if count and at and mirror is None:
        verdict.notes.append(
            f"{count} point{'s are' if count > 1 else ' is'} reached only from the mirror, which is not in the archive,"
            f" and has to be at point #{at.number}"
        )


def _look_at_rest(shelf: Shelf, sizes: dict[str, int], verdict: Verdict, *, is_repairing: bool) -> None:
    """Look at the objects that no catalogue names."""
    store = shelf.store
    for name in sorted(name for name in sizes if name.endswith(STREAM)):
        if name not in _named(shelf):
            _look_at_stray(shelf, name, verdict, is_repairing=is_repairing)
    stems = {name.removesuffix(STREAM) for name in store.list_objects() if name.endswith(STREAM)}
    named = _named(shelf)
    for name in sorted(sizes):
        if name in named or is_catalogue(name) or name.endswith(STREAM):
            continue
        if not name.endswith(INDEX):
            verdict.notes.append(f"{store.name}/{name} is nothing of the archive's")
        elif name.removesuffix(INDEX) not in stems:
            _tidy(shelf, name, verdict, is_repairing=is_repairing)
    for name in store.list_unfinished():
        _tidy(shelf, name, verdict, is_repairing=is_repairing)
    if is_repairing and shelf.catalogue.doomed:
        verdict.notes += shelf.remove_doomed()


def _named(shelf: Shelf) -> set[str]:
    """Return the objects that the catalogue names which holds now: others may be at work."""
    shelf.catalogue = Shelf.open(shelf.store).catalogue
    members = shelf.catalogue.members
    return {name for member in members for name in member.objects} | set(shelf.catalogue.doomed)


def _tidy(shelf: Shelf, name: str, verdict: Verdict, *, is_repairing: bool) -> None:
    if is_repairing:
        shelf.store.delete(name)
    words = "was removed" if is_repairing else "--repair removes it"
    verdict.notes.append(f"{shelf.store.name}/{name} was left by a run that was cut off: {words}")


def _look_at_stray(shelf: Shelf, name: str, verdict: Verdict, *, is_repairing: bool) -> None:
    """Look at a stream that no catalogue names: a run that was cut off before the last step, or one that works now."""
    where = f"{shelf.store.name}/{name}"
    if not is_repairing:
        verdict.notes.append(
            f"{where} is in no catalogue: it is being added just now, or the run that wrote it was cut off; --repair"
            " adds it if it is whole"
        )
        return
    try:
        header, index, found = read_whole(shelf.store, name)
        index_name = found.member.index
        data = index.dump()
        put_index(shelf.store, index_name, data)
        notes = adopt(shelf, found, is_kept=True)
        verdict.notes += notes
        if name in _named(shelf):
            verdict.adopted.append(name)
            verdict.notes.append(f"{where} was added: it leads to {header.head.id if header.head else ''}")
        else:
            verdict.notes.append(f"{where} is a copy of a member: it can be removed by hand")
    except LvmsyncError as error:
        verdict.notes.append(f"{where} is in no catalogue, and cannot be added: {error}")


def _rebuild(shelf: Shelf, verdict: Verdict, report: Report, mirror: Mirror | None) -> None:
    """Rebuild every point, and compare its digest with the one that it had, or remember it; then go by each detour."""
    catalogue = shelf.catalogue
    routes = find_routes(catalogue, [mirror.point] if mirror else [])
    digests = {point.id: point.digest for point in catalogue.points if point.digest}
    new: dict[str, str] = {}
    ways = [routes[point.id] for point in catalogue.points if point.id in routes]
    for number, route in enumerate([*ways, *list_detours(catalogue, routes)]):
        point = catalogue.find(route.head)
        assert point is not None
        name = shelf.store.name if number < len(ways) else f"{shelf.store.name}/{route.members[-1].name}"
        try:
            digest = _digest(shelf, route, point, report, mirror)
            require_digest(replace(point, digest=digests.get(point.id)), digest, name)
        except LvmsyncError as error:
            if all(_is_member(shelf, member) for member in route.members):
                verdict.faults.append(str(error))
            continue  # else somebody has pruned it meanwhile
        if number < len(ways):
            verdict.restored.append(point.number)
        if point.id not in digests:
            new[point.id] = digests[point.id] = digest
    if not new:
        return
    try:
        shelf.change(lambda now: _with_digests(now, new))
    except DeviceError as error:
        verdict.notes.append(f"the digests could not be remembered: {error}")


def _digest(shelf: Shelf, route: Route, point: ArchivedPoint, report: Report, mirror: Mirror | None) -> str:
    def tell(done: int) -> None:
        report(Progress(f"rebuilding #{point.number}", done, point.size))

    with open_route(shelf, route, point, mirror) as (past, holes):
        return digest_state(past, point.size, holes, _seldom(tell))


def _seldom(tell: Callable[[int], None]) -> Callable[[int], None]:
    def maybe(done: int) -> None:
        if done % (16 << 20) == 0:
            tell(done)

    return maybe


def _with_digests(catalogue: Catalogue, digests: dict[str, str]) -> Catalogue:
    points = tuple(
        replace(one, digest=digests[one.id]) if one.digest is None and one.id in digests else one
        for one in catalogue.points
    )
    return catalogue if points == catalogue.points else catalogue.successor(new_commit(), points=points)


def _about(catalogue: Catalogue, member: Member) -> str:
    """Return which points a member is about."""
    head, base = catalogue.find(member.head), catalogue.find(member.base or "")
    words = f"it leads to point #{head.number}" if head else "it leads nowhere"
    return f"{words} from #{base.number}" if base else words
