"""``lvmsync plan``: what a sync would do, before it does it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvmsync.cli.asked import Managing, Orders, Printing, Way
from lvmsync.cli.files import print_text
from lvmsync.cli.options import ChunkSize, CowSize, Create, DataSource, SourceWord, State
from lvmsync.errors import UsageError
from lvmsync.names import Comparison, Volume, parse_size, parse_source

if TYPE_CHECKING:
    from lvmsync.jobs.plan import Forecast


def plan(
    source: SourceWord,
    target: Annotated[str, typer.Argument(metavar="[HOST:]TARGET", help="where the copy is, or would be")],
    data_source: DataSource = None,
    create: Create = False,
    full: Annotated[bool, typer.Option("--full", help="as if the whole volume were to be copied anew")] = False,
    cow_size: CowSize = None,
    chunk_size: ChunkSize = None,
    *,
    way: Way,
    state: State = None,
    printing: Printing,
) -> None:
    """Tell what a sync would do: how much, how long, whether there is room, and what its chunks cost; change nothing.

    What a sync would refuse, this refuses with the same status.
    """
    from lvmsync.cli.delivery import Delivery
    from lvmsync.cli.replica import find_managed
    from lvmsync.jobs.plan import plan_source, plan_volume
    from lvmsync.jobs.progress import ignore
    from lvmsync.jobs.replica.copy import PassOptions
    from lvmsync.sources import Reading, open_source
    from lvmsync.system.ledger import state_folder
    from lvmsync.system.lvm import list_around

    orders = Orders(create=create, state=state, dry_run=True)
    name = parse_source(source)
    if isinstance(name, Comparison):
        raise UsageError(f"{source}: how much differs is known when both were read: use 'lvmsync repair --dry-run'")
    with ExitStack() as stack:
        delivery = stack.enter_context(Delivery(target, way, orders, ignore))
        place = delivery.place
        is_plain = isinstance(name, Volume) and not data_source
        told = list_around(name) if isinstance(name, Volume) and is_plain else None
        volume = find_managed(source, Managing(), told) if is_plain else None
        if volume:
            options = PassOptions(
                create=create,
                full=full,
                store=parse_size(cow_size) if cow_size else None,
                chunk=parse_size(chunk_size) if chunk_size else None,
            )
            folder = state_folder(state)
            found = plan_volume(delivery.agent, volume, place.name, str(place), folder, options, told)
        else:
            if full or cow_size or chunk_size:
                raise UsageError(
                    f"--full, --cow-size and --chunk-size are for a volume whose snapshots lvmsync takes; {source} is"
                    " none"
                )
            reading = Reading(data_source=data_source, frozen=data_source is None, with_data=data_source is not None)
            opened = stack.enter_context(open_source(name, reading))
            found = plan_source(delivery.agent, place.name, opened, delivery.check)
    _print(found, as_json=printing.as_json, quiet=printing.quiet)
    if found.error:
        raise found.error


def _print(found: Forecast, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_text(json.dumps(_facts(found)) + "\n")
    elif not quiet:
        for key, words in _lines(found):
            print_text(f"{key:>14}  {words}\n")


def _facts(found: Forecast) -> dict[str, Any]:
    facts = {key: value for key, value in vars(found).items() if key not in ("error", "standing", "chunks", "snapshot")}
    error = found.error
    return {
        **facts,
        "refusal": {"code": error.exit_code, "message": str(error)} if error else None,
        "target_state": found.standing.to_json() if found.standing else None,
        "snapshot": asdict(found.snapshot) if found.snapshot else None,
        "chunks": [asdict(one) for one in found.chunks],
    }


def _lines(found: Forecast) -> list[tuple[str, str]]:
    """Return what is told to people: a word, and what there is to say about it."""
    from lvmsync.cli.render import counted, size

    lines = [("what", f"{found.source} -> {found.target}: {found.kind}")]
    if found.changed_bytes is not None:
        chunks = f", chunks of {size(found.granularity)}" if found.granularity else ""
        share = f"{size(found.changed_bytes)} of {size(found.size)} in {counted(found.extents)}{chunks}"
        lines.append(("to send", share))
    if found.wire_bytes is not None:
        lines.append(("over the line", f"{size(found.wire_bytes)} at the most, before compression"))
        told = "not known: nothing was measured yet"
        if found.seconds is not None and found.rate:
            told = f"about {found.seconds:.0f} s, at the last rate of {size(found.rate)}/s"
        lines.append(("time", told))
    standing = found.standing
    if standing and standing.exists:
        point = standing.point.id if standing.point else "no point that is known"
        lines.append(("target", f"{size(standing.size or 0)}, {standing.kind}, at {point}"))
        if standing.pool:
            used = f"{standing.pool.data_percent:.1f}% of data, {standing.pool.metadata_percent:.1f}% of metadata used"
            lines.append(("its pool", f"{standing.pool.name}: {used}; may need {size(found.pool_bytes)}"))
        if found.undo_bytes:
            free = f", {size(standing.undo_free)} free" if standing.undo_free is not None else ""
            lines.append(("undo", f"{size(found.undo_bytes)} at the most{free}"))
    elif standing:
        lines.append(("target", "is not there"))
    if found.snapshot:
        lines.append(("next snapshot", found.snapshot.reason))
    if found.chunks:
        costs = ", ".join(f"{size(one.chunk)}: {size(one.bytes)} ({one.times:g}x)" for one in found.chunks)
        lines.append(("by chunk size", costs))
    lines += [("note", note) for note in found.notes]
    lines += [("problem", problem) for problem in found.problems]
    return lines
