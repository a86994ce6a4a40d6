"""A logical volume of this machine, made ready to be moved: each step of a migration as a function on real things."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, VerifyError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.leaves import compare_device
from lvmsync.jobs.migrate.back import RETRIES, may_pass, remember_way_back, unfence
from lvmsync.jobs.migrate.move import Carried, Cut, Move
from lvmsync.jobs.migrate.predict import LOOK
from lvmsync.jobs.migrate.state import Note
from lvmsync.jobs.migrate.unused import find_use
from lvmsync.jobs.migrate.users import Users
from lvmsync.jobs.progress import Report, ignore
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.copy import PassOptions, PassResult, run_pass
from lvmsync.jobs.replica.replica import Replica, open_replica
from lvmsync.jobs.replica.watch import chunk_size
from lvmsync.jobs.verify import distrust, verify_whole
from lvmsync.names import Volume
from lvmsync.system import dm, lvm, seen
from lvmsync.system.device import open_device
from lvmsync.system.fill import store_fill
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.lvm_commands import set_active, set_writable
from lvmsync.transport import STALL_TIMEOUT

_LEAST_PATIENCE = 10.0  # seconds; a disk may take some for what it is to make durable
_LOOK = 1.0  # seconds between two looks at the stores


@dataclass(frozen=True)
class Job:
    """What is to be moved, and how.

    Attributes:
        volume: the source.
        target: VG/LV or path, on the agent's machine.
        place: the target as its user named it, host and all.
        state: the state folder of this machine.
        options: of each pass.
        connect: returns an agent on the target's machine, another one if the last one's session is over.
        users: of the volume, here and there.
        fence: "none", "readonly" or "deactivate".
        verify: whether the target is compared.
        way_back: whether ``migrate --back`` is made possible.
        max_downtime: seconds; a line that is silent for longer in the downtime counts as dead.
    """

    volume: LogicalVolume
    target: str
    place: str
    state: Path
    options: PassOptions
    connect: Callable[[], Agent]
    users: Users
    fence: str = "readonly"
    verify: bool = False
    way_back: bool = True
    max_downtime: float = STALL_TIMEOUT

    @property
    def note(self) -> Note:
        """What the journal begins with."""
        users = self.users
        return Note(
            self.volume.full_name,
            self.volume.id,
            self.place,
            stop=users.how_to_stop,
            restart="" if users.domain else users.how_to_restart,
            domain=users.domain,
            uri=users.uri,
            start=users.how_to_start,
        )


@contextmanager
def open_move(job: Job) -> Iterator[Move]:
    """Lock the replica of a volume and its target, and yield the steps of its migration."""
    if job.volume.number is None:
        raise DeviceError(
            f"{job.volume.full_name} is not active; run 'lvchange -ay {job.volume.full_name}'",
            device=job.volume.full_name,
        )
    if job.volume.attr[1:2] == "r" and job.fence != "none":
        raise ConflictError(
            f"{job.volume.full_name} is read-only: it was migrated already, and is used elsewhere, or was made so by"
            f" somebody. 'lvmsync migrate --back' brings it home; if it is the newest, 'lvchange -prw"
            f" {job.volume.full_name}' makes it writable",
            device=job.volume.full_name,
        )
    agent = job.connect()
    with open_replica(agent, job.volume, job.target, job.place, job.state) as replica, ExitStack() as hold:
        replica.require_alone()
        steps = _Steps(job, replica, hold)
        steps.require_room()
        yield steps.move()


@contextmanager
def _about_way_back() -> Iterator[None]:
    """Say of an error what the snapshot is for, and how to do without."""
    try:
        yield
    except LvmsyncError as error:
        error.add_note("that snapshot is for the way back; --no-way-back moves the volume without one")
        raise


class _Steps:
    """The steps, and what they remember of each other."""

    def __init__(self, job: Job, replica: Replica, hold: ExitStack) -> None:
        self._job = job
        self._replica = replica
        self._agent: Agent | None = None
        self._last: PassResult | None = None
        self._has_stopped = False
        self._looked = float("-inf")
        self._snapshot: LogicalVolume | None = None  # of the last pass
        self._sent_of_kept = 1.0
        self._store_fill: float | None = None
        self._pool_fill: float | None = None
        self._way_back = ""
        self._options = replace(job.options, hold=hold)  # no time is lost for it in the downtime
        self._told: list[LogicalVolume] | None = None  # by LVM, a moment ago

    def move(self) -> Move:
        """Return the steps."""
        job, users = self._job, self._job.users
        return Move(
            source=job.volume.full_name,
            target=job.place,
            run_pass=self._run_pass,
            prepare=self._prepare,
            stop=self._stop,
            find_user=self._find_user,
            restart=None if users.restart is None else self._restart,
            count_writes=self._count_writes,  # what had it open before the fence may write behind it
            fence=None if job.fence == "none" else self._fence,
            unfence=None if job.fence == "none" else lambda: unfence(job.volume),
            verify_whole=self._verify_whole if job.verify else None,
            verify_last=self._verify_last if job.verify else None,
            keep_way_back=self._keep_way_back if job.way_back and self._is_volume() else None,
            drop_way_back=self._drop_way_back,
            find_target_use=lambda: find_use(lambda: self._connect().standing(job.target)),
            seal=(lambda: set_active(job.volume, is_active=False)) if job.fence == "deactivate" else None,
            start=users.start,
            finish=self._finish,
            how_to_stop=users.how_to_stop,
            how_to_restart=users.how_to_restart,
            how_to_start=users.how_to_start,
            known_dirty=self._find_dirty,
            fill=self._look_at_fill,
        )

    def require_room(self) -> None:
        """Refuse a target, if it is there already, that would have no way back."""
        agent, target = self._connect(), self._job.target
        if not self._job.way_back or not self._is_volume():
            return
        standing = agent.standing(target)
        self._require_size(standing.size)
        if standing.kind == "thick":
            with _about_way_back():
                agent.require_snapshot_room(target, self._replica.id)

    def _require_size(self, size: int | None) -> None:
        """Refuse a target that is larger: what lies behind the source's end could not be brought back."""
        volume = self._job.volume
        if size is not None and size > volume.size:
            raise DeviceError(
                f"{self._job.place} has {size} bytes and {volume.full_name} has {volume.size}: what is changed behind"
                f" that could not be brought back. Make it as large with 'lvextend -L {size}b {volume.full_name}', or"
                " give --no-way-back",
                device=self._job.place,
            )

    def _run_pass(self, report: Report) -> Carried:
        tries = 0
        kept = 0
        began = time.monotonic()
        if not self._has_stopped:
            kept = self._find_kept() or 0
            pool = self._connect().standing(self._job.target).pool
            self._pool_fill = pool.data_percent / 100 if pool else None
        # In the downtime nothing is done that can wait: `_finish` removes the snapshots in any case.
        options = replace(self._options, later=[] if self._has_stopped else None, is_still=self._has_stopped)
        told, self._told = self._told, None
        looked = time.monotonic() - began
        while True:
            try:
                result = run_pass(self._replica, self._connect(), options, report, told)
                break
            except LvmsyncError as error:
                tries += 1
                # In the downtime there is no time for it, and a pass that went on with an old snapshot is no use.
                if not may_pass(error) or tries > RETRIES or self._has_stopped:
                    raise
        self._last = result
        began = time.monotonic()
        self._options = replace(self._options, full=False)  # the first pass was
        if kept and result.kind == "delta":
            self._sent_of_kept = min(1.0, result.changed_bytes / kept)
        if not self._has_stopped:
            self._snapshot = snapshot = lvm.find_volume(result.snapshot)
            if snapshot.is_classic_snapshot and not self._options.store:
                # As the last one: what is known need not be asked of LVM in the downtime.
                self._options = replace(self._options, store=snapshot.size, chunk=chunk_size(snapshot) or None)
        looked += time.monotonic() - began + result.seconds.get(LOOK, 0.0)
        return Carried(result.receipt, result.kind, {**result.seconds, LOOK: looked}, result.head_time)

    def _prepare(self) -> float:
        """Make sure of everything that the downtime needs; return how long the snapshot of the target will take."""
        self._job.users.ready()
        self._connect()
        if self._job.way_back and self._is_volume():
            self._require_size(self._connect().standing(self._job.target).size)  # one that was made may be larger, too
            with _about_way_back():  # that of an earlier migration would be in the way in the downtime
                self._connect().drop_snapshot(self._job.target, self._replica.id, room=True)
        self._told = lvm.list_volumes()
        took = self._last.seconds.get("snapshot", 0.0) if self._last else 0.0
        return took if self._job.way_back and self._is_volume() else 0.0

    def _stop(self) -> None:
        self._has_stopped = True
        self._be_patient(max(_LEAST_PATIENCE, self._job.max_downtime))
        self._job.users.stop()

    def _restart(self) -> None:
        assert self._job.users.restart
        self._job.users.restart()
        self._has_stopped = False
        self._told = None
        self._be_patient(STALL_TIMEOUT)

    def _fence(self) -> None:
        set_writable(self._job.volume, is_writable=False)

    def _be_patient(self, seconds: float) -> None:
        """Set how long the line may be silent, as far as that is less than usual."""
        if self._agent and not self._agent.is_over:
            transport = self._agent.peer.line.transport
            if transport.stall_timeout is not None:
                self._agent.stall = transport.stall_timeout = min(seconds, STALL_TIMEOUT)

    def _connect(self) -> Agent:
        self._agent = self._job.connect()
        return self._agent

    def _is_volume(self) -> bool:
        """Tell whether the target is a volume of LVM, of which a snapshot can be kept."""
        return Volume(self._job.target).lvm_name is not None

    def _verify_whole(self, report: Report) -> None:
        """Compare the target with the snapshot that it was brought to."""
        assert self._last
        agent, target = self._connect(), self._job.target
        verdict = verify_whole(agent, target, self._last.snapshot, report, frozen=True)
        try:
            verdict.require_equal()
        except VerifyError as error:
            for note in distrust(agent, target):
                error.add_note(note)
            raise

    def _verify_last(self) -> None:
        """Compare what the last pass has changed with the source itself, which nobody writes to any more."""
        assert self._last
        agent, target, place = self._connect(), self._job.target, self._job.place
        with open_device(f"/dev/{self._job.volume.full_name}") as device:
            found = compare_device(
                device,
                device.size,
                lambda size, seed: agent.begin_leaves(target, size, seed),
                ignore,
                within=self._last.changes,
            )
        if len(found.differing):
            error = VerifyError(
                f"{place} differs from {self._job.volume.full_name} in {found.differing.total_bytes} bytes of what the"
                f" last pass brought, the first at {int(found.differing.offsets[0])}: do not use it",
                device=place,
                offset=int(found.differing.offsets[0]),
            )
            for note in distrust(agent, target):
                error.add_note(note)
            raise error

    def _keep_way_back(self) -> str:
        """Take a snapshot of the target as it is now, which is what the source holds."""
        made = self._connect().snapshot(self._job.target, self._replica.id)
        self._way_back = str(made["id"] or "")
        if self._job.fence == "deactivate":  # later there is no device to look at
            self._remember_way_back()
        return str(made["name"])

    def _drop_way_back(self) -> None:
        """Remove the snapshots of the target that were kept for a way back."""
        self._connect().drop_snapshot(self._job.target, self._replica.id)

    def _remember_way_back(self) -> None:
        """Remember here that the source holds what that snapshot does."""
        if not self._way_back:
            self._way_back = str(self._connect().find_snapshot(self._job.target, self._replica.id)["id"])
        remember_way_back(self._job.volume, self._way_back, self._job.state)

    def _finish(self, cut: Cut) -> list[str]:
        """Remove our snapshots of the source: nothing will change there any more."""
        notes = snapshots.remove(snapshots.list_kept(self._job.volume, self._replica.id))
        if not notes:
            self._replica.notebook.forget()
        if cut.way_back and self._job.fence != "deactivate":
            self._remember_way_back()
        if self._job.fence != "none":
            how = "read-only" if self._job.fence == "readonly" else "not active"
            notes.append(f"{self._job.volume.full_name} is {how} now, so that nothing uses it by mistake")
        return notes

    def _find_user(self) -> str | None:
        """Say that somebody has the source open; udev, which does for moments, is waited for."""
        try:
            number = Path(f"/dev/{self._job.volume.full_name}").stat().st_rdev
        except OSError:  # not active: the pass will say so
            return None
        return None if dm.wait_until_closed((os.major(number), os.minor(number))) else "the kernel counts it as open"

    def _count_writes(self) -> object:
        """Return the sectors of the source that were written so far, once all that was buffered is written."""
        with open_device(f"/dev/{self._job.volume.full_name}") as device:
            os.fsync(device.fd)
            return seen.look(device.fd)

    def _find_dirty(self) -> int | None:
        """Return how many bytes a pass would send now: a classic snapshot counts what it keeps.

        It keeps whole chunks, and tables; how much of that was sent, the last delta tells.
        """
        kept = self._find_kept()
        return None if kept is None else round(kept * self._sent_of_kept)

    def _find_kept(self) -> int | None:
        """Return how many bytes the last pass's snapshot keeps; None of a thin one."""
        with suppress(LvmsyncError):
            if self._snapshot is not None and self._snapshot.is_classic_snapshot:
                return store_fill(self._snapshot).used
        return None

    def _look_at_fill(self) -> tuple[float | None, float | None]:
        """Return how full our snapshot's store and the target's pool are, as of a second ago at most."""
        now = time.monotonic()
        if now - self._looked >= _LOOK and not self._has_stopped:
            self._looked = now
            with suppress(LvmsyncError):
                if self._snapshot is not None and self._snapshot.is_classic_snapshot:
                    self._store_fill = store_fill(self._snapshot).percent / 100
        return self._store_fill, self._pool_fill
