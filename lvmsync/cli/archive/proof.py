"""``lvmsync archive verify``: proof that an archive is whole."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, MirrorWord, app, counted, open_archive, open_mirror
from lvmsync.cli.asked import View
from lvmsync.cli.files import print_text
from lvmsync.cli.options import Debug, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import VerifyError


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
    access: Access,
    debug: Debug = False,
) -> None:
    """Read every byte of an archive and prove that each point can be restored; ends with 9 if not."""
    from lvmsync.cli.render import size
    from lvmsync.jobs.archive.verify import verify as run

    with ExitStack() as stack:
        shelf = stack.enter_context(open_archive(archive, access))
        report = stack.enter_context(view.report())
        held = stack.enter_context(open_mirror(mirror, shelf, state))
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
        points = counted(len(verdict.restored), "point")
        rebuilt = f"; {points} rebuilt, each with the digest that it had" if restore_test else ""
        print(
            f"{shelf.store.name} is whole: {counted(verdict.members, 'member')} ({size(verdict.bytes)}),"
            f" {counted(len(shelf.catalogue.points), 'point')}{rebuilt}",
            file=sys.stderr,
        )
