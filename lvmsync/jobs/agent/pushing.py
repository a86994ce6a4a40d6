"""A pull: the agent copies a volume of its machine to the other side, over the line that it was asked on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lvmsync.errors import UsageError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.protocol import Line, tame
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.record import list_records
from lvmsync.jobs.replica.run import foresee, sync_volume
from lvmsync.jobs.send import StreamOptions
from lvmsync.names import parse_volume
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume


def push(
    line: Line,
    talking: AbstractContextManager[Any],
    source: str,
    target: str,
    state: Path,
    options: Mapping[str, Any],
    report: Report,
    *,
    most_copies: int | None = None,
) -> Receipt:
    """Bring a target of the other side, which serves us now, up to date with a volume of this machine.

    Args:
        line: on which it serves us.
        talking: held while something is asked of it: in between it hears that we are at work.
        source: VG/LV.
        target: VG/LV or path, as the other side knows it.
        state: the state folder.
        options: of the copy, as they came with the request.
        report: takes the progress.
        most_copies: how many targets of one volume may be kept up to date; None: any number.

    Raises:
        UsageError: there are that many, and this is another one.
        LvmsyncError: as of `sync_volume`.
    """
    told = lvm.list_around(parse_volume(source))
    volume = snapshots.find_source(source, told)
    place = tame(options.get("place") or target)
    if most_copies is not None:
        _require_room(volume, place, state, most_copies)
    peer = Peer(place, talking=talking)
    peer.connect(line)
    agent = Agent(peer, "", "")
    chosen = PassOptions(
        stream=StreamOptions(level=options.get("level") or 0),
        create=bool(options.get("create")),
        thin_pool=options.get("thin_pool"),
        full=bool(options.get("full")),
        minimal=options.get("minimal"),
        store=options.get("store"),
        chunk=options.get("chunk"),
        orders={key: options[key] for key in ("no_undo", "snapback", "pool_limit") if options.get(key)},
    )
    if options.get("dry_run"):
        return foresee(agent, volume, target, place, state, chosen, told)
    # Who is asked again after a broken line is the other side.
    return sync_volume(lambda: agent, volume, target, place, state, chosen, report, retries=0, told=told)


def _require_room(volume: LogicalVolume, place: str, state: Path, most: int) -> None:
    """Refuse one target more than ``most``: each keeps a snapshot."""
    known = {record.target for record in list_records(state) if record.source_id == volume.id}
    if place not in known and len(known) >= most:
        raise UsageError(
            f"{volume.full_name} has {len(known)} copies already ({', '.join(sorted(known))}), and this server allows"
            f" {most}: remove the snapshots and the record of one with 'lvmsync cleanup' there, or raise --most-copies"
        )
