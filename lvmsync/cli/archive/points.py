"""``lvmsync archive init | take | import``: where points come from."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, Label, app, open_archive, open_place
from lvmsync.cli.asked import Managing, Orders, View, Way
from lvmsync.cli.files import open_input, stream_options
from lvmsync.cli.options import Compress, DataSource, Debug, Frozen, Quiet, SourceWord, State
from lvmsync.cli.refinement import Refinement
from lvmsync.cli.verbs import flat
from lvmsync.errors import UsageError
from lvmsync.names import CowFile, Volume, parse_source

if TYPE_CHECKING:
    from lvmsync.jobs.archive.shelf import Shelf
    from lvmsync.jobs.progress import Receipt
    from lvmsync.jobs.send import StreamOptions
    from lvmsync.system.lvm import LogicalVolume


@app.command()
@flat
def init(archive: ArchiveWord, quiet: Quiet = False, *, access: Access, debug: Debug = False) -> None:
    """Make an empty archive in a new or empty folder."""
    from lvmsync.jobs.archive.shelf import Shelf

    with open_place(archive, access) as store:
        Shelf.init(store)
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
    data_source: DataSource = None,
    frozen: Frozen = False,
    label: Label = None,
    compress: Compress = None,
    state: State = None,
    *,
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
    from lvmsync.cli.replica import find_managed
    from lvmsync.jobs.archive.take import take as run
    from lvmsync.sources import Reading, open_source
    from lvmsync.system.lvm import list_around

    name = parse_source(source)
    options = stream_options(4, compress or "zstd:1")
    is_plain = data_source is None and not frozen and not refinement.is_wanted
    told = list_around(name) if is_plain and isinstance(name, Volume) else None
    volume = find_managed(source, managing, told) if is_plain and isinstance(name, Volume) else None
    if volume is None:
        managing.require_none(source)
    reading = refinement.want(name, Reading(data_source=data_source, frozen=frozen))
    with ExitStack() as stack:
        shelf = stack.enter_context(open_archive(archive, access))
        if volume:
            return view.print_receipt(_take_managed(shelf, volume, state, managing, options, view, label))
        report = stack.enter_context(view.report())
        if isinstance(name, CowFile):
            from lvmsync.jobs.dattobd_points import open_recorded
            from lvmsync.system.ledger import state_folder

            opened = stack.enter_context(open_recorded(state_folder(state), name, reading))
        else:
            opened = stack.enter_context(open_source(name, reading))
        receipt = run(shelf, refinement.apply(opened, report), options, report, label=label)
    view.print_receipt(receipt)


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


def _take_managed(
    shelf: Shelf,
    volume: LogicalVolume,
    state: str | None,
    managing: Managing,
    options: StreamOptions,
    view: View,
    label: str | None,
) -> Receipt:
    from lvmsync.cli.asked import Asked
    from lvmsync.cli.replica import pass_options
    from lvmsync.jobs.archive.managed import take_volume
    from lvmsync.names import TargetName
    from lvmsync.system.ledger import state_folder

    if managing.thin_pool or managing.retries is not None:
        raise UsageError("--thin-pool and --retries are for a copy, and this is an archive")
    passes = pass_options(TargetName(None, shelf.store.name), Asked(Way(), Orders(), managing))
    with view.report() as report:
        return take_volume(shelf, volume, state_folder(state), replace(passes, stream=options), report, label=label)
