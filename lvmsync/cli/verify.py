"""``lvmsync verify`` and ``lvmsync repair``: is the copy what it should be, and making it so."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.asked import Managing, Orders, View, Way
from lvmsync.cli.files import print_text
from lvmsync.cli.options import (
    Compress,
    DataSource,
    DryRun,
    Frozen,
    NoUndo,
    PoolLimit,
    Snapback,
    SourceWord,
    State,
    TargetWord,
)
from lvmsync.errors import UsageError
from lvmsync.names import Volume, parse_source

if TYPE_CHECKING:
    from lvmsync.cli.delivery import Delivery
    from lvmsync.jobs.verify import Verdict


def verify(
    source: SourceWord,
    target: TargetWord,
    changed: Annotated[
        bool,
        typer.Option("--changed", help="compare only what the delta of SOURCE carries, as in send"),
    ] = False,
    whole: Annotated[bool, typer.Option("--whole", help="compare everything (the default)")] = False,
    data_source: DataSource = None,
    frozen: Frozen = False,
    *,
    way: Way,
    state: State = None,
    view: View,
) -> None:
    """Compare a source with its copy by digests, and change nothing; status 9 if they differ.

    Of a volume that lvmsync syncs by itself, the snapshot that the copy was last brought to is compared.
    """
    from lvmsync.cli.delivery import Delivery
    from lvmsync.cli.replica import find_managed
    from lvmsync.jobs import verify as job
    from lvmsync.sources import Reading, open_source

    if changed and whole:
        raise UsageError("--changed and --whole are both given; choose one")
    if data_source and not changed:
        raise UsageError("-r is for --changed: of everything, name what is to be compared itself")
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        delivery = stack.enter_context(Delivery(target, way, Orders(state=state), report))
        name = parse_source(source)
        if not changed and not isinstance(name, Volume):
            raise UsageError(f"{source}: name the device, file or snapshot itself, or give --changed")
        _require_other(source, delivery)
        volume = find_managed(source, Managing()) if isinstance(name, Volume) else None
        agent, place = delivery.agent, delivery.place.name
        if changed:
            reading = Reading(data_source=data_source, frozen=frozen)
            verdict = job.verify_changes(agent, place, stack.enter_context(open_source(name, reading)), report)
        elif volume and not frozen:
            verdict = job.verify_volume(agent, place, volume, report)
        else:
            verdict = job.verify_whole(agent, place, source, report, frozen=frozen)
    _print_verdict(verdict, as_json=view.as_json, quiet=view.quiet)
    verdict.require_equal()


def repair(
    source: SourceWord,
    target: TargetWord,
    snapback: Snapback = None,
    no_undo: NoUndo = False,
    pool_limit: PoolLimit = 95.0,
    frozen: Frozen = False,
    compress: Compress = None,
    *,
    way: Way,
    dry_run: DryRun = False,
    state: State = None,
    view: View,
) -> None:
    """Make a target the copy of a source again, whatever it holds: both are compared, and only what differs is sent.

    Of a volume that lvmsync syncs by itself a new snapshot is taken, which the next sync starts from.
    """
    from lvmsync.cli.delivery import Delivery
    from lvmsync.cli.files import stream_options
    from lvmsync.cli.replica import find_managed
    from lvmsync.jobs import repair as job
    from lvmsync.jobs.replica.copy import PassOptions
    from lvmsync.system.ledger import state_folder

    orders = Orders(snapback, no_undo, pool_limit=pool_limit, state=state, dry_run=dry_run)
    wanted = {"snapback": snapback, "no_undo": no_undo, "pool_limit": pool_limit}
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        delivery = stack.enter_context(Delivery(target, way, orders, report, compress=compress))
        if not isinstance(parse_source(source), Volume):
            raise UsageError(f"{source}: name the device, file, snapshot or volume itself")
        _require_other(source, delivery)
        stream = stream_options(4, compress or ("zstd:1" if delivery.place.host else None))
        volume = None if frozen else find_managed(source, Managing())
        agent, place = delivery.agent, delivery.place
        if volume:
            options = PassOptions(stream=stream, orders=wanted)
            folder = state_folder(state)
            receipt = job.repair_volume(agent, place.name, volume, str(place), folder, options, report, dry_run=dry_run)
        else:
            opened = stack.enter_context(job.open_whole(source, frozen=frozen))
            receipt = job.repair(agent, place.name, opened, stream, report, orders=wanted, dry_run=dry_run)
    view.print_receipt(receipt)


def _require_other(source: str, delivery: Delivery) -> None:
    """Refuse to hold something against itself: it would be equal, and say nothing."""
    name = parse_source(source)
    if isinstance(name, Volume):
        delivery.refuse_itself(name.path)


def _print_verdict(verdict: Verdict, *, as_json: bool, quiet: bool) -> None:
    from lvmsync.cli import render

    if as_json:
        facts = {
            "source": verdict.source,
            "target": verdict.target,
            "is_equal": verdict.is_equal,
            "size": verdict.size,
            "target_size": verdict.far_size,
            "compared_bytes": verdict.looked,
            "differing_bytes": verdict.differing.total_bytes,
            "root": verdict.root or None,
            "target_root": verdict.far_root or None,
            "seconds": verdict.seconds,
            "notes": verdict.notes,
        }
        print_text(json.dumps(facts)[:-1] + ', "differing": ')
        for piece in render.ranges_json(verdict.differing):
            print_text(piece)
        print_text("}\n")
        return
    for note in verdict.notes:
        print_text(f"note: {note}\n")
    if quiet:
        return
    if verdict.root:
        print_text(f"{verdict.root}  {verdict.source}\n{verdict.far_root}  {verdict.target}\n")
    if verdict.is_equal:
        compared = f"{render.size(verdict.looked)} compared in {verdict.seconds:.1f} s"
        print_text(f"equal: {verdict.target} is {verdict.source}; {compared}\n")
    else:
        for offset, length in verdict.differing_first():
            print_text(f"differs: {length} bytes at {offset}\n")
