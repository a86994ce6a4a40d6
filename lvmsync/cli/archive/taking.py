"""How a source is taken into an archive, as the user has asked for it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lvmsync.cli.asked import Asked, Managing, Orders, View, Way
from lvmsync.cli.files import stream_options
from lvmsync.cli.options import Compress, DataSource, Frozen
from lvmsync.cli.refinement import Refinement
from lvmsync.errors import UsageError
from lvmsync.names import CowFile, TargetName, Volume, parse_source

if TYPE_CHECKING:
    from lvmsync.jobs.archive.shelf import Shelf
    from lvmsync.jobs.progress import Receipt
    from lvmsync.jobs.replica.copy import PassOptions
    from lvmsync.system.lvm import LogicalVolume


@dataclass(frozen=True)
class Taking:
    """How changed data is read and written.

    Attributes:
        data_source: where it is read; None: where the source says.
        frozen: the origin is open, but nothing writes to it.
        compress: as the user wrote it; None where he said nothing.
    """

    data_source: DataSource = None
    frozen: Frozen = False
    compress: Compress = None


class Taker:
    """A source that is to be taken; all that can be refused without a look into the archive is refused at once.

    Attributes:
        volume: the volume whose snapshots lvmsync takes; None: it is a source of another kind.
    """

    volume: LogicalVolume | None

    def __init__(
        self, source: str, taking: Taking, refinement: Refinement, managing: Managing, state: str | None
    ) -> None:
        from lvmsync.cli.replica import find_managed
        from lvmsync.sources import Reading
        from lvmsync.system.lvm import list_around

        self._name = name = parse_source(source)
        self._options = stream_options(4, taking.compress or "zstd:1")
        self._refinement, self._managing, self._state = refinement, managing, state
        is_plain = taking.data_source is None and not taking.frozen and not refinement.is_wanted
        told = list_around(name) if is_plain and isinstance(name, Volume) else None
        self.volume = find_managed(source, managing, told) if is_plain and isinstance(name, Volume) else None
        if self.volume is None:
            managing.require_none(source)
        elif managing.thin_pool or managing.retries is not None:
            raise UsageError("--thin-pool and --retries are for a copy, and this is an archive")
        self._reading = refinement.want(name, Reading(data_source=taking.data_source, frozen=taking.frozen))

    def take(self, shelf: Shelf, view: View, label: str | None = None) -> Receipt:
        """Take it into an archive, and return the receipt.

        Raises:
            LvmsyncError: it failed; the archive is as it was.
        """
        from lvmsync.sources import open_source
        from lvmsync.system.ledger import state_folder

        folder = state_folder(self._state)
        with ExitStack() as stack:
            report = stack.enter_context(view.report())
            if self.volume:
                from lvmsync.jobs.archive.managed import take_volume

                return take_volume(shelf, self.volume, folder, self._passes(shelf), report, label=label)
            from lvmsync.jobs.archive.take import take

            if isinstance(self._name, CowFile):
                from lvmsync.jobs.dattobd_points import open_recorded

                opened = stack.enter_context(open_recorded(folder, self._name, self._reading))
            else:
                opened = stack.enter_context(open_source(self._name, self._reading))
            return take(shelf, self._refinement.apply(opened, report), self._options, report, label=label)

    def _passes(self, shelf: Shelf) -> PassOptions:
        from lvmsync.cli.replica import pass_options

        passes = pass_options(TargetName(None, shelf.store.name), Asked(Way(), Orders(), self._managing))
        return replace(passes, stream=self._options)
