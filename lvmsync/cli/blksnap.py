"""``lvmsync blksnap ...``: devices tracked by blksnap, from the first look to a daily incremental copy."""

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
from lvmsync.cli.options import Compress, Create, Debug, Json, Quiet, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import ChangesLost, UsageError

if TYPE_CHECKING:
    from lvmsync.jobs.progress import Receipt

app = typer.Typer(
    name="blksnap",
    cls=Actions,
    help="Track writes with blksnap: attach devices, hold snapshots, and keep copies up to date.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Devices = Annotated[list[str], typer.Argument(metavar="DEVICE...", help="VG/LV or path of a block device")]
Storage = Annotated[
    str,
    typer.Option(
        "--storage", metavar="PLACE", help="folder on another disk, or spare device, for what is overwritten meanwhile"
    ),
]
Limit = Annotated[
    str | None,
    typer.Option("--limit", metavar="SIZE", help="bytes that may be taken there  [default: a tenth of the devices]"),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite-storage", help="use the spare device of --storage although it holds something")
]
Force = Annotated[bool, typer.Option("--force", help="although writes may not be seen")]


@app.command()
def attach(devices: Devices, force: Force = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Have devices tracked from now on."""
    from lvmsync.jobs import blksnap

    _say(blksnap.attach(devices, force=force))


@app.command()
def detach(devices: Devices, quiet: Quiet = False, debug: Debug = False) -> None:
    """Stop tracking devices; refused while a snapshot holds one."""
    from lvmsync.jobs import blksnap

    notes = blksnap.detach(devices)
    if not quiet:
        _say(notes)


@app.command()
def status(state: State = None, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Show the module, what it tracks, what is held and whose that is, and where the copies are."""
    from lvmsync.cli import render
    from lvmsync.jobs import blksnap
    from lvmsync.system.ledger import state_folder

    found = blksnap.show(state_folder(state))
    _say(found.notes)
    if as_json:
        print_text(json.dumps(asdict(found)) + "\n")
    elif not quiet:
        print_text(f"blksnap {found.version} (ABI {found.abi}) at {found.node}\n")
        for device in found.devices:
            share = "" if device.changed is None else f", {render.size(device.changed)} written in this generation"
            print_text(
                f"{device.path}: snapshot {device.number} of generation {device.generation}, {render.size(device.size)}"
                f" in blocks of {render.size(device.block_size)}{share}\n"
            )
            if device.image:
                print_text(f"    held, see {device.image}\n")
            for one in device.targets:
                stale = "" if one["current"] else ", of another generation"
                print_text(f"    {one['target']} is at snapshot {one['snapshot']} ({one['time']}{stale})\n")
        if not found.devices:
            print_text("no device is tracked\n")
        for snapshot in found.snapshots:
            of = f" of {', '.join(snapshot.devices)}" if snapshot.devices else ""
            print_text(f"snapshot {snapshot.id}{of}: {snapshot.whose}\n")
    for device in found.devices:
        if device.error:
            raise ChangesLost(f"{device.path}: {device.error}", device=device.path)


@app.command()
def take(
    devices: Devices,
    storage: Storage,
    limit: Limit = None,
    overwrite_storage: Overwrite = False,
    force: Force = False,
    state: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take one snapshot of devices, and leave it until it is released."""
    from lvmsync.jobs import blksnap
    from lvmsync.jobs.blksnap_storage import Room
    from lvmsync.system.ledger import state_folder

    room = Room(storage, _size(limit), overwrite_storage)
    taken = blksnap.take(state_folder(state), devices, room, force=force)
    _say(taken.notes)
    if as_json:
        print_text(json.dumps(asdict(taken)) + "\n")
    elif not quiet:
        print_text(f"{taken.id}\n")
        for device, image in taken.images.items():
            print_text(f"    {device} as of snapshot {taken.numbers[device]} is {image}\n")


@app.command()
def release(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="of snapshots; all of ours without")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="also one that lvmsync did not make, by its id")] = False,
    state: State = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Give snapshots back: those that lvmsync took, or one by its id."""
    from lvmsync.jobs import blksnap
    from lvmsync.system.ledger import state_folder

    notes = blksnap.release(state_folder(state), ids or [], force=force)
    if not quiet:
        _say(notes)


@app.command()
def mark(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="VG/LV or path of a tracked device")],
    offset: Annotated[str, typer.Argument(metavar="OFFSET", help="where it begins: bytes, or as in 64M")],
    length: Annotated[str, typer.Argument(metavar="LENGTH", help="bytes, or as in 64M")],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Have a range count as written, where something wrote past the module."""
    from lvmsync.jobs import blksnap
    from lvmsync.names import parse_size

    notes = blksnap.mark(device, parse_size(offset), parse_size(length))
    if not quiet:
        _say(notes)


@app.command()
@flat
def sync(
    pairs: Annotated[
        list[str], typer.Argument(metavar="DEVICE [HOST:]TARGET ...", help="devices, and where the copy of each is")
    ],
    storage: Storage,
    limit: Limit = None,
    overwrite_storage: Overwrite = False,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="FILE", help="remember the snapshot here, not in the state folder")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="compare all of it with the target, whatever is remembered")
    ] = False,
    force: Force = False,
    create: Create = False,
    compress: Compress = None,
    *,
    orders: Orders,
    way: Way,
    view: View,
) -> None:
    """Bring copies up to date: one snapshot of all devices, what was written sent, the snapshot given back."""
    from lvmsync.cli.delivery import Delivery
    from lvmsync.jobs import blksnap_sync
    from lvmsync.jobs.blksnap_storage import Room
    from lvmsync.system.ledger import state_folder

    if len(pairs) % 2:
        raise UsageError(f"'{pairs[-1]}' has no target: write DEVICE [HOST:]TARGET, once or more")
    if orders.snapback and len(pairs) > 2:
        raise UsageError("--snapback is a file of one target; leave it away for several")
    orders = replace(orders, create=create)
    receipts: list[Receipt] = []
    with ExitStack() as stack:
        # Printed when progress is over, also of those that were made before another one failed.
        stack.callback(_print_all, receipts, view)
        report = stack.enter_context(view.report())
        outlets = []
        for word, target in zip(pairs[::2], pairs[1::2], strict=True):
            outlets.append(stack.enter_context(Delivery(target, way, orders, report, compress=compress)).outlet(word))
        room = Room(storage, _size(limit), overwrite_storage)
        blksnap_sync.sync(
            state_folder(orders.state),
            outlets,
            room,
            base=base,
            compare=compare,
            force=force,
            dry_run=orders.dry_run,
            tell=receipts.append,
        )


def _size(limit: str | None) -> int | None:
    from lvmsync.names import parse_size

    return parse_size(limit) if limit else None


def _print_all(receipts: list[Receipt], view: View) -> None:
    for receipt in receipts:
        view.print_receipt(receipt)


def _say(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
