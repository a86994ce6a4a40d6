"""``lvmsync archive combine | prune``: fewer points, and what stays can be restored as before."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, app, counted, open_archive
from lvmsync.cli.asked import View
from lvmsync.cli.files import print_text, stream_options
from lvmsync.cli.options import Compress, Debug, DryRun
from lvmsync.cli.verbs import flat
from lvmsync.errors import UsageError

if TYPE_CHECKING:
    from lvmsync.chain.catalogue import Catalogue
    from lvmsync.chain.pruning import Plan
    from lvmsync.jobs.archive.prune import Pruned
    from lvmsync.jobs.archive.shelf import Shelf


@app.command()
@flat
def combine(
    archive: ArchiveWord,
    first: Annotated[str, typer.Argument(metavar="FROM", help="point: number, label, id or time")],
    last: Annotated[str, typer.Argument(metavar="TO", help="another one; those between them go")],
    compress: Compress = None,
    dry_run: DryRun = False,
    *,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Make one member of all that lead from one point to another. The points between them are gone then."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.chain.pruning import plan_combination

    with open_archive(archive, access) as shelf:
        ends = sorted((find_point(shelf.catalogue, word) for word in (first, last)), key=lambda one: one.number)
        if ends[0] == ends[1]:
            raise UsageError(f"{first} and {last} are one point")
        plan = plan_combination(shelf.catalogue, ends[0].id, ends[1].id)
        _carry_out(shelf, plan, {}, compress, view, dry_run=dry_run)


@app.command()
@flat
def prune(
    archive: ArchiveWord,
    last: Annotated[int, typer.Option("--keep-last", metavar="N", help="the newest points", min=0)] = 0,
    hourly: Annotated[int, typer.Option("--keep-hourly", metavar="N", help="one of each of so many hours", min=0)] = 0,
    daily: Annotated[int, typer.Option("--keep-daily", metavar="N", help="days", min=0)] = 0,
    weekly: Annotated[int, typer.Option("--keep-weekly", metavar="N", help="weeks", min=0)] = 0,
    monthly: Annotated[int, typer.Option("--keep-monthly", metavar="N", help="months", min=0)] = 0,
    yearly: Annotated[int, typer.Option("--keep-yearly", metavar="N", help="years", min=0)] = 0,
    within: Annotated[
        str | None, typer.Option("--keep-within", metavar="TIME", help="before the newest: 36h, 14d, 8w")
    ] = None,
    compress: Compress = None,
    dry_run: DryRun = False,
    *,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Let all points go that no rule keeps; members are combined so that those that stay can be restored as before."""
    from lvmsync.chain.pruning import plan_pruning
    from lvmsync.chain.retention import Rules, choose_kept

    rules = Rules(last, hourly, daily, weekly, monthly, yearly, _seconds(within))
    if rules.is_empty:
        raise UsageError(
            "say what is to be kept: --keep-last N, -hourly, -daily, -weekly, -monthly, -yearly, -within TIME"
        )
    with open_archive(archive, access) as shelf:
        kept = choose_kept(shelf.catalogue, rules)
        _carry_out(shelf, plan_pruning(shelf.catalogue, kept), kept, compress, view, dry_run=dry_run)


def _carry_out(
    shelf: Shelf, plan: Plan, kept: dict[str, list[str]], compress: str | None, view: View, *, dry_run: bool
) -> None:
    from lvmsync.cli.archive import render
    from lvmsync.jobs.archive.prune import Pruned
    from lvmsync.jobs.archive.prune import prune as run

    before = shelf.catalogue
    if not view.as_json and not view.quiet:
        print(render.plan_words(before, plan, kept), end="", file=sys.stderr)
    done = Pruned()
    if not dry_run:
        with view.report() as report:
            done = run(shelf, plan, stream_options(4, compress or "zstd:1"), report)
    _say(before, plan, done, view, dry_run=dry_run)


def _say(before: Catalogue, plan: Plan, done: Pruned, view: View, *, dry_run: bool) -> None:
    from lvmsync.cli.render import size

    if view.as_json:
        numbers = {one.id: one.number for one in before.points}
        told = {
            "job": "archive prune",
            "dry_run": dry_run,
            "drops": [numbers[one] for one in plan.dropped],
            "supports": [numbers[one] for one in plan.supports],
            "combines": [[one.name for one in merge.members] for merge in plan.merges],
            "removes": [one.name for one in plan.removed],
        }
        print_text(json.dumps({**told, **asdict(done)}) + "\n")
        return
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if view.quiet:
        return
    if plan.is_empty:
        print("nothing is to be done", file=sys.stderr)
    elif dry_run:
        print("nothing was changed: that was a dry run", file=sys.stderr)
    else:
        rate = f", {size(done.read_bytes / done.seconds)}/s" if done.read_bytes and done.seconds else ""
        print(
            f"{counted(len(done.dropped), 'point')} gone, {size(done.freed_bytes)} freed,"
            f" {size(done.written_bytes)} written in {done.seconds:.1f} s{rate}",
            file=sys.stderr,
        )


def _seconds(word: str | None) -> int | None:
    """Read a span of time: 90m, 36h, 14d, 8w.

    Raises:
        UsageError: it is none.
    """
    if word is None:
        return None
    units = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    if word[-1:] in units and word[:-1].isascii() and word[:-1].isdecimal() and len(word) < 7:
        return int(word[:-1]) * units[word[-1]]
    raise UsageError(f"--keep-within '{word}': write minutes, hours, days or weeks: 90m, 36h, 14d, 8w")
