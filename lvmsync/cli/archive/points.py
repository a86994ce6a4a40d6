"""``lvmsync archive init | take | import``: where points come from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, Label, app, open_archive, open_place
from lvmsync.cli.archive.taking import Taker, Taking
from lvmsync.cli.asked import Managing, View
from lvmsync.cli.files import open_input
from lvmsync.cli.options import Debug, Quiet, SourceWord, State
from lvmsync.cli.refinement import Refinement
from lvmsync.cli.verbs import flat
from lvmsync.errors import UsageError


@app.command()
@flat
def init(
    archive: ArchiveWord,
    encrypt: Annotated[
        bool,
        typer.Option("--encrypt", help="encrypt all that comes in; a key file that is not there is made"),
    ] = False,
    quiet: Quiet = False,
    *,
    access: Access,
    debug: Debug = False,
) -> None:
    """Make an empty archive in a new or empty place."""
    from lvmsync.cli.archive.unlocking import get_first_secret, require_no_secret
    from lvmsync.jobs.archive.keys import init_sealed
    from lvmsync.jobs.archive.shelf import Shelf

    with open_place(archive, access) as store:
        if encrypt:
            init_sealed(store, lambda: get_first_secret(access))
        else:
            require_no_secret(access)
            Shelf.init(store)
        if encrypt and not quiet:
            print(
                "note: without its key file or passphrase, or without its keys-... object, nobody can read the archive:"
                " keep a copy of both elsewhere",
                file=sys.stderr,
            )
        if not quiet:
            print(
                f"{store.name} is an archive now; 'lvmsync archive take {archive} SOURCE' makes its first point",
                file=sys.stderr,
            )


@app.command()
@flat
def take(
    archive: ArchiveWord,
    source: SourceWord,
    label: Label = None,
    state: State = None,
    *,
    taking: Taking,
    refinement: Refinement,
    managing: Managing,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Write a source's changes into the archive, as one more point.

    Of a plain or thin volume (vg/lv) lvmsync takes the snapshots by itself: all of it is taken the first time, and what
    changed since then each further time. Of another source it is what that tells: all of it with full:DEVICE, or what
    changed since a point that the archive has.
    """
    taker = Taker(source, taking, refinement, managing, state)
    with open_archive(archive, access) as shelf:
        view.print_receipt(taker.take(shelf, view, label))


@app.command("import")
@flat
def bring_in(
    archive: ArchiveWord,
    streams: Annotated[list[Path], typer.Argument(metavar="FILE...", help="streams or snapbacks, oldest first")],
    label: Label = None,
    new_chain: Annotated[
        bool, typer.Option("--new-chain", help="take one that nothing in the archive is connected with")
    ] = False,
    *,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Copy streams that are files into the archive: what 'send -o' wrote, or what a receive kept with --snapback."""
    from lvmsync.jobs.archive.take import bring_in as run

    if label is not None and len(streams) > 1:
        raise UsageError("--label is for one point: import one FILE with it")
    with open_archive(archive, access) as shelf:
        for path in streams:
            with open_input(path) as file:
                most = os.fstat(file.fileno()).st_size or None  # of a pipe it is not known
                receipt = run(shelf, file.readinto, name=str(path), label=label, is_new_chain=new_chain, most=most)
            view.print_receipt(receipt)
