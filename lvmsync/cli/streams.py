"""The verbs that work on one stream: write it, apply it, look into it, and put right what a crash left of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.asked import Orders, View
from lvmsync.cli.files import local_target, new_file, open_input, print_text, require_new, stream_options, write_new
from lvmsync.cli.options import (
    Compress,
    Create,
    DataSource,
    Debug,
    DryRun,
    Format,
    Frozen,
    Json,
    Quiet,
    SourceWord,
    State,
    TargetExtendCmd,
    Verbose,
)
from lvmsync.cli.refinement import Refinement
from lvmsync.errors import UsageError
from lvmsync.images import RbdSnapshot
from lvmsync.names import CowFile, parse_source

if TYPE_CHECKING:
    from lvmsync.jobs.progress import Receipt, Report
    from lvmsync.jobs.send import StreamOptions
    from lvmsync.sources import Source

DASH = Path("-")
"""Standard input or output, where a file could be named."""


def send(
    source: SourceWord,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="write to a new file")] = None,
    stdout: Annotated[bool, typer.Option("-s", "--stdout", help="write to standard output (the default)")] = False,
    data_source: DataSource = None,
    frozen: Frozen = False,
    stream_format: Format = 4,
    compress: Compress = None,
    *,
    refinement: Refinement,
    dry_run: DryRun = False,
    view: View,
    debug: Debug = False,
) -> None:
    """Write a source's changes as a stream, to standard output or a file."""
    from lvmsync.jobs.send import Sender
    from lvmsync.sources import Reading, open_source

    if output == DASH:
        output = None
    if output and stdout:
        raise UsageError("-o and --stdout are both given; choose one")
    if view.as_json and not output and not dry_run:
        raise UsageError(
            "--json prints on standard output, which is the stream here; write the stream to a file with -o"
        )
    if not output and not dry_run and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal: pipe it to 'lvmsync receive', or write a file with -o")
    options = stream_options(stream_format, compress)
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        name = parse_source(source)
        reading = refinement.want(name, Reading(data_source=data_source, frozen=frozen))
        if isinstance(name, CowFile):
            from lvmsync.jobs.dattobd_points import open_recorded
            from lvmsync.system.ledger import state_folder

            opened = stack.enter_context(open_recorded(state_folder(None), name, reading))
        else:
            opened = stack.enter_context(open_source(name, reading))
        found = refinement.apply(opened, report)
        if dry_run:
            if output:
                require_new(output)
            receipt = Sender(found, lambda _: None, options, report).call_off()
        else:
            receipt = write_stream(found, output, options, report)
    view.print_receipt(receipt)


def write_stream(source: Source, output: Path | None, options: StreamOptions, report: Report) -> Receipt:
    """Write a source's changes to a new file, which is removed again if that fails; None: to standard output."""
    from lvmsync.jobs.send import Sender
    from lvmsync.transport.pipe import Stdio

    if output:
        with new_file(output) as file:
            receipt = Sender(source, file.send_all, options, report).deliver()
            file.keep()
        return receipt
    with Stdio() as stdio:
        receipt = Sender(source, stdio.send_all, options, report).deliver()
        stdio.send_eof()
    return receipt


def receive(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="vg/lv, a device, or an image file")],
    source: Annotated[Path | None, typer.Option("-i", "--input", metavar="FILE", help="read the stream here")] = None,
    create: Create = False,
    target_extend_cmd: TargetExtendCmd = None,
    *,
    orders: Orders,
    view: View,
    debug: Debug = False,
) -> None:
    """Apply a stream from standard input (or a file) to a target: whole, or not at all."""
    from lvmsync.cli import render
    from lvmsync.jobs.receive import ReceiveOptions
    from lvmsync.jobs.receive import receive as run
    from lvmsync.system.ledger import state_folder
    from lvmsync.transport.pipe import Stdio

    if source == DASH:
        source = None
    if orders.snapback and orders.no_undo:
        raise UsageError("--snapback and --no-undo do not go together")
    options = ReceiveOptions(
        target=local_target(target),
        state=state_folder(orders.state),
        snapback=Path(orders.snapback) if orders.snapback else None,
        archive=orders.archive,
        undo=not orders.no_undo,
        create=create,
        atomic=orders.atomic,
        allow_smaller=orders.allow_smaller,
        ignore_base=orders.ignore_base,
        pool_limit=orders.pool_limit,
        extend_cmd=target_extend_cmd,
        dry_run=orders.dry_run,
    )
    if not source and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal: pipe 'lvmsync send' into it, or name a file with -i")
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        if source:
            say = print_text
            receive_some: Callable[[memoryview], int] = stack.enter_context(open_input(source)).readinto
        else:
            stdio = stack.enter_context(Stdio())  # keeps standard output for its answers
            say = lambda text: stdio.send_all([text.encode()])  # noqa: E731
            receive_some = stdio.receive_some
        receipt = run(receive_some, options, report)
        render.print_receipt(receipt, as_json=view.as_json, quiet=view.quiet, write=say)


def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a stream: a snapback, or one that send -o wrote")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="vg/lv, a device, or an image file")],
    create: Create = False,
    *,
    orders: Orders,
    view: View,
    debug: Debug = False,
) -> None:
    """Apply a stream file to a target: a snapback brings it back to the state before."""
    receive(target, file, create, orders=orders, view=view)


def changes(
    source: SourceWord,
    data_source: DataSource = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="draw the map into a new picture")] = None,
    width: Annotated[int, typer.Option("--width", help="cells in a row of the map")] = 64,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="print it for another tool: borg-map, or bmap (reads data)"),
    ] = None,
    as_json: Json = False,
    *,
    refinement: Refinement,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show what changed: a map in the terminal, a picture, or JSON. Reads no data, unless it is to compare."""
    from lvmsync.cli import render
    from lvmsync.formats.borg_map import write_borg_map
    from lvmsync.jobs.block_map import make_bmap
    from lvmsync.jobs.progress import ignore
    from lvmsync.sources import Reading, open_source

    if not 8 <= width <= 1024:
        raise UsageError(f"--width {width} is out of range: 8 to 1024")
    if form not in (None, "borg-map", "bmap"):
        raise UsageError(f"--format {form}: write borg-map or bmap")
    if form and (as_json or svg):
        raise UsageError("--format prints for another tool: leave --json and --svg away")
    # An origin in use is no error here, where nothing is read.
    with_data = refinement.is_wanted or form == "bmap"
    reading = Reading(data_source=data_source, frozen=refinement.is_wanted, with_data=with_data)
    name = parse_source(source)
    if form == "bmap" and isinstance(name, RbdSnapshot):
        raise UsageError(f"--format bmap is for what bmaptool can copy from, and {source} is no device or file here")
    with open_source(name, refinement.want(name, reading)) as opened:
        found = refinement.apply(opened, ignore)
        blocks = make_bmap(found, ignore) if form == "bmap" else ()
    if not quiet:
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
    if form:
        for piece in blocks or write_borg_map(found.changes, found.holes, found.size):
            print_text(piece)
        return
    if svg:
        write_new(svg, render.draw_svg(found.changes, found.size, f"{found.name} on {os.uname().nodename}"))
    if as_json:
        for piece in render.changes_json(found):
            print_text(piece)
    elif not svg:
        color = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        render.print_map(found.changes, found.size, width, color=color)
        changed = found.changes.total_bytes
        share = 100 * changed / found.size if found.size else 0
        print_text(
            f"{found.name}: {render.size(changed)} of {render.size(found.size)} changed ({share:.2f} %),"
            f" {render.counted(len(found.changes))}, chunks of {render.size(found.granularity)}\n"
        )


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a stream file")],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Explain a stream file, and check every byte of it."""
    from lvmsync.jobs.inspect import inspect as run

    with open_input(Path("/dev/stdin") if file == DASH else file) as stream:
        explained = run(stream.readinto, str(file))
    if as_json:
        print_text(json.dumps(explained) + "\n")
        return
    for key, value in explained.items():
        if value is not None and value != {}:
            print_text(f"{key.replace('_', ' '):>15}  {value}\n")


def recover(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="vg/lv, a device, or an image file")],
    accept: Annotated[
        bool, typer.Option("--accept", help="no way back: take the target as good, on your word")
    ] = False,
    back: Annotated[bool, typer.Option("--back", help="go back, even where it could be finished")] = False,
    *,
    state: State = None,
    view: View,
    debug: Debug = False,
) -> None:
    """Finish or undo what a crash has left of a receive, so that the target is wholly old or wholly new."""
    from lvmsync.jobs.recover import recover as run
    from lvmsync.system.ledger import state_folder

    with view.report() as report:
        receipt = run(local_target(target), state_folder(state), report, accept=accept, back=back)
    view.print_receipt(receipt)
