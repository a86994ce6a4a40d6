"""Routes, what is kept, and what becomes of the members: as tables, and held against a search of all ways."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.chain.catalogue import FORWARD, FULL, REVERSE, Catalogue, Member
from lvmsync.chain.pruning import Plan, plan_combination, plan_pruning
from lvmsync.chain.retention import Rules, choose_kept
from lvmsync.chain.routes import Route, find_path, find_routes, list_detours, list_restorable
from lvmsync.errors import UsageError
from tests.chain.test_catalogue import catalogue, member

CHAIN = [member(FULL, None, 1, 1000), *(member(FORWARD, number, number + 1, 10) for number in range(1, 6))]
BACK = [member(REVERSE, number + 1, number, 10) for number in range(1, 6)]


def heads(found: Catalogue, point: int, mirrors: Sequence[str] = ()) -> list[str]:
    route = find_routes(found, mirrors)[f"lv:{point}"]
    assert route.head == f"lv:{point}"
    assert route.stored == sum(one.stored for one in route.members)
    return [one.head for one in route.members]


def test_the_shortest_way_is_taken() -> None:
    chain = catalogue(6, *CHAIN)
    assert heads(chain, 4) == ["lv:1", "lv:2", "lv:3", "lv:4"]
    assert heads(replace(chain, members=(*CHAIN, member(FULL, None, 4, 900))), 5) == ["lv:4", "lv:5"]
    assert heads(replace(chain, members=(*CHAIN, member(FORWARD, 1, 4, 5))), 5) == ["lv:1", "lv:4", "lv:5"]
    both = replace(chain, members=(*CHAIN, *BACK), mirror="lv:6")
    assert heads(both, 4, both.mirrors) == ["lv:5", "lv:4"]
    assert heads(both, 6, both.mirrors) == []
    assert find_routes(both, ways=(REVERSE,)) == {}


def test_detours_go_over_each_member_that_no_shortest_way_takes() -> None:
    other = member(FULL, None, 3, 5000)
    both = catalogue(6, *CHAIN, *BACK, other)
    detours = list_detours(both, find_routes(both))
    assert {one.members[-1] for one in detours} == {*BACK, other}
    for detour in detours:
        assert detour.mirror is None
        assert detour.head == detour.members[-1].head
        assert [None, *(one.head for one in detour.members[:-1])] == [one.base for one in detour.members]
    lost = replace(both, members=(*BACK, other))
    assert [len(one.members) for one in list_detours(lost, find_routes(lost))] == []
    assert list_detours(lost, {}) == [Route(None, (other,), "lv:3")]


def test_what_can_be_restored_is_what_something_leads_to() -> None:
    some = catalogue(6, *CHAIN[:2], *CHAIN[3:], BACK[4], mirror="lv:6")
    assert list_restorable(some) == {"lv:1", "lv:2", "lv:6", "lv:5"}
    assert list_restorable(replace(some, mirror=None)) == {"lv:1", "lv:2"}


def test_a_path_leads_from_one_point_to_another() -> None:
    both = catalogue(6, *CHAIN, *BACK)
    assert [one.head for one in find_path(both.members, "lv:2", "lv:4") or ()] == ["lv:3", "lv:4"]
    assert [one.head for one in find_path(both.members, "lv:4", "lv:2") or ()] == ["lv:3", "lv:2"]
    assert find_path(CHAIN, "lv:4", "lv:2") is None
    assert find_path(CHAIN, "lv:4", "lv:4") == ()


def test_points_that_are_not_kept_are_passed_by() -> None:
    plan = plan_pruning(catalogue(6, *CHAIN), ["lv:1", "lv:4", "lv:6"])
    assert [(merge.way, merge.base, merge.head, len(merge.members)) for merge in plan.merges] == [
        (FORWARD, "lv:1", "lv:4", 3),
        (FORWARD, "lv:4", "lv:6", 2),
    ]
    assert plan.removed == ()
    assert plan.dropped == ("lv:2", "lv:3", "lv:5")
    plan = plan_pruning(catalogue(6, *CHAIN), ["lv:3", "lv:6"])
    assert [(merge.way, merge.base, merge.head) for merge in plan.merges] == [
        (FULL, None, "lv:3"),
        (FORWARD, "lv:3", "lv:6"),
    ]
    plan = plan_pruning(catalogue(6, *BACK, mirror="lv:6"), ["lv:2", "lv:3"])
    assert [(merge.way, merge.base, merge.head) for merge in plan.merges] == [(REVERSE, "lv:6", "lv:3")]
    assert [one.head for one in plan.removed] == ["lv:1"]
    assert plan.dropped == ("lv:1", "lv:4", "lv:5")  # the mirror's own stays
    assert plan_pruning(catalogue(6, *CHAIN), [f"lv:{number}" for number in range(1, 7)]).is_empty


def test_a_point_that_several_lead_on_from_stays_for_their_sake() -> None:
    forked = catalogue(6, *CHAIN, member(FORWARD, 2, 6, 5))
    plan = plan_pruning(forked, ["lv:3", "lv:6"])
    assert plan.supports == ("lv:2",)
    assert [(merge.base, merge.head) for merge in plan.merges] == [(None, "lv:2")]
    assert plan.dropped == ("lv:1", "lv:4", "lv:5")


def test_a_combination_makes_one_member_of_a_path_and_drops_what_leads_only_between() -> None:
    with_full = catalogue(6, *CHAIN, *BACK, member(FULL, None, 3, 500), mirror="lv:6")
    plan = plan_combination(with_full, "lv:1", "lv:5")
    assert [(merge.way, merge.base, merge.head, len(merge.members)) for merge in plan.merges] == [
        (FORWARD, "lv:1", "lv:5", 4),
        (REVERSE, "lv:5", "lv:1", 4),
    ]
    assert [one.head for one in plan.removed] == ["lv:3"]
    assert plan.dropped == ("lv:2", "lv:3", "lv:4")
    only = catalogue(6, *CHAIN[1:], member(FULL, None, 3, 500))  # the only way to what comes behind it
    plan = plan_combination(only, "lv:1", "lv:5")
    assert [(merge.base, merge.head) for merge in plan.merges] == [("lv:1", "lv:3"), ("lv:3", "lv:5")]
    assert (plan.dropped, plan.supports) == (("lv:2", "lv:4"), ("lv:3",))
    branch = catalogue(6, *CHAIN[:5], member(FORWARD, 3, 6, 5))
    plan = plan_combination(branch, "lv:1", "lv:5")
    assert (plan.dropped, plan.supports) == (("lv:2", "lv:4"), ("lv:3",))
    unknown = catalogue(6, *BACK)  # its mirror is somewhere else
    plan = plan_combination(unknown, "lv:6", "lv:2")
    assert [(merge.base, merge.head) for merge in plan.merges] == [("lv:6", "lv:2")]
    assert plan.removed == ()
    with pytest.raises(UsageError, match="no members lead"):
        plan_combination(catalogue(6, *CHAIN[:5]), "lv:5", "lv:6")


def test_what_cannot_be_restored_is_left_alone() -> None:
    gap = catalogue(6, *BACK[:2], *BACK[3:], mirror="lv:6")  # nothing leads from 4 to 3
    plan = plan_pruning(gap, ["lv:6"])
    assert [one.head for one in plan.removed] == ["lv:4", "lv:5"]
    assert plan.dropped == ("lv:4", "lv:5")


def test_members_between_kept_points_stay_though_there_is_a_shorter_way() -> None:
    more = catalogue(6, *CHAIN, member(FULL, None, 5, 9000))
    assert plan_pruning(more, ["lv:1", "lv:5"]).removed == (CHAIN[5],)


@st.composite
def webs(draw: st.DrawFn) -> tuple[Catalogue, list[str]]:
    count = draw(st.integers(1, 9))
    members: dict[str, Member] = {}
    for _ in range(draw(st.integers(0, 14))):
        one, other = draw(st.integers(1, count)), draw(st.integers(0, count))
        stored = draw(st.integers(1, 50))
        if one == other:
            continue
        made = (
            member(FULL, None, one, stored)
            if not other
            else member(FORWARD if other < one else REVERSE, other, one, stored)
        )
        members[made.name] = made
    mirror = draw(st.none() | st.integers(1, count).map(lambda number: f"lv:{number}"))
    kept = draw(st.lists(st.integers(1, count).map(lambda number: f"lv:{number}"), unique=True))
    return catalogue(count, *members.values(), mirror=mirror), kept


def reached(members: Collection[Member], start: Collection[str | None]) -> set[str | None]:
    """All points that a search of all ways finds."""
    found: set[str | None] = set(start)
    while more := {one.head for one in members if one.base in found} - found:
        found |= more
    return found


def require_sound(before: Catalogue, plan: Plan) -> Sequence[Member]:
    """Return the members that a plan leaves; those that become one lead on from each other, and to what stays."""
    after = plan.apply(before)
    for merge in plan.merges:
        assert all(one.head == other.base for one, other in zip(merge.members, merge.members[1:], strict=False))
        assert {one.way for one in merge.members} <= ({FULL, FORWARD} if merge.way != REVERSE else {REVERSE})
    stays = {one.id for one in before.points} - set(plan.dropped)
    assert all(one.head in stays and (one.base is None or one.base in stays) for one in after.members)
    assert set(before.mirrors) <= stays
    return after.members


@given(webs(), st.data())
def test_a_combination_loses_no_point_but_those_between(web: tuple[Catalogue, list[str]], data: st.DataObject) -> None:
    before, _ = web
    first, last = (data.draw(st.sampled_from(before.points)).id for _ in range(2))
    try:
        plan = plan_combination(before, first, last)
    except UsageError:
        for way in (FORWARD, REVERSE):
            some = [one for one in before.members if one.way == way]
            assert first == last or (last not in reached(some, [first]) and first not in reached(some, [last]))
        return
    left = require_sound(before, plan)
    stays = {one.id for one in before.points} - set(plan.dropped)
    assert {first, last} <= stays
    assert list_restorable(before) & stays <= list_restorable(plan.apply(before))
    for way in (FORWARD, REVERSE):
        for base, head in ((first, last), (last, first)):
            could = head in reached([one for one in before.members if one.way == way], [base])
            assert could == (head in reached([one for one in left if one.way == way], [base]))
    # Nor what some mirror leads to that the archive does not know, unless it leads there by a point that goes.
    for point in stays:
        if point not in {one.base for one in plan.removed}:
            before_it = reached([one for one in before.members if one not in plan.removed], [point])
            assert before_it & stays <= reached(left, [point])


@given(webs())
def test_what_is_kept_is_reached_afterwards_in_every_way_that_it_was(web: tuple[Catalogue, list[str]]) -> None:
    before, kept = web
    plan = plan_pruning(before, kept)
    left = require_sound(before, plan)
    assert set(kept) <= {one.id for one in before.points} - set(plan.dropped)
    for start, ways in (((None,), (FULL, FORWARD)), (before.mirrors, (REVERSE,))):
        could = reached([one for one in before.members if one.way in ways], start)
        can = reached([one for one in left if one.way in ways], start)
        assert could & {*kept, *before.mirrors} <= can
    lost = {one.id for one in before.points} - list_restorable(before)
    assert {one.name for one in before.members if one.base in lost} <= {one.name for one in left}
    assert set(find_routes(before)) == reached(before.members, [None]) - {None}


def kept_of(times: Sequence[str | None], rules: Rules, mirror: str | None = None) -> list[int]:
    found = catalogue(len(times), mirror=mirror)
    points = tuple(replace(one, time=time) for one, time in zip(found.points, times, strict=True))
    kept = choose_kept(replace(found, points=points), rules)
    return [one.number for one in points if one.id in kept]


DAYS = [f"2026-{month:02}-{day:02}T{hour:02}:30:00Z" for month in (1, 2) for day in (1, 2, 9) for hour in (3, 15)]


@pytest.mark.parametrize(
    ("rules", "numbers"),
    [
        (Rules(last=3), [10, 11, 12]),
        (Rules(daily=2), [10, 12]),
        (Rules(hourly=3), [10, 11, 12]),
        (Rules(weekly=2), [10, 12]),
        (Rules(monthly=5), [6, 12]),
        (Rules(yearly=2), [12]),
        (Rules(within=86400), [11, 12]),
        (Rules(within=8 * 86400), [8, 9, 10, 11, 12]),
        (Rules(last=1, monthly=2), [6, 12]),
    ],
)
def test_the_newest_of_each_span_is_kept(rules: Rules, numbers: list[int]) -> None:
    assert kept_of(DAYS, rules) == numbers


def test_a_clock_that_was_set_back_loses_no_span_and_unknown_times_are_kept() -> None:
    times = ["2026-05-01T10:00Z", "2026-05-03T10:00Z", "2026-05-02T10:00Z", None, "2026-05-01T11:00Z"]
    assert kept_of(times, Rules(daily=2)) == [3, 4, 5]
    assert kept_of(times, Rules(last=1)) == [4, 5]
    assert kept_of(["2026-05-01T10:00Z"] * 3, Rules(daily=5), "lv:1") == [1, 3]
    assert kept_of([None, "2026-05-01T10:00Z"], Rules(within=60)) == [1, 2]
    assert kept_of([], Rules(last=1)) == []
    assert Rules().is_empty
    assert not Rules(within=0).is_empty
