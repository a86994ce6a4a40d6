"""What becomes of an archive when only some of its points are kept: which members are combined, and which go.

Forward members with their full copies, and reverse ones, are two webs that are each left whole: a point that was
reached in both is so afterwards. In each, a point that is not kept is passed by: the members that lead to it and on are
combined into one. One that several lead on from stays, for the sake of those. Members between points that are kept
stay, too, if there is a shorter way as well: somebody wanted them. What cannot be restored is left alone: perhaps a
member that is missing comes yet, or a mirror that the archive does not know holds what it starts from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from lvmsync.chain.catalogue import FORWARD, FULL, REVERSE, Catalogue, Member
from lvmsync.chain.routes import find_path, find_routes, list_restorable
from lvmsync.errors import UsageError


@dataclass(frozen=True)
class Merge:
    """Members that become one.

    Attributes:
        members: in the order in which they would be applied.
    """

    members: tuple[Member, ...]

    @property
    def way(self) -> str:
        """The way of what they become."""
        return self.members[0].way

    @property
    def base(self) -> str | None:
        """The point that it leads from; None: it is a full copy."""
        return self.members[0].base

    @property
    def head(self) -> str:
        """The point that it leads to."""
        return self.members[-1].head


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        merges: which members become one.
        removed: members that go, those that are merged besides.
        dropped: ids of points that go.
        supports: ids of points that stay though nobody keeps them: others are reached through them.
    """

    merges: tuple[Merge, ...]
    removed: tuple[Member, ...]
    dropped: tuple[str, ...]
    supports: tuple[str, ...]

    def apply(self, catalogue: Catalogue) -> Catalogue:
        """Return what a catalogue would be when all is done; the combinations have made-up names."""
        gone = {one.name for one in self.removed} | {one.name for merge in self.merges for one in merge.members}
        members = [one for one in catalogue.members if one.name not in gone]
        for number, merge in enumerate(self.merges):
            name = f"merged-{number}"
            members.append(replace(merge.members[0], name=name, way=merge.way, base=merge.base, head=merge.head))
        points = tuple(one for one in catalogue.points if one.id not in {*self.dropped})
        return replace(catalogue, members=tuple(members), points=points)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.merges or self.removed or self.dropped)


def plan_pruning(catalogue: Catalogue, kept: Collection[str]) -> Plan:
    """Return what leaves these points, each reached in every way that it was, and nothing that they do not need."""
    lost = {one.id for one in catalogue.points} - list_restorable(catalogue)
    kept = {*kept, *catalogue.mirrors, *lost, *(one.head for one in catalogue.members if one.base in lost)}
    merges: list[Merge] = []
    # Names of members that stay as they are
    staying = {one.name for one in catalogue.members if one.head in kept and (one.base is None or one.base in kept)}
    supports: set[str] = set()
    for mirrors, ways in (((), (FULL, FORWARD)), (catalogue.mirrors, (REVERSE,))):
        routes = find_routes(catalogue, mirrors, ways)
        needed = {member.name: member for one in kept if one in routes for member in routes[one].members}
        inward = {member.head: member for member in needed.values()}
        leading: dict[str, int] = {}  # how many members lead on from a point
        for member in needed.values():
            if member.base is not None:
                leading[member.base] = leading.get(member.base, 0) + 1
        ends = {head for head in inward if head in kept or leading.get(head, 0) > 1}
        supports |= ends - kept
        for head in sorted(ends, key=lambda one: _number(catalogue, one)):
            chain = [inward[head]]
            while (base := chain[0].base) is not None and base not in ends and base in inward:
                chain.insert(0, inward[base])
            if len(chain) == 1:
                staying.add(chain[0].name)
            else:
                merges.append(Merge(tuple(chain)))
    merged = {member.name for merge in merges for member in merge.members}
    removed = [one for one in catalogue.members if one.name not in staying and one.name not in merged]
    stays = {*kept, *supports}
    return Plan(
        tuple(merges),
        tuple(removed),
        tuple(one.id for one in catalogue.points if one.id not in stays),
        tuple(one.id for one in catalogue.points if one.id in supports - kept),
    )


def plan_combination(catalogue: Catalogue, first: str, last: str) -> Plan:
    """Return what makes one member of all that lead from one point to another, in each direction that they do.

    The points between them go, and members that lead only to those; but a point that something else leads on from
    stays, and so do the two sides of it.

    Args:
        catalogue: of the archive.
        first, last: ids of the two points.

    Raises:
        UsageError: no members lead from one to the other.
    """
    if _number(catalogue, first) > _number(catalogue, last):
        first, last = last, first
    paths = [
        path
        for way, base, head in ((FORWARD, first, last), (REVERSE, last, first))
        if (path := find_path([one for one in catalogue.members if one.way == way], base, head))
    ]
    if not paths:
        raise UsageError("no members lead from one of these points to the other: 'lvmsync archive show' tells which do")
    anchors: set[str] = set()
    while True:
        plan = _plan_paths(catalogue, paths, {first, last, *catalogue.mirrors}, anchors)
        lost = list_restorable(catalogue) - {*plan.dropped} - list_restorable(plan.apply(catalogue))
        if not lost:
            return plan
        # Only by way of a point between them is something reached: it stays.
        anchors |= {one.head for one in plan.removed} & {*plan.dropped}


def _plan_paths(
    catalogue: Catalogue, paths: Sequence[tuple[Member, ...]], ends: Collection[str], anchors: Collection[str]
) -> Plan:
    """Return what combines paths up to points that stay: their ends, anchors, and what something else leads on from."""
    on_path = {member.name for path in paths for member in path}
    going = {member.head for path in paths for member in path[:-1]} - {*ends, *anchors}
    stays = {*anchors}
    while True:  # what stays may need more to stay
        others = [one for one in catalogue.members if one.name not in on_path and one.head not in going]
        more = {one.base for one in others if one.base is not None} & going
        if not more:
            break
        stays |= more
        going -= more
    merges = [Merge(part) for path in paths for part in _split(path, {*ends, *stays}) if len(part) > 1]
    merged = {member.name for merge in merges for member in merge.members}
    removed = [one for one in catalogue.members if one.name not in merged and {one.head, one.base} & going]
    return Plan(
        tuple(merges),
        tuple(removed),
        tuple(one.id for one in catalogue.points if one.id in going),
        tuple(one.id for one in catalogue.points if one.id in stays),
    )


def _split(path: tuple[Member, ...], ends: Collection[str]) -> list[tuple[Member, ...]]:
    """Return the parts of a path between points that stay."""
    parts: list[tuple[Member, ...]] = []
    part: tuple[Member, ...] = ()
    for member in path:
        part = (*part, member)
        if member.head in ends:
            parts.append(part)
            part = ()
    return parts


def _number(catalogue: Catalogue, point_id: str) -> int:
    point = catalogue.find(point_id)
    assert point is not None
    return point.number
