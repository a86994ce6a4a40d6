"""``lvmsync archive restore | export``: past states, brought back."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, At, MirrorWord, app, open_archive, open_mirror
from lvmsync.cli.asked import Orders, View, Way
from lvmsync.cli.files import stream_options
from lvmsync.cli.options import Compress, Create, Debug, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import UsageError


@app.command()
@flat
def restore(
    archive: ArchiveWord,
    at: At = "latest",
    to: Annotated[str | None, typer.Option("--to", metavar="[HOST:]TARGET", help="what becomes that state")] = None,
    mirror: MirrorWord = None,
    create: Create = False,
    compress: Compress = None,
    *,
    orders: Orders,
    way: Way,
    view: View,
    access: Access,
) -> None:
    """Make a target what the device was at a point: each byte is held against its checksum, and it can be undone."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.cli.image import open_delivery
    from lvmsync.jobs.archive.restore import open_restored

    if to is None:
        raise UsageError("name what is to become that state with --to [HOST:]TARGET")
    with ExitStack() as stack:
        shelf = stack.enter_context(open_archive(archive, access))
        point = find_point(shelf.catalogue, at)
        report = stack.enter_context(view.report())
        delivery = open_delivery(to, way, replace(orders, create=create), report, compress=compress)
        stack.enter_context(delivery)
        if delivery.place.host is None and Path(delivery.place.name).resolve().parent == Path(archive).resolve():
            raise UsageError(f"{to} lies in the archive itself: name another place")
        held = stack.enter_context(open_mirror(mirror, shelf, orders.state))
        if held and held.device.name == delivery.place.name:
            raise UsageError(f"{mirror} is the mirror and the target as well: apply its snapbacks to it instead")
        receipt = delivery.send(stack.enter_context(open_restored(shelf, point, held)))
    view.print_receipt(replace(receipt, job="archive restore"))


@app.command()
@flat
def export(
    archive: ArchiveWord,
    at: At = "latest",
    since: Annotated[
        str | None, typer.Option("--from", metavar="POINT", help="only what leads from that point; all without it")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="write to a new file")] = None,
    mirror: MirrorWord = None,
    compress: Compress = None,
    state: State = None,
    *,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Write one stream that makes a target what the device was at a point, to a file or standard output."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.cli.streams import write_stream
    from lvmsync.jobs.archive.restore import open_between, open_restored

    if output is None and (view.as_json or (sys.stdout is not None and sys.stdout.isatty())):
        raise UsageError(
            "the stream goes to standard output, which is a terminal or is to be JSON: name a file with -o"
        )
    options = stream_options(4, compress)
    with ExitStack() as stack:
        shelf = stack.enter_context(open_archive(archive, access))
        point = find_point(shelf.catalogue, at)
        report = stack.enter_context(view.report())
        if since is not None:
            source = stack.enter_context(open_between(shelf, find_point(shelf.catalogue, since), point))
        else:
            held = stack.enter_context(open_mirror(mirror, shelf, state))
            source = stack.enter_context(open_restored(shelf, point, held))
        receipt = write_stream(source, output, options, report)
    view.print_receipt(receipt)
