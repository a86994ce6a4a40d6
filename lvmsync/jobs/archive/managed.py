"""A volume whose snapshots lvmsync takes, with an archive in the place of a copy: one run, one more point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from lvmsync import __version__
from lvmsync.chain.catalogue import REVERSE
from lvmsync.chain.routes import list_restorable
from lvmsync.errors import UsageError
from lvmsync.history import Point
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import require_label, take
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.run import sync_volume
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.standing import Standing
from lvmsync.sources.source import Source
from lvmsync.system.lvm import LogicalVolume


def take_volume(
    shelf: Shelf,
    volume: LogicalVolume,
    state: Path,
    options: PassOptions,
    report: Report,
    *,
    label: str | None = None,
) -> Receipt:
    """Take a snapshot of a volume, and its changes since the last one into an archive; all of it the first time.

    One snapshot is kept for each archive: the next delta starts from it.

    Args:
        shelf: the archive.
        volume: a plain or thin volume.
        state: the state folder of this machine.
        options: of the snapshots; how the stream is written.
        report: takes the progress.
        label: what the user calls the point.

    Raises:
        LvmsyncError: as of `sync_volume`, and of `take`; the archive is as it was.
    """
    require_label(shelf.catalogue, label)
    side = _Side(shelf, label)
    # What the base and the volume have alike is sent, too: nothing could hold an archive to samples of the base.
    receipt = sync_volume(
        lambda: cast(Agent, side), volume, shelf.store.name, f"archive {shelf.store.name}", state,
        replace(options, minimal=False), report, retries=0,
    )  # fmt: skip
    return replace(receipt, job="archive take")


class _Side:
    """What a pass asks of the side of its target, as far as an archive has an answer."""

    is_over = False

    def __init__(self, shelf: Shelf, label: str | None) -> None:
        self._shelf = shelf
        self._label = label

    def standing(self, target: str) -> Standing:
        """Return what the archive is: its newest point that was not led back to, if it can be restored."""
        self._shelf = Shelf.open(self._shelf.store)
        catalogue = self._shelf.catalogue
        there = list_restorable(catalogue)
        forward = {one.head for one in catalogue.members if one.way != REVERSE} & there
        newest = next((one for one in reversed(catalogue.points) if one.id in forward), None)
        return Standing(
            target,
            __version__,
            datetime.now(UTC).isoformat(timespec="seconds"),
            exists=True,
            kind="archive",
            identity={"archive": catalogue.archive},
            point=Point(newest.id, None, newest.time) if newest else None,
            written="no",
        )

    def receive(
        self,
        target: str,
        source: Source,
        stream: StreamOptions,
        report: Report,
        *,
        orders: Mapping[str, Any],
        **_: Any,
    ) -> Receipt:
        """Take a member; what a receiver is told besides is of no use to an archive."""
        return replace(take(self._shelf, source, stream, report, label=self._label), confirmed=True)

    def create(self, target: str, size: int, *, pool: str | None = None) -> None:
        """Refuse: there is an archive, or its user is told how to make one."""
        raise UsageError(f"{target} is an archive: there is nothing to be made")
