"""``lvmsync archive restore | export``: past states, brought back."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, At, MirrorWord, app, open_archive, open_mirror
from lvmsync.cli.asked import Orders, View, Way
from lvmsync.cli.files import new_file, stream_options
from lvmsync.cli.options import Compress, Create, Debug, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import UsageError

if TYPE_CHECKING:
    from lvmsync.jobs.progress import Receipt, Report
    from lvmsync.sources import Source


@app.command()
@flat
def restore(
    place: ArchiveWord,
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
        shelf = stack.enter_context(open_archive(place, access))
        point = find_point(shelf.catalogue, at)
        report = stack.enter_context(view.report())
        delivery = open_delivery(to, way, replace(orders, create=create), report, compress=compress)
        stack.enter_context(delivery)
        if delivery.place.host is None and Path(delivery.place.name).resolve().parent == Path(place).resolve():
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
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="stream, or rbd-diff for 'rbd import-diff'")
    ] = "stream",
    from_snap: Annotated[
        str | None, typer.Option("--from-snap", metavar="NAME", help="rbd-diff: the image's snapshot of --from")
    ] = None,
    to_snap: Annotated[
        str | None, typer.Option("--to-snap", metavar="NAME", help="rbd-diff: the snapshot that it makes")
    ] = None,
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

    if output == Path("-"):
        output = None
    if output is None and (view.as_json or (sys.stdout is not None and sys.stdout.isatty())):
        raise UsageError(
            "the stream goes to standard output, which is a terminal or is to be JSON: name a file with -o"
        )
    if form not in ("stream", "rbd-diff"):
        raise UsageError(f"--format {form}: write stream or rbd-diff")
    if form == "stream" and (from_snap is not None or to_snap is not None):
        raise UsageError("--from-snap and --to-snap are for --format rbd-diff")
    if form == "rbd-diff" and compress is not None:
        raise UsageError("--compress is not for --format rbd-diff, which knows none")
    if from_snap is not None and since is None:
        raise UsageError("--from-snap names the snapshot of --from POINT: give that as well")
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
        if form == "rbd-diff":
            receipt = _write_diff(source, from_snap, to_snap, output, report)
        else:
            receipt = write_stream(source, output, options, report)
    view.print_receipt(receipt)


def _write_diff(
    source: Source, from_snap: str | None, to_snap: str | None, output: Path | None, report: Report
) -> Receipt:
    """Write a source as an RBD diff; snapshots that are not named are called as `sync` calls those of the points."""
    from lvmsync.images import snapshot_name
    from lvmsync.jobs.rbd.diff import export_diff
    from lvmsync.transport.pipe import Stdio

    assert source.head is not None
    start = from_snap or (snapshot_name(source.base.id) if source.base else None)
    end = to_snap or snapshot_name(source.head.id)
    if output:
        with new_file(output) as file:
            receipt = export_diff(source, start, end, file.send_all, report)
            file.keep()
        return receipt
    with Stdio() as stdio:
        receipt = export_diff(source, start, end, stdio.send_all, report)
        stdio.send_eof()
    return receipt
