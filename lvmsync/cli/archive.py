"""``lvmsync archive ...``: past states of a device, kept as streams: taken, listed, restored, combined, proved."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.actions import Actions
from lvmsync.cli.asked import Managing, Orders, View, Way
from lvmsync.cli.files import local_target, open_input, print_text, require_new, stream_options, write_new
from lvmsync.cli.options import Compress, Create, DataSource, Debug, DryRun, Frozen, Json, Quiet, SourceWord, State
from lvmsync.cli.refinement import Refinement
from lvmsync.cli.verbs import flat
from lvmsync.errors import UsageError, VerifyError
from lvmsync.names import CowFile, Volume, parse_source

if TYPE_CHECKING:
    from lvmsync.chain.catalogue import Catalogue
    from lvmsync.chain.pruning import Plan
    from lvmsync.jobs.archive.prune import Pruned
    from lvmsync.jobs.archive.restore import Mirror
    from lvmsync.jobs.archive.shelf import Shelf
    from lvmsync.jobs.progress import Receipt
    from lvmsync.jobs.send import StreamOptions
    from lvmsync.stores.folder import FolderStore
    from lvmsync.system.lvm import LogicalVolume

app = typer.Typer(
    name="archive",
    cls=Actions,
    help="Keep past states of a device as streams: take, list, restore, combine, prune and prove them.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ArchiveWord = Annotated[str, typer.Argument(metavar="ARCHIVE", help="the folder of the archive")]
At = Annotated[str, typer.Option("--at", metavar="POINT", help="number, label, id, time (UTC), or latest")]
MirrorWord = Annotated[
    str | None,
    typer.Option("--mirror", metavar="DEVICE", help="the device that snapbacks lead back from; it is only read"),
]
Label = Annotated[str | None, typer.Option("--label", metavar="WORD", help="a name for the point")]


def _store(word: str) -> FolderStore:
    from lvmsync.stores.folder import FolderStore

    for scheme in ("ssh", "s3"):
        if word.startswith(f"{scheme}://"):
            raise UsageError(
                f"{word}: an archive is a folder of this machine; {scheme}:// is not something it can be on"
            )
    if ":" in word.split("/")[0]:
        raise UsageError(f"'{word}': an archive is a folder of this machine; write ./{word} if that is its name")
    return FolderStore(Path(word))


def _open(word: str) -> Shelf:
    from lvmsync.jobs.archive.shelf import Shelf

    return Shelf.open(_store(word))


def _mirror(word: str | None, shelf: Shelf, state: str | None) -> AbstractContextManager[Mirror | None]:
    if word is None:
        return nullcontext()
    from lvmsync.jobs.archive.mirror import open_mirror
    from lvmsync.system.ledger import state_folder

    return open_mirror(local_target(word), state_folder(state), shelf.catalogue)


@app.command()
def init(archive: ArchiveWord, quiet: Quiet = False, debug: Debug = False) -> None:
    """Make an empty archive in a new or empty folder."""
    from lvmsync.jobs.archive.shelf import Shelf

    shelf = Shelf.init(_store(archive))
    if not quiet:
        print(
            f"{shelf.store.name} is an archive now; 'lvmsync archive take {archive} SOURCE' makes its first point",
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

    shelf = _open(archive)
    name = parse_source(source)
    options = stream_options(4, compress or "zstd:1")
    is_plain = data_source is None and not frozen and not refinement.is_wanted
    told = list_around(name) if is_plain and isinstance(name, Volume) else None
    volume = find_managed(source, managing, told) if is_plain and isinstance(name, Volume) else None
    if volume:
        return view.print_receipt(_take_managed(shelf, volume, state, managing, options, view, label))
    managing.require_none(source)
    reading = refinement.want(name, Reading(data_source=data_source, frozen=frozen))
    with ExitStack() as stack:
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
    debug: Debug = False,
) -> None:
    """Copy streams that are files into the archive: what 'send -o' wrote, or what a receive kept with --snapback."""
    from lvmsync.jobs.archive.take import bring_in as run

    if label is not None and len(streams) > 1:
        raise UsageError("--label is for one point: import one FILE with it")
    shelf = _open(archive)
    for path in streams:
        with open_input(path) as file:
            receipt = run(shelf, file.readinto, name=str(path), label=label, is_new_chain=new_chain)
        view.print_receipt(receipt)


@app.command("list")
def list_points(archive: ArchiveWord, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Show the points of an archive: when, how large, how much changed, and what leads to each."""
    from lvmsync.cli import render_archive

    catalogue = _open(archive).catalogue
    if as_json:
        print_text(render_archive.to_json(catalogue) + "\n")
    else:
        print_text(render_archive.table(catalogue))


@app.command()
def show(
    archive: ArchiveWord,
    point: Annotated[str | None, typer.Argument(metavar="[POINT]", help="one point; the whole without it")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="draw what changed when")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what an archive consists of, or how one point is reached."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.cli import render_archive

    shelf = _open(archive)
    if svg:
        require_new(svg)
        write_new(svg, render_archive.draw(shelf))
    found = find_point(shelf.catalogue, point) if point else None
    if as_json:
        print_text(render_archive.to_json(shelf.catalogue, found) + "\n")
    elif not quiet:
        print_text(render_archive.describe(shelf.catalogue, found))


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
) -> None:
    """Make a target what the device was at a point: each byte is held against its checksum, and it can be undone."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.cli.delivery import Delivery
    from lvmsync.jobs.archive.restore import open_restored

    if to is None:
        raise UsageError("name what is to become that state with --to [HOST:]TARGET")
    shelf = _open(archive)
    point = find_point(shelf.catalogue, at)
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        delivery = stack.enter_context(Delivery(to, way, replace(orders, create=create), report, compress=compress))
        if delivery.place.host is None and Path(delivery.place.name).resolve().parent == Path(archive).resolve():
            raise UsageError(f"{to} lies in the archive itself: name another place")
        held = stack.enter_context(_mirror(mirror, shelf, orders.state))
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
    shelf = _open(archive)
    point = find_point(shelf.catalogue, at)
    options = stream_options(4, compress)
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        if since is not None:
            source = stack.enter_context(open_between(shelf, find_point(shelf.catalogue, since), point))
        else:
            held = stack.enter_context(_mirror(mirror, shelf, state))
            source = stack.enter_context(open_restored(shelf, point, held))
        receipt = write_stream(source, output, options, report)
    view.print_receipt(receipt)


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
    debug: Debug = False,
) -> None:
    """Make one member of all that lead from one point to another. The points between them are gone then."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.chain.pruning import plan_combination

    shelf = _open(archive)
    ends = sorted((find_point(shelf.catalogue, word) for word in (first, last)), key=lambda one: one.number)
    if ends[0] == ends[1]:
        raise UsageError(f"{first} and {last} are one point")
    _carry_out(shelf, plan_combination(shelf.catalogue, ends[0].id, ends[1].id), {}, compress, view, dry_run=dry_run)


@app.command()
@flat
def prune(
    archive: ArchiveWord,
    last: Annotated[int, typer.Option("--keep-last", metavar="N", help="the newest points", min=0)] = 0,
    hourly: Annotated[int, typer.Option("--keep-hourly", metavar="N", help="one of each of so many hours", min=0)] = 0,
    daily: Annotated[int, typer.Option("--keep-daily", metavar="N", help="days", min=0)] = 0,
    weekly: Annotated[int, typer.Option("--keep-weekly", metavar="N", help="weeks", min=0)] = 0,
    monthly: Annotated[int, typer.Option("--keep-monthly", metavar="N", help="months", min=0)] = 0,
    yearly: Annotated[int, typer.Option("--keep-yearly", metavar="N", help="years", min=0)] = 0,
    within: Annotated[
        str | None, typer.Option("--keep-within", metavar="TIME", help="before the newest: 36h, 14d, 8w")
    ] = None,
    compress: Compress = None,
    dry_run: DryRun = False,
    *,
    view: View,
    debug: Debug = False,
) -> None:
    """Let all points go that no rule keeps; members are combined so that those that stay can be restored as before."""
    from lvmsync.chain.pruning import plan_pruning
    from lvmsync.chain.retention import Rules, choose_kept

    rules = Rules(last, hourly, daily, weekly, monthly, yearly, _seconds(within))
    if rules.is_empty:
        raise UsageError(
            "say what is to be kept: --keep-last N, -hourly, -daily, -weekly, -monthly, -yearly, -within TIME"
        )
    shelf = _open(archive)
    kept = choose_kept(shelf.catalogue, rules)
    _carry_out(shelf, plan_pruning(shelf.catalogue, kept), kept, compress, view, dry_run=dry_run)


@app.command()
@flat
def verify(
    archive: ArchiveWord,
    restore_test: Annotated[
        bool, typer.Option("--restore-test", help="rebuild every point as well, and compare its digest")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="add members that a run which was cut off has left, mend indexes, tidy up")
    ] = False,
    mirror: MirrorWord = None,
    state: State = None,
    *,
    view: View,
    debug: Debug = False,
) -> None:
    """Read every byte of an archive and prove that each point can be restored; ends with 9 if not."""
    from lvmsync.cli.render import size
    from lvmsync.jobs.archive.verify import verify as run

    shelf = _open(archive)
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        held = stack.enter_context(_mirror(mirror, shelf, state))
        verdict = run(shelf, report, is_repairing=repair, is_restoring=restore_test, mirror=held)
    if view.as_json:
        print_text(json.dumps({"job": "archive verify", "archive": shelf.store.name, **asdict(verdict)}) + "\n")
    else:
        for note in verdict.notes:
            print(f"note: {note}", file=sys.stderr)
        for fault in verdict.faults[1:]:
            print(f"lvmsync: {fault}", file=sys.stderr)
    if verdict.faults:
        count = len(verdict.faults)
        raise VerifyError(
            f"{verdict.faults[0]}; {shelf.store.name} has {count} fault{'s' if count > 1 else ''}",
            device=shelf.store.name,
        )
    if not view.quiet and not view.as_json:
        points = _counted(len(verdict.restored), "point")
        rebuilt = f"; {points} rebuilt, each with the digest that it had" if restore_test else ""
        print(
            f"{shelf.store.name} is whole: {_counted(verdict.members, 'member')} ({size(verdict.bytes)}),"
            f" {_counted(len(shelf.catalogue.points), 'point')}{rebuilt}",
            file=sys.stderr,
        )


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


def _carry_out(
    shelf: Shelf, plan: Plan, kept: dict[str, list[str]], compress: str | None, view: View, *, dry_run: bool
) -> None:
    from lvmsync.cli import render_archive
    from lvmsync.jobs.archive.prune import Pruned
    from lvmsync.jobs.archive.prune import prune as run

    before = shelf.catalogue
    if not view.as_json and not view.quiet:
        print(render_archive.plan_words(before, plan, kept), end="", file=sys.stderr)
    done = Pruned()
    if not dry_run:
        with view.report() as report:
            done = run(shelf, plan, stream_options(4, compress or "zstd:1"), report)
    _say(before, plan, done, view, dry_run=dry_run)


def _say(before: Catalogue, plan: Plan, done: Pruned, view: View, *, dry_run: bool) -> None:
    from lvmsync.cli.render import size

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
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if view.quiet:
        return
    if plan.is_empty:
        print("nothing is to be done", file=sys.stderr)
    elif dry_run:
        print("nothing was changed: that was a dry run", file=sys.stderr)
    else:
        rate = f", {size(done.read_bytes / done.seconds)}/s" if done.read_bytes and done.seconds else ""
        print(
            f"{_counted(len(done.dropped), 'point')} gone, {size(done.freed_bytes)} freed,"
            f" {size(done.written_bytes)} written in {done.seconds:.1f} s{rate}",
            file=sys.stderr,
        )


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _seconds(word: str | None) -> int | None:
    """Read a span of time: 90m, 36h, 14d, 8w.

    Raises:
        UsageError: it is none.
    """
    if word is None:
        return None
    units = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    if word[-1:] in units and word[:-1].isascii() and word[:-1].isdecimal() and len(word) < 7:
        return int(word[:-1]) * units[word[-1]]
    raise UsageError(f"--keep-within '{word}': write minutes, hours, days or weeks: 90m, 36h, 14d, 8w")
