"""``lvmsync archive list | show``: what an archive has."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, app, open_archive
from lvmsync.cli.files import print_text, require_new, write_new
from lvmsync.cli.options import Debug, Json, Quiet, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import FormatError
from lvmsync.places import parse_place


@app.command("list")
@flat
def list_points(
    archive: ArchiveWord,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    *,
    access: Access,
    debug: Debug = False,
) -> None:
    """Show the points of an archive: when, how large, how much changed, what leads to each; and how its runs went."""
    from lvmsync.cli.archive import render, render_runs
    from lvmsync.jobs.archive.status import archive_word, list_tasks
    from lvmsync.system.ledger import state_folder

    with open_archive(archive, access) as shelf:
        catalogue = shelf.catalogue
    now = datetime.now(UTC)
    try:
        tasks = list_tasks(state_folder(state), archive_word(parse_place(archive)))
    except FormatError as error:  # the points are there all the same
        print(f"note: {error}", file=sys.stderr)
        tasks = []
    if as_json:
        print_text(render.to_json(catalogue, runs=render_runs.tasks_json(tasks, now)) + "\n")
    else:
        print_text(render.table(catalogue) + render_runs.task_lines(tasks, now))


@app.command()
@flat
def show(
    archive: ArchiveWord,
    point: Annotated[str | None, typer.Argument(metavar="[POINT]", help="one point; the whole without it")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="draw what changed when")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    *,
    access: Access,
    debug: Debug = False,
) -> None:
    """Show what an archive consists of, or how one point is reached."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.cli.archive import render

    with open_archive(archive, access) as shelf:
        if svg:
            require_new(svg)
            write_new(svg, render.draw(shelf))
        found = find_point(shelf.catalogue, point) if point else None
        if as_json:
            print_text(render.to_json(shelf.catalogue, found) + "\n")
        elif not quiet:
            print_text(render.describe(shelf.catalogue, found))
