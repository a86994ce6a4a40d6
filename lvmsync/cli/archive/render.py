"""How an archive is shown: a table, a picture, the words of a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING

from lvmsync.chain.catalogue import FULL, REVERSE, ArchivedPoint, Catalogue, Member
from lvmsync.chain.routes import Route, find_routes
from lvmsync.cli.render import density, size

if TYPE_CHECKING:
    from lvmsync.chain.pruning import Plan
    from lvmsync.jobs.archive.mounted import Mounted
    from lvmsync.jobs.archive.shelf import Shelf

_BARS = "▁▂▃▄▅▆▇█"


def table(catalogue: Catalogue) -> str:
    """Return the points as a table, oldest first."""
    if not catalogue.points:
        return "no points yet\n"
    routes = find_routes(catalogue, catalogue.mirrors)
    changed = [_changed(catalogue, point) for point in catalogue.points]
    most = max([one for one in changed if one] or [1])
    rows: list[Sequence[str]] = [("POINT", "TIME (UTC)", "SIZE", "CHANGED", "", "STORED", "CHAIN", "LABEL")]
    for point, count in zip(catalogue.points, changed, strict=True):
        members = _leading(catalogue, point)
        rows.append(
            (
                str(point.number),
                (point.time or "not known")[:19].replace("T", " "),
                size(point.size),
                "" if count is None else size(count),
                "" if count is None else _bar(count, most),
                size(sum(one.stored for one in members)) if members else "",
                _chain(catalogue, point, routes.get(point.id)),
                _printable(point.label or ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {2, 3, 5}
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def describe(catalogue: Catalogue, point: ArchivedPoint | None) -> str:
    """Return in words what an archive consists of, or how one of its points is reached."""
    routes = find_routes(catalogue, catalogue.mirrors)
    if point is None:
        stored = sum(one.stored + one.index_stored for one in catalogue.members)
        lines = [
            f"archive {catalogue.archive}, catalogue {catalogue.number}",
            f"{len(catalogue.points)} points, {len(catalogue.members)} members, {size(stored)}",
        ]
        mirror = catalogue.find(catalogue.mirror or "")
        if mirror:
            lines.append(f"its mirror is at point #{mirror.number} ({mirror.id})")
        lines += [f"  {_member_words(catalogue, one)}" for one in catalogue.members]
        return "\n".join(lines) + "\n"
    lines = [
        f"point #{point.number}: {point.id}",
        f"  {size(point.size)} of {_printable(point.name or 'a device')} on {_printable(point.host or 'a machine')},"
        f" {point.time or 'at a time that is not known'}",
    ]
    if point.label:
        lines.append(f"  label: {_printable(point.label)}")
    lines.append(f"  digest: {point.digest or 'not known yet; archive verify --restore-test finds it'}")
    route = routes.get(point.id)
    if route is None:
        lines.append("  it cannot be restored: nothing leads to it")
    else:
        begin = catalogue.find(route.mirror or "")
        lines.append(f"  reached from {'a full copy' if begin is None else f'the mirror at #{begin.number}'} by:")
        lines += [f"    {_member_words(catalogue, one)}" for one in route.members]
    return "\n".join(lines) + "\n"


def mounted_words(mounted: Sequence[Mounted]) -> str:
    """Return in words which points are mounted, a line each."""
    words = (f"{one.path}{f', on {_printable(one.directory)}' if one.directory else ''}" for one in mounted)
    return "".join(f"point #{one.number} is mounted: {where}\n" for one, where in zip(mounted, words, strict=True))


def to_json(
    catalogue: Catalogue,
    point: ArchivedPoint | None = None,
    mounted: Sequence[Mounted] = (),
    *,
    runs: Sequence[Mapping[str, object]] | None = None,
) -> str:
    """Return it as a JSON object; of one point only what is about that.

    Args:
        catalogue: of the archive.
        point: one of its points; None: all.
        mounted: those of its points that are mounted here.
        runs: what this machine knows of runs that take something into it.
    """
    routes = find_routes(catalogue, catalogue.mirrors)
    numbers = {one.id: one.number for one in catalogue.points}

    def told(one: ArchivedPoint) -> dict[str, object]:
        route = routes.get(one.id)
        return {
            **asdict(one),
            "changed_bytes": _changed(catalogue, one),
            "restorable": route is not None,
            "from_mirror": route is not None and route.mirror is not None,
            "route": [member.name for member in route.members] if route else None,
            "mounted": [{"device": at.path, "directory": at.directory} for at in mounted if at.point == one.id],
        }

    if point is not None:
        return json.dumps(told(point))
    return json.dumps(
        {
            "archive": catalogue.archive,
            "number": catalogue.number,
            "mirror": numbers.get(catalogue.mirror or ""),
            "points": [told(one) for one in catalogue.points],
            "members": [asdict(one) for one in catalogue.members],
            **({"runs": runs} if runs is not None else {}),
        }
    )


def plan_words(catalogue: Catalogue, plan: Plan, kept: Mapping[str, Sequence[str]]) -> str:
    """Return what a plan does, a line for each point."""
    lines = []
    dropped, supports = set(plan.dropped), set(plan.supports)
    for point in catalogue.points:
        if point.id in dropped:
            words = "goes"
        elif point.id in supports:
            words = "stays, since others are reached through it"
        else:
            words = f"stays ({', '.join(kept[point.id])})" if point.id in kept else "stays"
        lines.append(f"#{point.number}  {(point.time or 'not known')[:19].replace('T', ' ')}  {words}")
    for merge in plan.merges:
        head, base = catalogue.find(merge.head), catalogue.find(merge.base or "")
        begin = f"#{base.number} to " if base else "a full copy of "
        stored = size(sum(one.stored for one in merge.members))
        lines.append(f"{len(merge.members)} members ({stored}) become one: {begin}#{head.number if head else '?'}")
    for member in plan.removed:
        lines.append(f"goes: {_member_words(catalogue, member)}")
    return "".join(f"{line}\n" for line in lines)


def draw(shelf: Shelf) -> str:
    """Return a picture of what changed when: a row for each member, the device from left to right.

    Raises:
        LvmsyncError: a member's index cannot be read.
    """
    from lvmsync.jobs.archive.members import open_member

    catalogue = shelf.catalogue
    cells, side, left, top = 256, 4, 190, 44
    whole = max([one.size for one in catalogue.points] or [1])
    height, boxes = 14, []
    members = sorted(catalogue.members, key=lambda one: _number(catalogue, one.head))
    for row, member in enumerate(members):
        y = top + row * height
        with open_member(shelf.store, member) as opened:
            parts = density(opened.index.table().map(), whole, cells)
        point = catalogue.find(member.head)
        when = (point.time if point else None) or "not known"
        color = {FULL: 210, REVERSE: 30}.get(member.way, 130)
        words = f"#{point.number if point else '?'}  {when[:16].replace('T', ' ')}  {member.way}"
        boxes.append(f'<text x="4" y="{y + 10}">{escape(words, quote=False)}</text>')
        for cell in parts.nonzero()[0].tolist():
            part = float(parts[cell])
            at = size(whole * cell / cells)
            boxes.append(
                f'<rect x="{left + cell * side}" y="{y}" width="{side}" height="{height - 2}"'
                f' fill="hsl({color},65%,{75 - 45 * part:.0f}%)"><title>{at}: {100 * part:.1f} %</title></rect>'
            )
    width, total = left + cells * side + 4, top + len(members) * height + 4
    caption = f"{len(catalogue.points)} points, {len(members)} members, a device of {size(whole)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}"'
        f' font-family="monospace" font-size="10">\n<rect width="{width}" height="{total}" fill="#fff"/>\n'
        f'<text x="4" y="16">{escape(_printable(shelf.store.name), quote=False)}</text>\n'
        f'<text x="4" y="32">{caption}</text>\n' + "\n".join(boxes) + "\n</svg>\n"
    )


def _number(catalogue: Catalogue, point_id: str) -> int:
    point = catalogue.find(point_id)
    return point.number if point else 0


def _leading(catalogue: Catalogue, point: ArchivedPoint) -> list[Member]:
    return [one for one in catalogue.members if one.head == point.id]


def _changed(catalogue: Catalogue, point: ArchivedPoint) -> int | None:
    """Return how many bytes changed from the point before to this one, as a member between them tells."""
    at = [one.id for one in catalogue.points].index(point.id)
    before = catalogue.points[at - 1].id if at else None
    for member in catalogue.members:
        if {member.base, member.head} == {before, point.id}:
            return member.changed_bytes
    return None


def _bar(count: int, most: int) -> str:
    """Return a block whose height tells how much that is, against the most."""
    return _BARS[min(len(_BARS) - 1, count * len(_BARS) // max(most, 1))] if count else " "


def _chain(catalogue: Catalogue, point: ArchivedPoint, route: Route | None) -> str:
    if route is None:
        return "cannot be restored"
    if not route.members:
        return "the mirror"
    last, steps = route.members[-1], len(route.members)
    if last.way == FULL:
        return "full copy"
    base = f"#{_number(catalogue, last.base or '')}"
    begin = f"the mirror, {steps}" if route.mirror else f"a full copy, {steps - 1}"
    word = "back from" if last.way == REVERSE else "on from"
    return f"{word} {base} ({begin} step{'s' if begin[-2:] != ' 1' else ''})"


def _member_words(catalogue: Catalogue, member: Member) -> str:
    base = f" from #{_number(catalogue, member.base)}" if member.base else ""
    return (
        f"{member.way}{base} to #{_number(catalogue, member.head)}: {size(member.changed_bytes)} changed,"
        f" {size(member.stored)} stored in {member.name}"
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
