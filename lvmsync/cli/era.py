"""``lvmsync era ...``: era devices, from the size of their metadata to their removal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lvmsync.cli.actions import Actions
from lvmsync.cli.files import print_text
from lvmsync.cli.options import Debug, Json, Quiet, State
from lvmsync.errors import ChangesLost, UsageError

app = typer.Typer(
    name="era",
    cls=Actions,
    help="Track writes with dm-era: plan, make, start, watch and remove era devices.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="name of the era device, as in /dev/mapper/NAME")]
Granularity = Annotated[
    str, typer.Option("--granularity", metavar="SIZE", help="bytes that are told apart: a multiple of 4K")
]


@app.command()
def size(
    device: Annotated[str, typer.Argument(metavar="DEVICE|SIZE", help="the device to be tracked, or its size: 200G")],
    granularity: Granularity = "64K",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Tell how large the metadata device of an era device must be."""
    from lvmsync.cli import render
    from lvmsync.jobs.era import parse_granularity, plan

    block = parse_granularity(granularity)
    total, found = plan(device, block)
    if as_json:
        print_text(json.dumps({"size": total, "granularity": block, **asdict(found)}) + "\n")
        return
    rows = [
        (found.advised, "take this much: the least is 60 % of it, and above that 'era status' warns"),
        (found.least, "the least: 3 A + 6 W + 32; a digestion and a metadata snapshot each keep old blocks"),
        (found.idle, "all that an idle device uses: A + W + 9"),
        (found.in_print, "the rule of thumb in print (2.5E-6 of the device + 128 KiB), for blocks of 2 MiB only"),
    ]
    print_text(
        f"{render.size(total)} in blocks of {render.size(block)}: {found.nr_blocks} of them;"
        f" an era array takes A = {found.array_blocks}, a writeset W = {found.writeset_blocks} blocks of 4 KiB\n"
    )
    for blocks, what in rows:
        print_text(f"{blocks * 4096:>16} bytes  {blocks:>9} blocks  {what}\n")


@app.command()
def create(
    name: Name,
    origin: Annotated[str, typer.Argument(metavar="ORIGIN", help="VG/LV or device whose writes are to be tracked")],
    metadata: Annotated[str, typer.Argument(metavar="METADATA", help="VG/LV or device for the eras; overwritten")],
    granularity: Granularity = "64K",
    force: Annotated[
        bool, typer.Option("--force", help="overwrite what METADATA holds, and take one that is small")
    ] = False,
    unit_dir: Annotated[Path | None, typer.Option("--unit-dir", metavar="DIR", help="where the unit file goes")] = None,
    no_unit: Annotated[bool, typer.Option("--no-unit", help="write no unit file for systemd")] = False,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make an era device on ORIGIN, and a unit that makes it again at boot; use /dev/mapper/NAME from then on."""
    from lvmsync.jobs import era
    from lvmsync.jobs.unit import UNITS
    from lvmsync.system.ledger import state_folder

    if no_unit and unit_dir:
        raise UsageError("--unit-dir and --no-unit do not go together")
    units = None if no_unit else (unit_dir.absolute() if unit_dir else UNITS)
    block = era.parse_granularity(granularity)
    made, steps = era.create(state_folder(state), name, origin, metadata, block, force=force, units=units)
    _say(steps)
    _print_state(made, as_json=as_json, quiet=quiet)


@app.command()
def start(name: Name, state: State = None, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Make an era device again after a reboot, with the history that it had."""
    from lvmsync.jobs import era
    from lvmsync.system.ledger import state_folder

    found, steps = era.start(state_folder(state), name)
    _say(steps)
    _print_state(found, as_json=as_json, quiet=quiet)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="one era device; all without it")] = None,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the era, how full the metadata is, who holds its metadata snapshot, and where the copies are."""
    from lvmsync.jobs import era
    from lvmsync.system.ledger import state_folder

    found = era.show(state_folder(state), name)
    if as_json:
        print_text(json.dumps([asdict(one) for one in found]) + "\n")
    else:
        for one in found:
            _print_state(one, as_json=False, quiet=quiet)
        if not found and not quiet:
            print_text("there is no era device\n")
    for one in found:
        if one.failed:
            raise ChangesLost(one.failed, device=one.path)


@app.command()
def checkpoint(
    name: Name, state: State = None, as_json: Json = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Begin a new era, and print which one it is."""
    from lvmsync.jobs import era
    from lvmsync.system.ledger import state_folder

    done = era.checkpoint(state_folder(state), name)
    if not done.advanced:
        _say([f"The kernel began no new era: it still is {done.era}, and the writes before this are of it, too."])
    print_text((json.dumps(asdict(done)) if as_json else str(done.era)) + "\n")


@app.command()
def changes(
    name: Name,
    since: Annotated[int, typer.Option("--since", metavar="N", help="the first era that counts; 0: everything")],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what was written since an era: the same as `lvmsync changes era:/dev/mapper/NAME,since=N`."""
    from lvmsync.cli.refinement import Refinement
    from lvmsync.cli.streams import changes as show_changes
    from lvmsync.jobs.era import path_of

    source = f"era:{path_of(name)},since={since}"
    show_changes(source, refinement=Refinement(), as_json=as_json, quiet=quiet)


@app.command()
def remove(
    name: Name,
    wipe: Annotated[bool, typer.Option("--wipe", help="also overwrite the first block of the metadata")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="even if it has failed, or its metadata snapshot is taken")
    ] = False,
    state: State = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Remove an era device, its unit, and what is remembered of its copies; the origin stays as it is."""
    from lvmsync.jobs import era
    from lvmsync.system.ledger import state_folder

    _say(era.remove(state_folder(state), name, wipe=wipe, force=force))
    if not quiet:
        print(f"{name} was removed; writes to its origin are not tracked any more", file=sys.stderr)


def _say(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _print_state(found: object, *, as_json: bool, quiet: bool) -> None:
    from lvmsync.cli import render
    from lvmsync.jobs.era import State as EraState

    assert isinstance(found, EraState)
    _say(found.notes)
    if as_json:
        print_text(json.dumps(asdict(found)) + "\n")
        return
    if quiet:
        return
    facts = f"{render.size(found.size)} in blocks of {render.size(found.granularity)}"
    if found.failed:
        print_text(f"{found.path}: failed, {facts}\n")
    elif found.is_active and found.used is not None and found.total:
        share = 100 * found.used / found.total
        print_text(f"{found.path}: era {found.era}, metadata {share:.0f} % full, {facts}\n")
    else:
        print_text(f"{found.path}: not active, {facts}\n")
    if found.held:
        print_text(f"    {found.held}\n")
    for one in found.targets:
        print_text(f"    {one['target']} is at era {one['era']} ({one['time']})\n")
