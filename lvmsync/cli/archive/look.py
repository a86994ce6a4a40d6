"""``lvmsync archive list | show``: what an archive has."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, app, open_archive
from lvmsync.cli.files import print_text, require_new, write_new
from lvmsync.cli.options import Debug, Json, Quiet, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import FormatError, LvmsyncError
from lvmsync.places import parse_place

if TYPE_CHECKING:
    from lvmsync.jobs.archive.mounted import Mounted


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
    mounted = _find_mounted(catalogue.archive, state)
    if as_json:
        print_text(render.to_json(catalogue, None, mounted, runs=render_runs.tasks_json(tasks, now)) + "\n")
    else:
        print_text(render.table(catalogue) + render.mounted_words(mounted) + render_runs.task_lines(tasks, now))


@app.command()
@flat
def show(
    archive: ArchiveWord,
    point: Annotated[str | None, typer.Argument(metavar="[POINT]", help="one point; the whole without it")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="draw what changed when")] = None,
    as_json: Json = False,
    state: State = None,
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
        mounted = _find_mounted(shelf.catalogue.archive, state, found.id if found else None)
        if as_json:
            print_text(render.to_json(shelf.catalogue, found, mounted) + "\n")
        elif not quiet:
            print_text(render.describe(shelf.catalogue, found) + render.mounted_words(mounted))


def _find_mounted(archive: str, state: str | None, point: str | None = None) -> list[Mounted]:
    """Return the points of an archive that are mounted here, or one of them; none where that cannot be told."""
    from lvmsync.jobs.archive.mounted import list_mounted
    from lvmsync.jobs.archive.umount import is_there
    from lvmsync.system.ledger import state_folder

    with suppress(LvmsyncError):
        mine = [one for one in list_mounted(state_folder(state)) if one.archive_id == archive]
        return [one for one in mine if point in (None, one.point) and is_there(one)]
    return []
