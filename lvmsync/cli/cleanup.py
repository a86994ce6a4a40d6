"""``lvmsync cleanup``: what was left behind, whose it is, and giving it back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from lvmsync.cli.files import print_text
from lvmsync.cli.options import Debug, Json, Quiet


def cleanup(
    release: Annotated[
        str | None,
        typer.Option("--release", metavar="DEVICE", help="give back the metadata snapshot of this pool or era device"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show which thin pools and era devices have a metadata snapshot taken, and by whom; give one back."""
    from lvmsync.jobs.cleanup import find_leftovers, give_back

    if release:
        found, done = [give_back(release)], ", and was given back"
    else:
        found, done = find_leftovers(), ""
    if as_json:
        rows = [
            {
                "device": leftover.held.device.path,
                "kind": leftover.tracker.kind,
                "block": leftover.held.root,
                "owner": asdict(leftover.held.owner) if leftover.held.owner else None,
                "is_ours": leftover.held.is_ours,
                "is_running": leftover.held.is_running,
            }
            for leftover in found
        ]
        print_text(json.dumps({"metadata_snapshots": rows, "released": bool(release)}) + "\n")
        return
    for leftover in found:
        held = leftover.held
        state = ", and that run works with it now" if held.is_running else done
        offer = "" if release or held.is_running else f"; 'lvmsync cleanup --release {held.device.name}' gives it back"
        print_text(f"{held}{state}{offer}\n")
    if not found and not quiet:
        print_text("nothing is left behind: no thin pool and no era device has a metadata snapshot taken\n")
