"""``lvmsync dattobd ...``: devices tracked by dattobd or elastio-snap, from setup to a daily incremental copy."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.actions import Actions
from lvmsync.cli.asked import Orders, View, Way
from lvmsync.cli.files import print_text
from lvmsync.cli.options import Compress, Create, Debug, DryRun, Json, Quiet, State, TargetWord
from lvmsync.cli.verbs import flat
from lvmsync.errors import ChangesLost, UsageError

if TYPE_CHECKING:
    from lvmsync.jobs.dattobd_record import Series
    from lvmsync.jobs.dattobd_state import State as DeviceState

app = typer.Typer(
    name="dattobd",
    cls=Actions,
    help="Track writes with dattobd or elastio-snap: set devices up, and keep copies up to date.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Named = Annotated[str, typer.Argument(metavar="DEVICE|MINOR", help="the tracked device, or its minor number")]
Fresh = Annotated[str, typer.Argument(metavar="DEVICE", help="VG/LV or path of a mounted block device")]
Space = Annotated[
    str | None,
    typer.Option(
        "--space", metavar="SIZE", help="for the COW file, whole MiB  [default: a tenth of the device, or as before]"
    ),
]
Cache = Annotated[
    str | None, typer.Option("--cache", metavar="SIZE", help="memory for the driver's index  [default: 300M]")
]
DriverName = Annotated[
    str | None, typer.Option("--driver", metavar="NAME", help="dattobd or elastio-snap, where both are loaded")
]
UnitDir = Annotated[Path | None, typer.Option("--unit-dir", metavar="DIR", help="where the unit file goes")]
NoUnit = Annotated[bool, typer.Option("--no-unit", help="write no unit file for systemd")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="although another program tracks the device, or took its snapshot")
]
Force = Annotated[bool, typer.Option("--force", help="although changes that were not taken over are lost by it")]


@app.command()
def setup(
    device: Fresh,
    cow: Annotated[
        str | None,
        typer.Argument(
            metavar="[COWFILE]", help="new file on the device's own file system  [default: one in its root]"
        ),
    ] = None,
    space: Space = None,
    cache: Cache = None,
    minor: Annotated[int | None, typer.Option("--minor", metavar="N", help="of the driver's device", min=0)] = None,
    driver: DriverName = None,
    unit_dir: UnitDir = None,
    no_unit: NoUnit = False,
    dry_run: DryRun = False,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Begin to track a mounted device, with its first snapshot."""
    from lvmsync.jobs import dattobd
    from lvmsync.system.ledger import state_folder

    made, steps = dattobd.setup(
        state_folder(state), device, cow, space_mib=_mebibytes(space), cache_size=_size(cache), minor=minor,
        driver=driver, units=_units(unit_dir, no_unit=no_unit), dry_run=dry_run,
    )  # fmt: skip
    _say(steps)
    if made:
        _print_series(made, as_json=as_json, quiet=quiet)


@app.command()
def status(state: State = None, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Show what both drivers track, and what is recorded of it: COW files, gaps, copies."""
    from lvmsync.jobs.dattobd_state import show
    from lvmsync.system.ledger import state_folder

    found = show(state_folder(state))
    if as_json:
        print_text(json.dumps([asdict(one) for one in found]) + "\n")
    elif not quiet:
        _print_table(found)
        for one in found:
            _print_details(one)
    for one in found:
        if one.error is not None:
            raise ChangesLost(one.notes[0], device=one.block_device)


@app.command("to-incremental")
def to_incremental(
    device: Named,
    force: Force = False,
    take_over: TakeOver = False,
    dry_run: DryRun = False,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Give the snapshot up, and only record what changes."""
    from lvmsync.jobs import dattobd
    from lvmsync.system.ledger import state_folder

    done = dattobd.to_incremental(state_folder(state), device, force=force, take_over=take_over, dry_run=dry_run)
    _print_series(done, as_json=as_json, quiet=quiet)


@app.command("to-snapshot")
def to_snapshot(
    device: Named,
    cow: Annotated[
        str | None,
        typer.Argument(metavar="[COWFILE]", help="new COW file  [default: the next name beside the old one]"),
    ] = None,
    space: Space = None,
    force: Force = False,
    take_over: TakeOver = False,
    dry_run: DryRun = False,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take the next snapshot, with a new COW file; the old one is complete then."""
    from lvmsync.jobs import dattobd
    from lvmsync.system.ledger import state_folder

    done = dattobd.to_snapshot(
        state_folder(state), device, cow, space_mib=_mebibytes(space), force=force, take_over=take_over,
        dry_run=dry_run,
    )  # fmt: skip
    _print_series(done, as_json=as_json, quiet=quiet)


@app.command()
@flat
def update(
    snapshot: Annotated[
        str, typer.Argument(metavar="SNAPSHOT", help="the snapshot device, or a file that holds what it held")
    ],
    cow: Annotated[str, typer.Argument(metavar="COWFILE", help="complete COW file of the period before")],
    target: TargetWord,
    force: Annotated[bool, typer.Option("--force", help="although some changes are known to be missing")] = False,
    compress: Compress = None,
    *,
    orders: Orders,
    way: Way,
    view: View,
) -> None:
    """Bring an image up to a snapshot with the COW file of the period before: verified, and undoable."""
    from lvmsync.cli.delivery import Delivery
    from lvmsync.jobs import dattobd_cycle
    from lvmsync.system.ledger import state_folder

    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        delivery = stack.enter_context(Delivery(target, way, orders, report, compress=compress))
        receipt = dattobd_cycle.update(
            state_folder(orders.state), snapshot, cow, delivery.outlet(snapshot), force=force, dry_run=orders.dry_run
        )
    view.print_receipt(receipt)


@app.command()
@flat
def cycle(
    device: Annotated[str, typer.Argument(metavar="DEVICE|MINOR", help="the mounted block device")],
    target: TargetWord,
    cow: Annotated[
        str | None, typer.Option("--cow", metavar="FILE", help="new COW file  [default: the next name in the root]")
    ] = None,
    space: Space = None,
    cache: Cache = None,
    driver: DriverName = None,
    unit_dir: UnitDir = None,
    no_unit: NoUnit = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="compare all of it with the target, whatever is recorded")
    ] = False,
    take_over: TakeOver = False,
    create: Create = False,
    compress: Compress = None,
    *,
    orders: Orders,
    way: Way,
    view: View,
) -> None:
    """Bring a copy up to date in one go: take a snapshot, send what changed, go on tracking."""
    from lvmsync.cli.delivery import Delivery
    from lvmsync.jobs import dattobd_cycle
    from lvmsync.system.ledger import state_folder

    if create and compare:
        raise UsageError("--create makes the target, so there is nothing to compare with; leave --compare away")
    orders = replace(orders, create=create)
    beginning = dattobd_cycle.Beginning(
        cow, _mebibytes(space), _size(cache), driver, _units(unit_dir, no_unit=no_unit), take_over
    )
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        delivery = stack.enter_context(Delivery(target, way, orders, report, compress=compress))
        outlet = delivery.outlet(device)
        folder = state_folder(orders.state)
        done = dattobd_cycle.cycle(folder, outlet, beginning, compare=compare, dry_run=orders.dry_run)
    _say(done.notes)
    if view.as_json:
        print_text(json.dumps(done.as_json()) + "\n")
        return
    if orders.dry_run and not view.quiet:
        for step in done.steps:
            print_text(f"{step}\n")
    if done.receipt:
        view.print_receipt(done.receipt)


@app.command()
def reload(
    device: Annotated[
        str | None, typer.Argument(metavar="[DEVICE]", help="one device; all that are recorded without it")
    ] = None,
    dry_run: DryRun = False,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with what is recorded after a reboot, before it is mounted."""
    from lvmsync.jobs import dattobd
    from lvmsync.system.ledger import state_folder

    said = dattobd.reload(state_folder(state), device, dry_run=dry_run)
    _print_lines(said, as_json=as_json, quiet=quiet)


@app.command()
def destroy(
    device: Named,
    dry_run: DryRun = False,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Stop tracking a device; remove its unit, and the COW files that are ours."""
    from lvmsync.jobs import dattobd
    from lvmsync.system.ledger import state_folder

    notes = dattobd.destroy(state_folder(state), device, dry_run=dry_run)
    _print_lines(notes, as_json=as_json, quiet=quiet)


def _print_lines(lines: list[str], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_text(json.dumps({"done": lines}) + "\n")
    elif not quiet:
        for line in lines:
            print(line, file=sys.stderr)


def _units(unit_dir: Path | None, *, no_unit: bool) -> Path | None:
    from lvmsync.jobs.unit import UNITS

    if no_unit and unit_dir:
        raise UsageError("--unit-dir and --no-unit do not go together")
    return None if no_unit else (unit_dir.absolute() if unit_dir else UNITS)


def _size(text: str | None) -> int:
    from lvmsync.names import parse_size

    return parse_size(text) if text else 0


def _mebibytes(text: str | None) -> int:
    size = _size(text)
    if size % (1 << 20) or (text and not size):
        raise UsageError(f"--space {text}: the drivers take whole MiB, as in 512M")
    return size >> 20


def _say(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _print_series(series: Series, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_text(json.dumps(asdict(series)) + "\n")
    elif not quiet:
        mode = "snapshot" if series.is_snapshot else "incremental"
        print_text(
            f"{series.block_device}: minor {series.minor} of {series.driver}, {mode} {series.current.seqid},"
            f" {series.current.path}\n"
        )


def _print_table(found: list[DeviceState]) -> None:
    from lvmsync.cli import render

    if not found:
        print_text("nothing is tracked\n")
        return
    rows = [("DEVICE", "DRIVER", "MINOR", "STATE", "SNAPSHOT", "CHANGED", "COW SIZE", "ERROR", "COW FILE")]
    rows += [
        (
            one.block_device,
            one.driver,
            str(one.minor),
            one.state,
            "-" if one.seqid is None else str(one.seqid),
            "-" if one.changed_blocks is None else render.size(one.changed_blocks * 4096),
            render.size(one.cow_size) if one.cow_size else "-",
            "-" if one.error is None else str(one.error),
            one.cow_file,
        )
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print_text("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _print_details(one: DeviceState) -> None:
    lines = [f"mounted at {one.mount_point}" if one.mount_point else "not mounted"]
    lines += [f"snapshot {one.seqid} is {one.snapshot}"] if one.snapshot else []
    for file in one.cow_files:
        taken = "taken over" if file["taken"] else "not taken over yet"
        lines.append(f"COW file of snapshot {file['seqid']}: {file['path']} ({taken})")
    lines += [f"{copy['target']} is at snapshot {copy['seqid']} ({copy['time']})" for copy in one.copies]
    lines += [f"gap: {gap}" for gap in one.gaps]
    print_text(f"{one.block_device}:\n" + "".join(f"    {line}\n" for line in [*lines, *one.notes]))
