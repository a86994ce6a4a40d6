"""``lvmsync archive combine | prune``: fewer points, and what stays can be restored as before."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, app, counted, open_archive
from lvmsync.cli.archive.keeping import Keeping
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
    compress: Compress = None,
    dry_run: DryRun = False,
    *,
    keeping: Keeping,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Let all points go that no rule keeps; members are combined so that those that stay can be restored as before."""
    if keeping.rules is None:
        raise UsageError(
            "say what is to be kept: --keep-last N, -hourly, -daily, -weekly, -monthly, -yearly, -within TIME"
        )
    with open_archive(archive, access) as shelf:
        plan, kept = keeping.plan(shelf)
        _carry_out(shelf, plan, kept, compress, view, dry_run=dry_run)


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
    say_pruned(plan, done, quiet=view.quiet, dry_run=dry_run)


def say_pruned(plan: Plan, done: Pruned, *, quiet: bool, dry_run: bool = False) -> None:
    """Tell what was let go."""
    from lvmsync.cli.render import size

    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if quiet:
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
