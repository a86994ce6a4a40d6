"""The ``--keep-`` options: which points are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.errors import UsageError
from lvmsync.units import parse_span

if TYPE_CHECKING:
    from lvmsync.chain.pruning import Plan
    from lvmsync.chain.retention import Rules
    from lvmsync.jobs.archive.shelf import Shelf


@dataclass(frozen=True)
class Keeping:
    """Which points are kept, as the user wrote it."""

    last: Annotated[int, typer.Option("--keep-last", metavar="N", help="the newest points", min=0)] = 0
    hourly: Annotated[int, typer.Option("--keep-hourly", metavar="N", help="one of each of so many hours", min=0)] = 0
    daily: Annotated[int, typer.Option("--keep-daily", metavar="N", help="days", min=0)] = 0
    weekly: Annotated[int, typer.Option("--keep-weekly", metavar="N", help="weeks", min=0)] = 0
    monthly: Annotated[int, typer.Option("--keep-monthly", metavar="N", help="months", min=0)] = 0
    yearly: Annotated[int, typer.Option("--keep-yearly", metavar="N", help="years", min=0)] = 0
    within: Annotated[
        str | None, typer.Option("--keep-within", metavar="TIME", help="before the newest: 36h, 14d, 8w")
    ] = None

    def __post_init__(self) -> None:
        if self.within is not None and (parse_span(self.within) is None or self.within.endswith("s")):
            raise UsageError(f"--keep-within '{self.within}': write minutes, hours, days or weeks: 90m, 36h, 14d, 8w")

    @property
    def rules(self) -> Rules | None:
        """The rules; None where nothing is said."""
        from lvmsync.chain.retention import Rules

        within = None if self.within is None else parse_span(self.within)
        rules = Rules(self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly, within)
        return None if rules.is_empty else rules

    def plan(self, shelf: Shelf) -> tuple[Plan, dict[str, list[str]]]:
        """Return what pruning an archive by these rules does, and why points are kept."""
        from lvmsync.chain.pruning import plan_pruning
        from lvmsync.chain.retention import choose_kept

        assert self.rules is not None
        kept = choose_kept(shelf.catalogue, self.rules)
        return plan_pruning(shelf.catalogue, kept), kept
