"""A pull: the agent copies a volume of its machine to the other side, over the line that it was asked on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvmsync.errors import LvmsyncError, UsageError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.protocol import Line, tame
from lvmsync.jobs.doctor.volumes import check_before
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.copy import PassOptions, run_pass
from lvmsync.jobs.replica.record import list_records
from lvmsync.jobs.replica.replica import Replica, open_replica
from lvmsync.jobs.replica.run import foresee, sync_volume
from lvmsync.jobs.send import StreamOptions
from lvmsync.names import parse_volume
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume


class Push:
    """A target of the other side, which serves us now, that is to be brought up to date with a volume of this machine.

    Attributes:
        key: what is copied where.
    """

    def __init__(
        self,
        line: Line,
        talking: AbstractContextManager[Any],
        source: str,
        target: str,
        state: Path,
        options: Mapping[str, Any],
        report: Report,
        *,
        most_copies: int | None = None,
        stall: float | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            line: on which the other side serves us.
            talking: held while something is asked of it: in between it hears that we are at work.
            source: VG/LV.
            target: VG/LV or path, as the other side knows it.
            state: the state folder.
            options: of the copy, as they came with the request.
            report: takes the progress.
            most_copies: how many targets of one volume may be kept up to date; None: any number.
            stall: seconds that the other side is to wait for a byte of ours; None: as usual.
        """
        self._source, self._target, self._place = source, target, tame(options.get("place") or target)
        self._state, self._options, self._report = state, options, report
        self._most_copies = most_copies
        self.key = source, target, self._place
        peer = Peer(self._place, talking=talking)
        peer.connect(line)
        self._agent = Agent(peer, "", "")
        if stall is not None:
            self._agent.stall = stall

    def run(self) -> Receipt:
        """Make the copy, and return its receipt.

        Raises:
            UsageError: there are as many targets as are allowed, and this is another one.
            LvmsyncError: as of `sync_volume`.
        """
        volume, told = self._find()
        parts = self._agent, volume, self._target, self._place, self._state, self._chosen
        if self._options.get("dry_run"):
            return foresee(*parts, told)
        # Who is asked again after a broken line is the other side.
        return sync_volume(lambda: self._agent, *parts[1:], self._report, retries=0, told=told)

    def open(self) -> AbstractContextManager[Replica]:
        """Return what locks the replica, for several passes.

        Raises:
            LvmsyncError: as of `run`.
        """
        volume, told = self._find()
        check_before(volume, told)
        return open_replica(self._agent, volume, self._target, self._place, self._state, told=told)

    def make_pass(self, replica: Replica, hold: ExitStack, later: list[Callable[[], None]]) -> Receipt:
        """Make one pass of a replica that is open.

        Args:
            replica: of this source and target.
            hold: the snapshots stay active until it ends.
            later: takes what can be put off.

        Raises:
            LvmsyncError: as of `run_pass`.
        """
        options = replace(self._chosen, hold=hold, later=later)
        return run_pass(replica, self._agent, options, self._report).receipt

    def _find(self) -> tuple[LogicalVolume, list[LogicalVolume]]:
        volumes = lvm.list_around(parse_volume(self._source))
        volume = snapshots.find_source(self._source, volumes)
        if self._most_copies is not None:
            _require_room(volume, self._place, self._state, self._most_copies)
        return volume, lvm.list_volumes(volume.group) if volumes is None else volumes

    @property
    def _chosen(self) -> PassOptions:
        options = self._options
        return PassOptions(
            stream=StreamOptions(level=options.get("level") or 0),
            create=bool(options.get("create")),
            thin_pool=options.get("thin_pool"),
            full=bool(options.get("full")),
            minimal=options.get("minimal"),
            store=options.get("store"),
            chunk=options.get("chunk"),
            orders={key: options[key] for key in ("no_undo", "snapback", "archive", "pool_limit") if options.get(key)},
        )


class Passes:
    """Several passes of one copy, on one line: from one to the next the replica stays locked, its snapshots active."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key: tuple[str, str, str] | None = None
        self._replica: Replica | None = None
        self._later: list[Callable[[], None]] = []

    def make(self, push: Push) -> Receipt:
        """Make a pass; what it does not wait for is done by `settle`.

        Raises:
            LvmsyncError: it failed, and all that was kept for the next one is let go.
        """
        try:
            self.settle()
            if self._key != push.key:
                self.close()
            if self._replica is None:
                self._replica, self._key = self._stack.enter_context(push.open()), push.key
                self._replica.require_alone()
            return push.make_pass(self._replica, self._stack, self._later)
        except BaseException:
            self.close()
            raise

    def settle(self) -> None:
        """Do what was put off.

        Raises:
            LvmsyncError: it failed; the next run does it.
        """
        while self._later:
            self._later.pop(0)()

    def close(self) -> None:
        """Do what was put off, and let go of what was kept for the next pass. What fails is left to the next run."""
        with suppress(LvmsyncError):
            self.settle()
        self._later.clear()
        self._key = self._replica = None
        self._stack.close()


def _require_room(volume: LogicalVolume, place: str, state: Path, most: int) -> None:
    """Refuse one target more than ``most``: each keeps a snapshot."""
    known = {record.target for record in list_records(state) if record.source_id == volume.id}
    if place not in known and len(known) >= most:
        raise UsageError(
            f"{volume.full_name} has {len(known)} copies already ({', '.join(sorted(known))}), and this server allows"
            f" {most}: remove the snapshots and the record of one with 'lvmsync cleanup' there, or raise --most-copies"
        )
