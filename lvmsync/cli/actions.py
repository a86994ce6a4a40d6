"""Verbs that have actions of their own: ``lvmsync era create``, ``lvmsync blksnap sync``."""

from __future__ import annotations

import typer
from typer.core import TyperGroup

from lvmsync.cli.classic import bare_words


class Actions(TyperGroup):
    """Finds the action among its options, as `classic` finds the verb; without words it shows help."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put the action first."""
        bare = bare_words(args)[:1]
        words = [args[at] for at in bare] + [word for at, word in enumerate(args) if at not in bare]
        return super().parse_args(ctx, words or ["--help"])
