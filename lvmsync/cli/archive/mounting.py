"""``lvmsync archive mount | umount``: past states as block devices, and file systems on them."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, At, MirrorWord, app, counted, open_archive
from lvmsync.cli.asked import View
from lvmsync.cli.files import local_target, print_text
from lvmsync.cli.options import CowSize, Debug, DryRun, Json, Quiet, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import ConflictError, LvmsyncError, UsageError
from lvmsync.names import parse_size

if TYPE_CHECKING:
    from lvmsync.jobs.archive.mount_plan import MountReceipt

StoreWord = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="FOLDER|VG", help="where the chunks of that state are kept  [default: the state folder]"
    ),
]
Writable = Annotated[
    bool, typer.Option("--writable", help="let it be written to; the mirror and the archive stay as they are")
]
Room = Annotated[
    str | None, typer.Option("--room", metavar="SIZE", help="with --writable: how much may be written  [default: 1G]")
]
OverSnapshot = Annotated[
    bool, typer.Option("--snapshot", help="do not hold the mirror: lay it over an LVM snapshot that is taken of it")
]


@app.command()
@flat
def mount(
    archive: ArchiveWord,
    directory: Annotated[
        str | None, typer.Argument(metavar="[DIRECTORY]", help="mount its file system there as well")
    ] = None,
    at: At = "latest",
    mirror: MirrorWord = None,
    writable: Writable = False,
    room: Room = None,
    snapshot: OverSnapshot = False,
    cow_size: CowSize = None,
    store: StoreWord = None,
    dry_run: DryRun = False,
    state: State = None,
    *,
    view: View,
    access: Access,
    debug: Debug = False,
) -> None:
    """Show a point as a block device, read-only, and print its path; with a directory its file system is mounted.

    Nothing is restored: a store of the chunks that were different then is laid over the mirror, which is held until
    'lvmsync archive umount', so nothing is synced to it meanwhile; with --snapshot syncs go on.
    """
    from lvmsync.chain.catalogue import find_point
    from lvmsync.jobs.archive.mount import mount as run
    from lvmsync.jobs.archive.mount_plan import ROOM, MountOptions
    from lvmsync.system.ledger import state_folder

    if room is not None and not writable:
        raise UsageError("--room is for what is written to it: give --writable as well")
    is_group = store is not None and "/" not in store and store not in (".", "..")
    options = MountOptions(
        directory,
        store,
        is_group,
        writable,
        ROOM if room is None else parse_size(room),
        snapshot,
        parse_size(cow_size) if cow_size else None,
        dry_run,
    )
    with ExitStack() as stack:
        shelf = stack.enter_context(open_archive(archive, access))
        point = find_point(shelf.catalogue, at)
        report = stack.enter_context(view.report())
        path = local_target(mirror) if mirror else None
        receipt = run(shelf, point, path, state_folder(state), options, report)
    _say(receipt, view)


@app.command()
def umount(
    mounts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DEVICE|DIRECTORY|ARCHIVE]...", help="what is mounted, by any of its names"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="all past states that are mounted here")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    state: State = None,
    debug: Debug = False,
) -> None:
    """Take mounted past states down, and all that was made for them; after a crash or a reboot what is left of them."""
    from lvmsync.jobs.archive.umount import choose
    from lvmsync.jobs.archive.umount import umount as run
    from lvmsync.system.ledger import state_folder

    if bool(mounts) == everything:
        raise UsageError("name what is to be taken down: a device, a directory or an archive; or give --all")
    folder = state_folder(state)
    done, left = [], []
    for record in choose(folder, mounts or []):
        try:
            done.append(run(folder, record))
        except LvmsyncError as error:
            left.append(error)
    if as_json:
        rows = [{**asdict(one.record), "device": one.record.path, "notes": one.notes} for one in done]
        print_text(json.dumps({"job": "archive umount", "unmounted": rows}) + "\n")
    else:
        for one in done:
            for note in one.notes:
                print(f"note: {note}", file=sys.stderr)
            if not quiet:
                print(f"{one.record} is gone", file=sys.stderr)
        if not done and not left and not quiet:
            print("no past state is mounted", file=sys.stderr)
    if len(left) == 1:
        raise left[0]
    if left:
        raise ConflictError("; ".join(map(str, left)))


def _say(receipt: MountReceipt, view: View) -> None:
    from lvmsync.cli.render import size

    if view.as_json:
        print_text(json.dumps(asdict(receipt)) + "\n")
        return
    for note in receipt.notes:
        print(f"note: {note}", file=sys.stderr)
    if not view.quiet:
        where = f" on {receipt.directory}" if receipt.directory else ""
        over = receipt.snapshot or receipt.mirror
        print(
            f"point #{receipt.point} of {receipt.archive} ({size(receipt.size)},"
            f" {'writable' if receipt.writable else 'read-only'}){where}: {counted(receipt.exceptions, 'chunk')} of"
            f" {size(receipt.chunk_size)} in {receipt.store}{f', over {over}' if over else ''}",
            file=sys.stderr,
        )
        if receipt.dry_run:
            print("nothing was made: that was a dry run", file=sys.stderr)
        else:
            again = Path(receipt.directory) if receipt.directory else receipt.device
            held = f"; until then {receipt.mirror} is held" if receipt.mirror and not receipt.snapshot else ""
            print(f"'lvmsync archive umount {again}' takes it down{held}", file=sys.stderr)
    if not receipt.dry_run:
        print_text(f"{receipt.device}\n")
