"""The part of a migration in which nothing runs: stop, last pass, start; and the way out of each of its failures.

    stop       the source's user is stopped              fails: it is started again
    idle       nothing has the source open               fails: the same
    fence      the source is made read-only              fails: writable again, started again
    pass       what changed since the last pass          fails or takes too long: the same
    verify     what it has brought is read back          fails: the same
    back       a snapshot of the target, as it is now    fails: the same
    start      the target's user is started              it failed, and the target is not used: the same
                                                         else, or not known: nothing is started anywhere

The last line is the one where both sides could come to be used at once. So its line is the journal's, before it is
taken, and after it only a start command that has ended with an error lets the source run again, and only if it has
not got as far as to use the target: a mount that worked before a service that did not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from lvmsync.errors import CommandError, ConflictError, DeviceError, LvmsyncError, TransportError, VerifyError
from lvmsync.jobs.migrate import state
from lvmsync.jobs.migrate.move import Carried, Cut, Move, Options
from lvmsync.jobs.migrate.predict import Prediction
from lvmsync.jobs.progress import Progress
from lvmsync.system.signals import signals_deferred

TOLERANCE = 0.1
"""Part of the allowed downtime by which a last pass may be late: less than a second stop would cost."""

Ticking = Callable[[str, Progress | None], None]


@dataclass
class Budget:
    """The time that is left of the downtime; ends the last pass when it will not do.

    Attributes:
        is_spent: whether it has ended the pass.
        predicted_end: seconds of downtime, as it looks now.
        pass_bytes: that the last pass has to send, as soon as it knows; None before.
    """

    move: Move
    prediction: Prediction
    began: float
    allowed: float
    may_restart: bool
    is_spent: bool = False
    predicted_end: float = 0.0
    pass_bytes: int | None = None
    _sending_since: float | None = field(default=None, repr=False)

    def check_before_pass(self) -> None:
        """End it before the last pass, if that cannot be done in time.

        Raises:
            DeviceError: it cannot; ``is_spent`` is set.
        """
        left = self.prediction.pass_fixed + self.prediction.send + self.prediction.tail
        self._check(self.move.clock() - self.began + left)

    def check_progress(self, progress: Progress) -> None:
        """End the pass, if the rest of it cannot be done in time; called as it gets on."""
        if progress.phase not in ("sending", "receiving") or not progress.total:
            return
        now = self.move.clock()
        if self._sending_since is None:
            self._sending_since, self.pass_bytes = now, progress.total
        per_byte = 1 / self.prediction.rate if self.prediction.rate else 0.0
        spent = now - self._sending_since
        if spent > 0.5 and progress.done > progress.total // 20:
            # As this very pass has it; but it may have begun slowly, so what was predicted counts as a fifth of it.
            before = progress.total // 5 if per_byte else 0
            per_byte = (spent + per_byte * before) / (progress.done + before)
        commit = 0.25 * self.prediction.pass_fixed
        self._check(now - self.began + per_byte * (progress.total - progress.done) + commit + self.prediction.tail)

    def _check(self, end: float) -> None:
        self.predicted_end = end
        if self.may_restart and end > (1 + TOLERANCE) * self.allowed:
            self.is_spent = True
            raise DeviceError(
                f"the downtime would come to {end:.1f} s, and {self.allowed:g} s are allowed", device=self.move.source
            )


class CutOver:
    """One try at the cut-over."""

    def __init__(
        self, move: Move, options: Options, journal: state.Journal, budget: Budget, tick: Ticking = lambda *_: None
    ) -> None:
        self._move = move
        self._options = options
        self._journal = journal
        self._budget = budget
        self._tick = tick
        self.parts: dict[str, float] = {}
        """How long each part took, as far as it got."""
        self._since = budget.began
        self._may_be_stopped = False
        self._may_be_fenced = False
        self._has_way_back = False

    def run(self) -> Cut:
        """Stop, send what is left, and start; see the table above.

        Raises:
            LvmsyncError: it failed, and the source is as its notes say. With ``budget.is_spent``: it would have
                taken too long, and the source runs again.
        """
        move, journal = self._move, self._journal
        try:
            carried = self._move_over()
            self._has_way_back = move.keep_way_back is not None
            way_back = move.keep_way_back() if move.keep_way_back else None
            if move.seal:
                self._may_be_fenced = True
                journal.enter(state.SENT, is_fenced=True)
                move.seal()
            self._mark("back")
        except BaseException as error:
            self._bring_back(error)
            raise
        started = self._start()
        return Cut(carried, move.clock() - self._budget.began, self.parts, way_back, started)

    def _move_over(self) -> Carried:
        move, journal = self._move, self._journal
        self._tick("stopping the source", None)
        journal.enter(state.STOPPING, predicted=round(self._budget.prediction.downtime, 3))
        self._may_be_stopped = True
        move.stop()
        self._mark("stop")
        self._budget.check_before_pass()
        stopped = move.clock()
        journal.enter(state.STOPPED)
        user = move.find_user()
        if user and self._options.fence:
            raise DeviceError(
                f"{move.source} is still in use ({user}) after the stop command: what it writes from now on would be"
                " lost; make the command wait until nothing uses the volume",
                device=move.source,
            )
        if move.fence and self._options.fence:
            self._may_be_fenced = True
            journal.enter(state.FENCED, is_fenced=True)
            move.fence()
        self._mark("fence")
        writes = move.count_writes()
        carried = move.run_pass(self._report)
        self._mark("pass")
        if carried.head_time is None or carried.head_time < stopped:
            raise VerifyError(
                f"the last pass ({carried.kind}) brought {move.target} to a snapshot from before the stop: what was"
                " written since is not there",
                device=move.target,
            )
        journal.enter(state.SENT)
        if move.count_writes() != writes:
            raise VerifyError(
                f"{move.source} was written to after the stop command had returned: {move.target} may lack that;"
                " make the command wait until nothing writes any more, or let the source be fenced",
                device=move.source,
            )
        if move.verify_last:
            self._tick("verifying", None)
            move.verify_last()
        self._mark("verify")
        return carried

    def _report(self, progress: Progress) -> None:
        self._tick("last pass", progress)
        self._budget.check_progress(progress)

    def _start(self) -> bool:
        """Start the target's user; return whether there was a command for that."""
        move = self._move
        if move.start is None:
            return False
        self._tick("starting the target", None)
        try:
            self._journal.enter(state.STARTING)
        except BaseException as error:
            self._bring_back(error)  # nothing was started yet
            raise
        try:
            ended = move.start()
        except LvmsyncError as error:
            self._bring_back(error)  # it was not begun
            raise
        except BaseException as error:
            self._leave(error)
            raise
        self._mark("start")
        if ended.status is None:
            lost = TransportError(f"what became of the start command is not known: {ended.words}")
            self._leave(lost)
            raise lost
        if ended.status:
            failed = CommandError(f"the start command failed with status {ended.status}: {ended.words or 'no reason'}")
            self._settle(failed)
            raise failed
        return True

    def _settle(self, failed: CommandError) -> None:
        """Let the source run again after a start command that failed, unless that has got as far as to use the target.

        Raises:
            BaseException: it was called off meanwhile; nothing is started.
        """
        move = self._move
        try:
            use = move.find_target_use()
        except LvmsyncError as error:
            use = f"its machine cannot be asked: {error}"
        except BaseException as error:
            self._leave(error)
            raise
        if use:
            failed.add_note(f"{move.target}: {use}")
            self._leave(failed)
            return
        failed.add_note(f"{move.target} is whole; if the command wrote to it, the next run tells")
        self._bring_back(failed)

    def _mark(self, part: str) -> None:
        """Note how long a part took, which ends now."""
        now = self._move.clock()
        self.parts[part] = round(now - self._since, 3)
        self._since = now

    def _leave(self, error: BaseException) -> None:
        """Say why nothing is started again: the target may be in use."""
        move = self._move
        error.add_note(
            f"the target may be in use now, so the source stays stopped"
            f"{' and read-only' if self._may_be_fenced else ''}: look at {move.target}. If it runs there, run 'lvmsync"
            f" migrate --finish {self._journal.note.words}'; if you are sure that it does not, 'lvmsync migrate"
            f" --abort --force {self._journal.note.words}'"
        )

    def _bring_back(self, error: BaseException) -> None:
        """Make the source writable and start its user, and say in a note of ``error`` what is how now."""
        if not self._may_be_stopped:
            self._enter(state.PASSES, error)
            error.add_note(f"{self._move.source} was never stopped, and runs on")
            return
        if self._journal.note.may_run_there:  # it does not, so nobody need look if this is cut off, or fails
            self._enter(state.SENT, error)
        if bring_back(self._move, error, is_fenced=self._may_be_fenced):
            self._enter(state.PASSES, error, is_fenced=False)
        if self._has_way_back:
            try:
                self._move.drop_way_back()
            except LvmsyncError as kept:
                error.add_note(f"the snapshot for the way back may be left; the next migration removes it ({kept})")

    def _enter(self, step: str, error: BaseException, **facts: bool) -> None:
        """Write a step into the journal; that this failed is a note of ``error``, and stops nothing."""
        try:
            self._journal.enter(step, **facts)
        except LvmsyncError as unwritten:
            error.add_note(str(unwritten))


def bring_back(move: Move, error: BaseException, *, is_fenced: bool) -> bool:
    """Make the source writable and start its user; what came of it is added to ``error`` as notes.

    Returns:
        Whether the source is writable, and nothing is left for a later ``migrate --abort`` to do.
    """
    failure = _unfence(move.unfence) if is_fenced and move.unfence else None
    is_back = failure is None
    if failure:
        error.add_note(f"{move.source} could not be made writable again: {failure}")
    if move.restart is None:
        error.add_note(
            f"the source's user was stopped, and there is no command to start it again: start it yourself,"
            f" {move.source} {'is writable and ' if is_back else ''}has lost nothing"
        )
        return is_back
    if not is_back:
        error.add_note(f"so its user was not started; when it is writable, run: {move.how_to_restart}")
        return False
    try:
        move.restart()
    except BaseException as failed:  # not shielded from signals: a guest that is started would inherit the shield
        why = str(failed) or type(failed).__name__
        error.add_note(f"THE SOURCE MAY BE STOPPED: '{move.how_to_restart}' failed ({why}); run it yourself")
        if not isinstance(failed, LvmsyncError):
            for told in (str(error), *error.__notes__):  # it is this one that people will see
                failed.add_note(told)
            raise failed from error
        return False
    error.add_note(f"the source was started again ({move.how_to_restart}), and has lost nothing")
    return True


def _unfence(unfence: Callable[[], None]) -> LvmsyncError | None:
    """Make the source writable, and return why that failed, if it did.

    A signal to end that comes meanwhile changes nothing: it is the end already, and the source is still to be started.
    """
    failure: LvmsyncError | None = None
    with suppress(BaseException), signals_deferred():
        try:
            unfence()
        except LvmsyncError as failed:
            failure = failed
        except BaseException as failed:
            failure = DeviceError(f"it was called off: {str(failed) or type(failed).__name__}")
            raise
    return failure


def refuse(error: LvmsyncError, *, was_stopped: bool) -> NoReturn:
    """Raise an error about a migration that did not come to its stop, or not to another one."""
    error.add_note(
        "the source runs: it was started again after each stop"
        if was_stopped
        else "the source was never stopped, and runs on"
    )
    raise error


def refuse_leftover(note: state.Note) -> NoReturn:
    """Raise about an earlier migration of the same pair that was cut off in its downtime."""
    raise ConflictError(state.describe(note), device=note.source)
