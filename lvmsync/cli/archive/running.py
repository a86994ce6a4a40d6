"""``lvmsync archive run``: one run as a timer wants it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, app, open_archive
from lvmsync.cli.archive.keeping import Keeping
from lvmsync.cli.archive.taking import Taker, Taking
from lvmsync.cli.archive.tidying import say_pruned
from lvmsync.cli.asked import Managing, View
from lvmsync.cli.files import print_text, stream_options
from lvmsync.cli.options import Debug, SourceWord, State
from lvmsync.cli.refinement import Refinement
from lvmsync.cli.verbs import flat
from lvmsync.errors import UsageError
from lvmsync.names import parse_source
from lvmsync.places import parse_place
from lvmsync.units import parse_span

if TYPE_CHECKING:
    from lvmsync.chain.catalogue import Catalogue
    from lvmsync.chain.pruning import Plan
    from lvmsync.jobs.archive.prune import Pruned
    from lvmsync.jobs.progress import Receipt

Metrics = Annotated[
    Path | None,
    typer.Option("--metrics", metavar="FILE|DIR", help="write metrics there, for node_exporter's textfile collector"),
]
Jitter = Annotated[
    str | None, typer.Option("--jitter", metavar="TIME", help="first wait a random time, so long at the most: 5m")
]


def jitter_seconds(word: str | None) -> int:
    """Read ``--jitter``.

    Raises:
        UsageError: it is no span of time.
    """
    seconds = 0 if word is None else parse_span(word)
    if seconds is None:
        raise UsageError(f"--jitter '{word}': write seconds, minutes or hours: 30s, 5m, 1h")
    return seconds


@app.command("run")
@flat
def run_task(
    archive: ArchiveWord,
    source: SourceWord,
    metrics: Metrics = None,
    jitter: Jitter = None,
    state: State = None,
    *,
    keeping: Keeping,
    taking: Taking,
    refinement: Refinement,
    managing: Managing,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Take a source into the archive, then prune by the rules that are given, as a timer wants it.

    One run at a time; how it ended is shown by 'archive list', by 'lvmsync doctor', and in the metrics.
    """
    from lvmsync.jobs.archive import lag, prune, run
    from lvmsync.jobs.archive.status import Task
    from lvmsync.system.ledger import state_folder

    folder, seconds = state_folder(state), jitter_seconds(jitter)
    task = Task.of(parse_place(archive), parse_source(source))
    options = stream_options(4, taking.compress or "zstd:1")
    takers: list[Taker] = []
    plans: list[Plan] = []

    def take() -> Receipt:
        takers.append(Taker(source, taking, refinement, managing, state))
        with open_archive(archive, access) as shelf:
            return takers[0].take(shelf, view)

    def let_go() -> Pruned:
        with open_archive(archive, access) as shelf, view.report() as report:
            plans.append(keeping.plan(shelf)[0])
            return prune.prune(shelf, plans[0], options, report)

    def look() -> Catalogue:
        with open_archive(archive, access) as shelf:
            return shelf.catalogue

    def lag_bytes(catalogue: Catalogue) -> int | None:
        volume = takers[0].volume if takers else None
        return lag.find_lag_bytes(volume, catalogue) if volume else None

    work = run.Work(take, let_go if keeping.rules else None, look, lag_bytes)
    done = run.run(folder, task, work, jitter=seconds, metrics=metrics)
    if view.as_json:
        pruned = asdict(done.pruned) if done.pruned else None
        told = {"job": "archive run", "take": asdict(done.receipt), "prune": pruned, "record": asdict(done.record)}
        print_text(json.dumps(told) + "\n")
        return
    view.print_receipt(done.receipt)
    if done.pruned:
        say_pruned(plans[0], done.pruned, quiet=view.quiet)
