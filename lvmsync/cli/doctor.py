"""``lvmsync doctor``: what is wrong on a machine, each with the command that mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.asked import Orders, Printing, Way
from lvmsync.cli.files import print_text
from lvmsync.cli.options import State

if TYPE_CHECKING:
    from lvmsync.jobs.doctor.findings import Finding

FINDINGS = 3
"""The exit status where something was found."""


def doctor(
    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VG|HOST:]...", help="look at these volume groups only; ask these machines as well"),
    ] = None,
    *,
    way: Way,
    state: State = None,
    printing: Printing,
) -> int:
    """Look for leftovers, full pools, broken snapshots and what was not finished, and say what mends each.

    Nothing is changed. The exit status is 3 if anything was found.
    """
    from lvmsync.jobs.doctor.examine import examine
    from lvmsync.system.ledger import state_folder

    hosts = [word for word in places or () if word.endswith(":")]
    groups = [word for word in places or () if not word.endswith(":")]
    found = examine(state_folder(state), groups)
    for host in hosts:
        found += _ask(host, way)
    if printing.as_json:
        print_text(json.dumps({"findings": [asdict(one) for one in found]}) + "\n")
    else:
        for one in found:
            print_text(f"{one.what}: {one.problem}\n    {one.remedy}\n")
        if not found and not printing.quiet:
            print_text("all is well\n")
    return FINDINGS if found else 0


def _ask(host: str, way: Way) -> list[Finding]:
    """Return what is wrong with the lvmsync on a machine, or with the way to it."""
    from lvmsync.cli.delivery import Delivery
    from lvmsync.errors import LvmsyncError, UsageError
    from lvmsync.jobs.doctor.examine import describe_far, examine_far
    from lvmsync.jobs.progress import ignore

    try:
        with Delivery(f"{host}/dev/null", way, Orders(), ignore) as delivery:
            return examine_far(delivery.agent, host)
    except UsageError:
        raise
    except LvmsyncError as error:
        return [describe_far(error, host)]
