"""How a point is reached: from a full copy, or back from the mirror, and by which members."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lvmsync.chain.catalogue import FORWARD, FULL, REVERSE, Catalogue, Member

WAYS = (FULL, FORWARD, REVERSE)


@dataclass(frozen=True)
class Route:
    """What leads to a point.

    Attributes:
        mirror: id of the point that the mirror is at, where the route begins there; None: it begins with a full copy.
        members: in the order in which they would be applied.
        head: id of the point.
    """

    mirror: str | None
    members: tuple[Member, ...]
    head: str

    @property
    def stored(self) -> int:
        """Bytes of all its members."""
        return sum(one.stored for one in self.members)

    def then(self, member: Member) -> Route:
        """Return the way that goes on with a member."""
        return Route(self.mirror, (*self.members, member), member.head)


def find_routes(catalogue: Catalogue, mirrors: Collection[str] = (), ways: Collection[str] = WAYS) -> dict[str, Route]:
    """Return the route of fewest stored bytes to each point that there is one to.

    Args:
        catalogue: of the archive.
        mirrors: ids of points that are held outside of the archive.
        ways: of the members that may be used.
    """
    leads: dict[str | None, list[Member]] = {}
    for member in catalogue.members:
        if member.way in ways:
            leads.setdefault(member.base, []).append(member)
    tie = itertools.count()
    todo: list[tuple[int, int, int, Route]] = []

    def push(cost: int, route: Route) -> None:
        heapq.heappush(todo, (cost, len(route.members), next(tie), route))

    for mirror in mirrors:
        push(0, Route(mirror, (), mirror))
    for member in leads.get(None, ()):
        push(member.stored, Route(None, (member,), member.head))
    found: dict[str, Route] = {}
    while todo:
        cost, _, _, route = heapq.heappop(todo)
        if route.head in found:
            continue
        found[route.head] = route
        for member in leads.get(route.head, ()):
            if member.head not in found:
                push(cost + member.stored, route.then(member))
    return found


def find_path(members: Iterable[Member], base: str, head: str) -> tuple[Member, ...] | None:
    """Return the members that lead from one point to another, of fewest stored bytes; None where there are none."""
    some = tuple(one for one in members if one.way != FULL)
    route = find_routes(Catalogue("", 0, "", members=some), mirrors=(base,)).get(head)
    return route.members if route else None


def list_detours(catalogue: Catalogue, routes: dict[str, Route]) -> list[Route]:
    """Return a way over each member that no route takes, so that all of them together have been everywhere.

    Args:
        catalogue: of the archive.
        routes: to its points, as of `find_routes`.
    """
    used = {member for route in routes.values() for member in route.members}
    rest = [member for member in catalogue.members if member not in used]
    starts = [(routes.get(member.base) if member.base else Route(None, (), ""), member) for member in rest]
    return [start.then(member) for start, member in starts if start]


def list_restorable(catalogue: Catalogue) -> set[str]:
    """Return ids of all points that can be restored, with the mirror at hand where it takes that."""
    return set(find_routes(catalogue, catalogue.mirrors))
