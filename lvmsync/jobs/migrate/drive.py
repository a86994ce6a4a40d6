"""The whole of a migration: passes, the check, the cut-over, and again from the passes if that took too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lvmsync.errors import DeviceError, LvmsyncError
from lvmsync.jobs.migrate import state
from lvmsync.jobs.migrate.cutover import Budget, CutOver, refuse, refuse_leftover
from lvmsync.jobs.migrate.move import Carried, Cut, Move, Options, Outcome, Status, Tell
from lvmsync.jobs.migrate.passes import Limits, Step, Taken, next_step
from lvmsync.jobs.migrate.predict import AFTER, Around, Pass, Prediction, predict
from lvmsync.jobs.progress import Progress

_FENCE = 0.5  # of the seconds that making a head the base takes, which is two commands of LVM: the fence is one


def migrate(move: Move, options: Options, journal: state.Journal, tell: Tell) -> Outcome:
    """Move a volume that is in use, and return what was done. The journal is removed when it is over.

    Raises:
        ConflictError: an earlier try was cut off in its downtime.
        DeviceError: the passes do not bring the downtime down.
        LvmsyncError: a step failed; its notes say what is left where.
    """
    if journal.before and journal.before.has_stopped:
        refuse_leftover(journal.before)
    migration = _Migration(move, options, journal, tell)
    journal.enter(state.PASSES)
    try:
        cut = migration.run()
        try:
            journal.enter(state.STARTED, downtime=round(cut.downtime, 3))
        except LvmsyncError as error:
            migration.add_note(f"the target runs, but: {error}")
        outcome = migration.finish(cut)
    except BaseException:
        if journal.note.step == state.PASSES:
            journal.close()  # the source runs: there is nothing to tell
        raise
    try:
        journal.close()
    except LvmsyncError as error:
        words = f"lvmsync migrate --finish {journal.note.words}"
        outcome.notes.append(f"all is done, but the journal is left ({error}); when that is mended, run '{words}'")
    return outcome


class _Migration:
    """What is known while a migration runs."""

    def __init__(self, move: Move, options: Options, journal: state.Journal, tell: Tell) -> None:
        self._move = move
        self._options = options
        self._journal = journal
        self._tell = tell
        self._began = move.clock()
        self._taken: list[Taken] = []  # since the last stop
        self._told: list[dict[str, float | int | str | None]] = []  # of all passes
        self._bytes = self._wire_bytes = 0
        self._head_time: float | None = None
        self._prediction: Prediction | None = None
        self._back_seconds = 0.0
        self._verify_byte = 0.0
        self._is_verified = False
        self._is_fresh = False
        self._stops = 0
        self._stop_seconds = options.stop_seconds
        self._flushed = 0
        self._size = 0
        self._point: str | None = None
        self._notes: list[str] = []

    def add_note(self, note: str) -> None:
        """Take down something that the user should know when all is over."""
        self._notes.append(note)

    def run(self) -> Cut:
        """Make passes until the source can be stopped, and stop it; again if that would take too long."""
        while True:
            try:
                prediction = self._come_near()
                self._back_seconds = self._move.prepare()
                prediction = self._predict() or prediction
            except LvmsyncError as error:
                refuse(error, was_stopped=self._stops > 0)
            cut = self._stop(prediction)
            if cut:
                return cut

    def _come_near(self) -> Prediction:
        """Make passes until the source is to be stopped."""
        options = self._options
        limits = Limits(options.max_downtime, options.max_passes, self._move.verify_whole is not None)
        while True:
            self._prediction = self._predict()
            decision = next_step(
                self._taken, self._prediction, limits, is_verified=self._is_verified, is_fresh=self._is_fresh
            )
            self._say(decision.step.value, decision.reason)
            match decision.step:
                case Step.PASS:
                    self._make_pass()
                case Step.VERIFY:
                    self._verify()
                case Step.STUCK:
                    self._require_consent(decision.reason)
                    break
                case Step.STOP:
                    break
        assert self._prediction
        return self._prediction

    def _require_consent(self, reason: str) -> None:
        """Go on though the downtime will be too long, if that is what the user says."""
        options = self._options
        if options.on_no_convergence == "go" or (options.on_no_convergence == "ask" and options.ask(reason)):
            self._notes.append(f"stopped although the downtime would be too long: {reason}")
            # What was allowed is waived: the cut-over is not to end itself because of it.
            self._options = replace(options, on_overrun="go")
            return
        raise DeviceError(
            f"{self._move.source} cannot be stopped for {options.max_downtime:g} s only: {reason}; the copy and the"
            " snapshots are kept for another try: allow more with --max-downtime, wait for a quieter hour, or stop it"
            " all the same with --on-no-convergence go",
            device=self._move.source,
        )

    def _make_pass(self) -> None:
        move = self._move
        began = move.clock()
        carried = move.run_pass(lambda progress: self._say(progress.phase, progress=progress))
        self._note_pass(carried, move.clock() - began)
        self._is_fresh = True
        self._prediction = self._predict()
        downtime = None
        if self._taken[-1].measured.interval is not None and self._prediction:
            downtime = self._prediction.downtime
        self._taken[-1] = replace(self._taken[-1], downtime=downtime)
        self._told[-1]["predicted_downtime"] = None if downtime is None else round(downtime, 3)

    def _note_pass(self, carried: Carried, wall: float) -> None:
        """Take a pass into the books; whatever it did besides its phases counts as one of them."""
        interval = None
        if carried.head_time is not None and self._head_time is not None and carried.kind != "resume":
            interval = carried.head_time - self._head_time
        seconds = dict(carried.seconds)
        seconds["other"] = max(0.0, wall - sum(seconds.values()))
        measured = Pass(carried.receipt.bytes, seconds, interval, carried.receipt.wire_bytes)
        self._head_time = carried.head_time
        self._taken.append(Taken(measured))
        self._bytes += carried.receipt.bytes
        self._wire_bytes += carried.receipt.wire_bytes or 0
        self._point = carried.receipt.point
        self._size = carried.receipt.size or 0
        for note in carried.receipt.notes:
            if note not in self._notes:
                self._notes.append(note)
        self._told.append(
            {
                "kind": carried.kind,
                "bytes": carried.receipt.bytes,
                "wire_bytes": carried.receipt.wire_bytes,
                "seconds": round(wall, 3),
                **{f"{phase}_seconds": round(value, 3) for phase, value in seconds.items()},
                "interval": None if interval is None else round(interval, 3),
                "predicted_downtime": None,
            }
        )

    def _verify(self) -> None:
        assert self._move.verify_whole
        began = self._move.clock()
        self._move.verify_whole(lambda progress: self._say("verifying", progress=progress))
        # Taken for twice as long for each byte of the changes: those are read in pieces.
        self._verify_byte = 2 * (self._move.clock() - began) / self._size if self._size else 0.0
        self._is_verified = True
        self._is_fresh = False

    def _predict(self) -> Prediction | None:
        """Return what the downtime would be now; None before the first pass."""
        if not self._taken:
            return None
        options, move = self._options, self._move
        passes = [one.measured for one in self._taken]
        around = Around(
            stop=self._stop_seconds or 0.0,
            fence=_FENCE * passes[-1].seconds.get(AFTER, 0.0) if options.fence and move.fence else 0.0,
            back=self._back_seconds,
            start=options.start_seconds or 0.0,
            verify_byte=self._verify_byte,
            flushed=self._flushed,
        )
        age = move.clock() - self._head_time if self._head_time is not None else 0.0
        return predict(passes, around, age, move.known_dirty())

    def _stop(self, prediction: Prediction) -> Cut | None:
        """Cut over; None if that would have taken too long, and the source runs again."""
        move, options = self._move, self._options
        self._stops += 1
        self._say("stop", f"stopping {move.source}; {self._in_words(prediction)}")
        may_restart = options.on_overrun == "restart" and move.restart is not None
        budget = Budget(move, prediction, move.clock(), options.max_downtime, may_restart)
        tick: Callable[[str, Progress | None], None] = lambda step, progress: self._say(step, progress=progress)  # noqa: E731
        cut_over = CutOver(move, options, self._journal, budget, tick)
        try:
            cut = cut_over.run()
        except DeviceError as error:
            if not budget.is_spent or self._journal.note.step != state.PASSES or self._stops >= options.max_stops:
                if budget.is_spent:
                    error.add_note(f"it was stopped {self._stops} times; give it more with --max-downtime")
                raise
            self._notes.append(f"{error}; {move.source} was started again, and more passes were made")
            self._say("restart", self._notes[-1])
            self._stop_seconds = cut_over.parts.get("stop", self._stop_seconds)
            if budget.pass_bytes is not None:
                self._flushed = max(0, self._flushed + budget.pass_bytes - prediction.last_bytes)
            # What was measured before is not what happened: begin to count anew.
            self._taken = [Taken(replace(self._taken[-1].measured, interval=None))]
            self._head_time, self._is_fresh = None, False
            return None
        self._note_pass(cut.carried, cut.parts["pass"])
        self._told[-1]["predicted_downtime"] = round(prediction.downtime, 3)
        self._prediction = prediction
        return cut

    def finish(self, cut: Cut) -> Outcome:
        """Tidy up behind a cut-over that is done, and return what was done; what cannot be tidied is a note."""
        move, prediction = self._move, self._prediction
        assert prediction
        try:
            self._notes += move.finish(cut)
        except LvmsyncError as error:
            self._notes.append(f"the target is in order, but on the source's side something is left: {error}")
        if cut.downtime > self._options.max_downtime:
            self._notes.append(
                f"the downtime was {cut.downtime:.1f} s, and {self._options.max_downtime:g} s were allowed"
            )
        verified = "whole" if self._is_verified else "changes" if move.verify_last else "nothing"
        return Outcome(
            source=move.source,
            target=move.target,
            seconds=round(move.clock() - self._began, 3),
            max_downtime=self._options.max_downtime,
            predicted_downtime=round(prediction.downtime, 3),
            downtime=round(cut.downtime, 3),
            prediction=prediction.as_dict(),
            parts=cut.parts,
            passes=self._told,
            bytes=self._bytes,
            wire_bytes=self._wire_bytes,
            restarts=self._stops - 1,
            verified=verified,
            way_back=cut.way_back,
            point=self._point,
            notes=self._notes,
        )

    def _in_words(self, prediction: Prediction) -> str:
        """Return the prediction for people, with what it takes for granted."""
        parts = {
            "stop": prediction.stop, "fence": prediction.fence, "snapshot, map and commit": prediction.pass_fixed,
            "data": prediction.send, "verify": prediction.verify, "way back": prediction.back,
            "start": prediction.start,
        }  # fmt: skip
        shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items() if seconds >= 0.05)
        given = {"--stop-time": self._stop_seconds, "--start-time": self._options.start_seconds}
        unknown = [name for name, seconds in given.items() if seconds is None]
        granted = f"; what the commands take is not counted ({', '.join(unknown)} tell it)" if unknown else ""
        return f"predicted downtime {prediction.downtime:.1f} s ({shown}){granted}"

    def _say(self, step: str, words: str = "", progress: Progress | None = None) -> None:
        """Tell whoever watches."""
        prediction = self._prediction
        store, pool = self._move.fill()
        self._tell(
            Status(
                step=step,
                pass_number=len(self._told) + 1,
                done=progress.done if progress else 0,
                total=progress.total if progress else None,
                rate=prediction.rate if prediction else None,
                dirty_rate=prediction.dirty_rate if prediction else None,
                predicted=prediction.downtime if prediction else None,
                max_downtime=self._options.max_downtime,
                store_fill=store,
                pool_fill=pool,
                words=words,
            )
        )
