"""The catalogue: what is written is read again, and what contradicts itself is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lvmsync.chain.catalogue import (
    FORWARD,
    FULL,
    LINEAGE,
    REVERSE,
    ArchivedPoint,
    Catalogue,
    Member,
    find_point,
)
from lvmsync.errors import FormatError, UsageError

D = "0123456789abcdef" * 2


def point(number: int, **others: Any) -> ArchivedPoint:
    return ArchivedPoint(f"lv:{number}", number, 4096, f"2026-01-{number:02}T00:00:00+00:00", **others)


def member(way: str, base: int | None, head: int, stored: int = 100) -> Member:
    name, start = f"{way}-{base or 'none'}-{head}", None if base is None else f"lv:{base}"
    return Member(f"{name}.stream", way, start, f"lv:{head}", stored, 1, 1, D, f"{name}.index", 9, D)


def catalogue(count: int, *members: Member, **others: Any) -> Catalogue:
    points = tuple(point(number) for number in range(1, count + 1))
    return Catalogue("a" * 32, 7, "c", ("b", "a"), points, members, (), count + 1, **others)


GOOD = catalogue(3, member(FULL, None, 1), member(FORWARD, 1, 2), member(REVERSE, 3, 2), mirror="lv:3")


def test_what_is_written_is_read_again() -> None:
    assert Catalogue.parse(GOOD.dump(), "c") == GOOD
    more = {**json.loads(GOOD.dump()), "of a later lvmsync": [1]}
    assert Catalogue.parse(json.dumps(more).encode(), "c") == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "1"}, "no 'format'"),
        ({"format": 2}, "use a newer one"),
        ({"archive": ""}, "'archive' or 'commit' is empty"),
        ({"commit": ""}, "'archive' or 'commit' is empty"),
        ({"archive": 7}, "'archive' is not possible"),
        ({"number": -1}, "'number' is not possible"),
        ({"lineage": [7]}, "'lineage' is no list of words"),
        ({"doomed": ["../x"]}, "is no name of an object"),
        ({"doomed": ["full-none-1.stream"]}, "a member is doomed"),
        ({"mirror": "lv:9"}, "the mirror is at a point that is not there"),
        ({"next_number": 3}, "not in the order"),
        ({"points": [7]}, "damaged"),
        ({"points": [], "mirror": None}, "a point that is not there"),
    ],
)
def test_a_catalogue_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Catalogue.parse(json.dumps({**json.loads(GOOD.dump()), **changes}).encode(), "c")


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [
        (0, {"base": "lv:2"}, "the way of .* is not possible"),
        (1, {"base": None}, "the way of .* is not possible"),
        (1, {"way": "sideways"}, "the way of .* is not possible"),
        (1, {"way": REVERSE}, "leads against its way"),
        (2, {"way": FORWARD}, "leads against its way"),
        (1, {"head": "lv:9"}, "from or to a point that is not there"),
        (1, {"base": "lv:9"}, "from or to a point that is not there"),
        (1, {"digest": "x"}, "a digest of .* is none"),
        (1, {"index_digest": D + "0"}, "a digest of .* is none"),
        (1, {"name": ".hidden"}, "is no name of an object"),
        (1, {"name": "full-none-1.stream"}, "two members are one object"),
    ],
)
def test_a_member_that_cannot_be_is_refused(which: int, changes: dict[str, Any], message: str) -> None:
    members = [*GOOD.members]
    members[which] = replace(members[which], **changes)
    with pytest.raises(FormatError, match=message):
        Catalogue.parse(replace(GOOD, members=tuple(members)).dump(), "c")


def test_two_points_are_not_one() -> None:
    with pytest.raises(FormatError, match="two points have one id"):
        Catalogue.parse(replace(GOOD, points=(*GOOD.points[:2], replace(GOOD.points[1], number=3))).dump(), "c")
    for bad in (b"", b"{", b"[" * 100_000, b"\xff", b"null"):
        with pytest.raises(FormatError, match="not a catalogue"):
            Catalogue.parse(bad, "c")


def test_the_next_catalogue_knows_those_before_it() -> None:
    found = GOOD
    for number in range(LINEAGE + 5):
        found = found.successor(f"c{number}")
    assert found.number == GOOD.number + LINEAGE + 5
    assert found.has(found.commit)
    assert found.has("c9")
    assert not found.has("c3")
    assert len(found.lineage) == LINEAGE


def test_points_get_numbers_in_the_order_in_which_they_come() -> None:
    more = GOOD.with_points(ArchivedPoint("lv:2", 0, 1), ArchivedPoint("x", 0, 1), ArchivedPoint("y", 99, 1))
    assert [one.number for one in more.points] == [1, 2, 3, 4, 5]
    assert (more.points[3].id, more.next_number) == ("x", 6)


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("2", 2), ("#2", 2), ("latest", 4), ("lv:3", 3), ("monday", 2), ("abcd", 4), ("thin:abcd", 4),
        ("2026-01-02", 2),
        ("2026-01-01T00:00", 1), ("2026-01-03T01:00:00+02:00", 2), ("2026-01-03T02:00:00+02:00", 3), ("2027-01-01", 3),
        ("2026-01-03T00:00:00Z", 3), ("2026-01-03 00:00", 3),
        ("2026-01-02T23:59Z", 2), ("2026-01-03T00:00-00:30", 3),
    ],
)  # fmt: skip
def test_a_point_is_found_by_whatever_names_it(word: str, number: int) -> None:
    points = (point(1), point(2, label="monday"), point(3), ArchivedPoint("thin:abcd-77", 4, 4096, "nonsense"))
    assert find_point(replace(GOOD, points=points, next_number=5), word).number == number


def test_what_names_no_point_or_several_is_told() -> None:
    points = (point(1), replace(point(2), id="abcd-1"), replace(point(3), id="abcd-2", time=None))
    some = replace(GOOD, points=points)
    for word, message in (
        ("abcd", r"names several points: #2 \(2026-01-02.*\), #3; name one by its number"),
        ("#9", "no point '#9'"),
        ("x", "no point 'x'"),
        ("wednesday", "no point 'wednesday'"),
        ("20260102", "no point '20260102'"),
        ("2026-02-30", "no point '2026-02-30'"),
        ("0001-01-01T00:00+05:00", "no point"),
        ("9999-12-31T23:59-05:00", "no point"),
        ("2025-01-01", "no point was seen at 2025-01-01 or before"),
    ):
        with pytest.raises(UsageError, match=message):
            find_point(some, word)
    many = catalogue(9)
    with pytest.raises(UsageError, match=r"#1 .*, #2 .*, #3 .*, \.\.\., #8 .*, #9 "):
        find_point(many, "x")
    with pytest.raises(UsageError, match="has no points yet"):
        find_point(replace(GOOD, points=()), "latest")


@pytest.mark.parametrize("name", ["", ".x", "a/b", "A", "a" * 101])
def test_names_of_objects_are_plain(name: str) -> None:
    with pytest.raises(FormatError, match="is no name of an object"):
        Catalogue.parse(replace(GOOD, doomed=(name,)).dump(), "c")
