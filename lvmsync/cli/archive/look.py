"""``lvmsync archive list | show``: what an archive has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, app, open_archive
from lvmsync.cli.files import print_text, require_new, write_new
from lvmsync.cli.options import Debug, Json, Quiet
from lvmsync.cli.verbs import flat


@app.command("list")
@flat
def list_points(
    archive: ArchiveWord, as_json: Json = False, quiet: Quiet = False, *, access: Access, debug: Debug = False
) -> None:
    """Show the points of an archive: when, how large, how much changed, and what leads to each."""
    from lvmsync.cli.archive import render

    with open_archive(archive, access) as shelf:
        catalogue = shelf.catalogue
    if as_json:
        print_text(render.to_json(catalogue) + "\n")
    else:
        print_text(render.table(catalogue))


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
