"""Which points are kept: the last so many, and the last of so many hours, days, weeks, months and years."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lvmsync.chain.catalogue import ArchivedPoint, Catalogue, parse_time


@dataclass(frozen=True)
class Rules:
    """What is to be kept; what no rule names is not.

    Attributes:
        last: so many points, the newest.
        hourly, daily, weekly, monthly, yearly: the newest point of each of so many hours, ... (UTC) that have one.
        within: seconds before the newest point; those that were seen in that time are kept.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said."""
        return self == Rules()


_SPANS: Sequence[tuple[str, str, Callable[[datetime], object]]] = (
    ("hourly", "hour", lambda when: (when.date(), when.hour)),
    ("daily", "day", lambda when: when.date()),
    ("weekly", "week", lambda when: when.isocalendar()[:2]),
    ("monthly", "month", lambda when: (when.year, when.month)),
    ("yearly", "year", lambda when: when.year),
)


def choose_kept(catalogue: Catalogue, rules: Rules) -> dict[str, list[str]]:
    """Return ids of the points that are kept, each with the reasons.

    Spans are counted back from the newest point, in the order of the points' numbers: a clock that was set back makes
    more spans, and never fewer points. A point whose time is not known is kept, and so are the newest one, which the
    next delta starts from, and one that the mirror is at.
    """
    kept: dict[str, list[str]] = {}

    def keep(point: ArchivedPoint, reason: str) -> None:
        kept.setdefault(point.id, []).append(reason)

    points = catalogue.points[::-1]
    times = {one.id: _when(one) for one in points}
    for place, point in enumerate(points[: max(rules.last, 1)], 1):
        keep(point, f"last {place}" if rules.last else "the newest")
    for rule, word, span_of in _SPANS:
        seen: set[object] = set()
        for point in points:
            when = times[point.id]
            if when is None or len(seen) >= getattr(rules, rule):
                continue
            span = span_of(when)
            if span not in seen:
                seen.add(span)
                keep(point, f"{word} {len(seen)}")
    newest = next((when for one in points if (when := times[one.id])), None)
    for point in points:
        when = times[point.id]
        if when is None:
            keep(point, "its time is not known")
        elif newest and rules.within is not None and newest - when <= timedelta(seconds=rules.within):
            keep(point, "within")
    for mirror in catalogue.mirrors:
        kept.setdefault(mirror, []).append("the mirror is at it")
    return kept


def _when(point: ArchivedPoint) -> datetime | None:
    text = parse_time(point.time) if point.time else None
    return datetime.fromisoformat(text) if text else None
