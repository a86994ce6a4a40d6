"""The way back of a migration: what is remembered for it, and the volume brought home from where it runs now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvmsync.errors import ConflictError, LvmsyncError, PeerError, TransportError
from lvmsync.history import Point
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.agent.policy import Policy
from lvmsync.jobs.migrate.move import Carried, Cut, Ended, Move
from lvmsync.jobs.migrate.state import Note
from lvmsync.jobs.migrate.unused import find_use
from lvmsync.jobs.migrate.users import Users
from lvmsync.jobs.progress import Progress, Report
from lvmsync.jobs.replica.choose import POINT
from lvmsync.jobs.standing import standing
from lvmsync.system import lvm, seen
from lvmsync.system.device import open_device
from lvmsync.system.identity import canonical_name, identify
from lvmsync.system.ledger import open_ledger
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.lvm_commands import set_active, set_writable

RETRIES = 3
"""How often a pass is begun again when its line failed, while the source runs."""


def may_pass(error: LvmsyncError) -> bool:
    """Tell whether trying again may help: the line failed, as this side or the other one saw it."""
    return error.transient or (isinstance(error, PeerError) and error.exit_code == TransportError.exit_code)


def unfence(volume: LogicalVolume) -> None:
    """Make a volume usable again, however it was fenced."""
    set_writable(volume, is_writable=True)
    found = lvm.find_volume_by_id(volume.id)
    if found and found.number is None:
        set_active(found, is_active=True)


def remember_way_back(volume: LogicalVolume, snapshot_id: str, state: Path) -> None:
    """Write down that a volume of this machine holds what a snapshot on the target's side does.

    So a copy from there starts with a delta, and refuses a volume that was written to since.

    Args:
        volume: what was migrated; nothing uses it any more.
        snapshot_id: LVM id of the snapshot that was taken of the target, before it was used.
        state: the state folder of this machine.
    """
    path = f"/dev/{volume.full_name}"
    with open_device(path) as device:
        name, identity = canonical_name(path, device.fd), identify(device.fd)
        with open_ledger(state, name, identity, device.size) as ledger:
            if ledger.record.transaction:
                raise ConflictError(f"{path} is in the middle of a receive; run 'lvmsync recover {volume.full_name}'")
            now = datetime.now(UTC).isoformat(timespec="seconds")
            ledger.write(
                point=Point(f"{POINT}{snapshot_id}", None, now),
                dirty=False,
                held=None,
                seen=seen.look_when_settled(device.fd),
                traces=(),
            )


@dataclass(frozen=True)
class WayBack:
    """What is to be brought home, and how.

    Attributes:
        volume: of this machine; it is written to.
        source: VG/LV on the agent's machine, which is in use.
        place: the source as its user named it, host and all.
        here: what the far side calls this machine's volume.
        state: the state folder of this machine.
        options: of each pass; see `Agent.pull`. Its "place" is ``here``.
        connect: returns an agent on the source's machine, another one if the last one's session is over.
        users: of the volume, there and here.
        ready: makes sure that the fence can be put up at once.
        fence, unfence: make the far volume read-only if nothing uses it, and writable; None: it is not fenced.
        remove: removes a snapshot of ours on the source's machine.
    """

    volume: LogicalVolume
    source: str
    place: str
    here: str
    state: Path
    options: Mapping[str, Any]
    connect: Callable[[], Agent]
    users: Users
    ready: Callable[[], None] | None = None
    fence: Callable[[], None] | None = None
    unfence: Callable[[], None] | None = None
    remove: Callable[[str], None] | None = None

    @property
    def note(self) -> Note:
        """What the journal begins with."""
        users = self.users
        return Note(
            self.place,
            self.volume.id,
            self.volume.full_name,
            stop=users.how_to_stop,
            restart="" if users.domain else users.how_to_restart,
            domain=users.domain,
            uri=users.uri,
            start=users.how_to_start,
            is_back=True,
        )


@contextmanager
def open_way_back(job: WayBack) -> Iterator[Move]:
    """Yield the steps that bring a volume home; one that was read-only is so again if that does not come to the start.

    It is made writable when the source's machine has answered, and not before: it is read-only for a reason.
    """
    steps = _Steps(job)
    try:
        yield steps.move()
    except BaseException as error:
        steps.fence_again(error)
        raise


class _Steps:
    """The steps, and what they remember of each other."""

    def __init__(self, job: WayBack) -> None:
        self._job = job
        self._has_stopped = False
        self._has_started = False
        self._was_made_writable = False
        self._snapshot: str | None = None

    def move(self) -> Move:
        """Return the steps."""
        job, users = self._job, self._job.users
        return Move(
            source=job.place,
            target=job.volume.full_name,
            run_pass=self.run_pass,
            prepare=self.prepare,
            stop=self.stop,
            find_user=lambda: None,  # the fence asks, where it is
            restart=None if users.restart is None else self.restart,
            fence=job.fence,
            unfence=job.unfence,
            start=None if users.start is None else self.start,
            find_target_use=lambda: find_use(lambda: standing(job.volume.full_name, job.state)),
            finish=self.finish,
            how_to_stop=users.how_to_stop,
            how_to_restart=users.how_to_restart,
            how_to_start=users.how_to_start,
        )

    def run_pass(self, report: Report) -> Carried:
        job, tries = self._job, 0
        policy = Policy.of_word(job.volume.full_name)
        options = {"place": job.here, "passes": True, **job.options}
        while True:
            # The head is taken later than that, so less is counted as changed since than there may be: by a moment.
            began = time.monotonic()
            times: list[float] = []  # of what is told while data come

            def watch(progress: Progress, times: list[float] = times) -> None:
                if progress.phase == "receiving":
                    times.append(time.monotonic())
                report(progress)

            try:
                agent = job.connect()
                self._make_writable()
                receipt = agent.pull(job.source, job.volume.full_name, options, policy, job.state, watch)
                taken = time.monotonic()
                if not self._has_stopped:
                    agent.settle()
                break
            except LvmsyncError as error:
                tries += 1
                if not may_pass(error) or tries > RETRIES or self._has_stopped:
                    raise
        self._snapshot = receipt.snapshot
        kind = receipt.kind or "delta"
        first, last = (times[0], times[-1]) if times else (taken, taken)
        seconds = {
            "open": first - began,
            "send": last - first,
            "commit": taken - last,
            "promote": time.monotonic() - taken,
        }
        return Carried(receipt, kind, seconds, None if kind == "resume" else began)

    def prepare(self) -> float:
        """Make sure of everything that the downtime needs."""
        self._job.users.ready()
        if self._job.ready:
            self._job.ready()
        self._job.connect()
        return 0.0

    def _make_writable(self) -> None:
        if not self._was_made_writable:
            self._was_made_writable = True
            unfence(self._job.volume)

    def fence_again(self, error: BaseException) -> None:
        """Bring the volume of this machine back to how it was found, unless it may be in use by now.

        Args:
            error: what ended the way back; gets a note of what could not be done.
        """
        volume = self._job.volume
        if not self._was_made_writable or self._has_started:
            return
        try:
            if volume.attr[1:2] == "r":
                set_writable(volume, is_writable=False)
            if volume.number is None:
                set_active(volume, is_active=False)
        except LvmsyncError as failed:
            error.add_note(f"{volume.full_name} was made writable, and could not be fenced again: {failed}")

    def start(self) -> Ended:
        assert self._job.users.start
        self._has_started = True
        return self._job.users.start()

    def stop(self) -> None:
        self._has_stopped = True
        self._job.users.stop()

    def restart(self) -> None:
        assert self._job.users.restart
        self._job.users.restart()
        self._has_stopped = False

    def finish(self, _: Cut) -> list[str]:
        """Remove the snapshot on the other side: the volume is used here again."""
        place, snapshot = self._job.place, self._snapshot
        if snapshot and self._job.remove:
            try:
                self._job.connect().settle()
                self._job.remove(snapshot)
            except LvmsyncError as error:
                return [f"{snapshot} is left beside {place} ({error}); 'lvmsync cleanup' there removes it"]
        return [f"{place} is {'read-only' if self._job.fence else 'as it was'} now, so that nothing uses it by mistake"]
