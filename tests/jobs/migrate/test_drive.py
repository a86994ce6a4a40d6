"""A migration between simulated machines: what is promised is kept, and no failure leaves it stopped unsaid."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import CommandError, ConflictError, DeviceError, LvmsyncError, TransportError, VerifyError
from lvmsync.jobs.migrate import state, unused
from lvmsync.jobs.migrate.drive import migrate
from lvmsync.jobs.migrate.move import Carried, Ended, Move, Options, Outcome, Status
from lvmsync.jobs.migrate.state import Journal, Note, list_cut_off, open_journal
from lvmsync.jobs.progress import Report
from lvmsync.jobs.standing import Standing
from lvmsync.system import ledger
from tests.jobs.migrate.world import World, broken

NOTE = Note("vg/lv", "x" * 64, "far:vg/lv", restart="restart-it")
MIB = 1 << 20


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with open_journal(tmp_path, NOTE) as opened:
        yield opened


def run(move: Move, journal: Journal, options: Options | None = None, told: list[Status] | None = None) -> Outcome:
    return migrate(move, options or Options(5.0, stop_seconds=0.1, start_seconds=0.1), journal, (told or []).append)


def notes(error: BaseException) -> str:
    return "; ".join(getattr(error, "__notes__", ()))


def test_it_comes_down_to_the_downtime_that_is_allowed(journal: Journal, tmp_path: Path) -> None:
    world, told = World(), [Status("x", 0)]
    outcome = run(world.move(), journal, told=told)
    assert world.runs_there
    assert not world.runs_here
    assert not world.is_writable
    assert outcome.downtime == pytest.approx(world.started_at - world.stopped_at)
    assert outcome.downtime <= 5.0
    assert 0.5 <= outcome.predicted_downtime / outcome.downtime <= 2
    assert outcome.way_back == "vg/back"
    assert outcome.bytes == sum(int(one["bytes"] or 0) for one in outcome.passes)
    assert outcome.notes == [f"finished after {outcome.downtime:.0f} s"]
    assert list_cut_off(tmp_path) == []
    assert any("predicted downtime" in one.words for one in told)


@pytest.mark.parametrize("dirty", [0.0, 1 * MIB, 10 * MIB, 30 * MIB])
@pytest.mark.parametrize("working_set", [20 * MIB, 200 * MIB])
@pytest.mark.parametrize("stop", [0.1, 2.0])
def test_the_prediction_holds_for_a_steady_writer(
    journal: Journal, dirty: float, working_set: float, stop: float
) -> None:
    world = World(dirty_rate=dirty, working_set=working_set, costs={"snapshot": 0.4, "stop": stop, "start": 0.3})
    outcome = run(world.move(), journal, Options(15.0, stop_seconds=stop, start_seconds=0.3))
    assert 0.5 <= outcome.predicted_downtime / outcome.downtime <= 2
    assert outcome.downtime <= 15.0


def test_it_says_that_it_does_not_converge_and_touches_nothing(journal: Journal, tmp_path: Path) -> None:
    world = World(dirty_rate=60 * MIB, working_set=5000 * MIB)
    with pytest.raises(DeviceError, match=r"60\.0 MiB/s change and 50\.0 MiB/s can be sent") as caught:
        run(world.move(), journal)
    assert "never stopped" in notes(caught.value)
    assert world.runs_here
    assert "stop" not in world.done
    assert list_cut_off(tmp_path) == []


@pytest.mark.parametrize("word", ["go", "ask"])
def test_it_stops_all_the_same_if_it_is_told_to(journal: Journal, word: str) -> None:
    world, asked = World(dirty_rate=60 * MIB), []

    def ask(reason: str) -> bool:
        asked.append(reason)
        return True

    outcome = run(world.move(), journal, Options(5.0, on_no_convergence=word, ask=ask))
    assert world.runs_there
    assert outcome.downtime > 5
    assert "restart" not in world.done  # the limit was waived
    assert 0.5 <= outcome.predicted_downtime / outcome.downtime <= 2
    assert bool(asked) == (word == "ask")
    assert "downtime would be too long" in outcome.notes[0]


def test_the_whole_target_is_compared_before_the_stop_and_the_changes_after(journal: Journal) -> None:
    world = World(costs={"verify whole": 30.0})
    outcome = run(world.move(verify=True), journal)
    done = world.done
    assert done.count("verify whole") == 1
    assert "pass" in done[done.index("verify whole") : done.index("stop")]
    assert done.index("verify last") > done.index("stop")
    assert outcome.verified == "whole"
    assert outcome.downtime <= 5


@pytest.mark.parametrize("step", ["snapshot", "map", "send", "commit", "prepare"])
def test_a_failure_before_the_stop_touches_nothing(journal: Journal, tmp_path: Path, step: str) -> None:
    world = World(fails={step: broken()})
    with pytest.raises(DeviceError, match="it broke") as caught:
        run(world.move(), journal)
    assert "never stopped" in notes(caught.value)
    assert world.runs_here
    assert "stop" not in world.done
    assert list_cut_off(tmp_path) == []


class FailsAfterStop(World):
    """Fails in a step of the last pass only."""

    step = ""

    def do(self, step: str) -> None:
        self.fails = {self.step: broken()} if self.stopped_at else {}
        super().do(step)


@pytest.mark.parametrize(
    "step", ["stop", "fence", "snapshot", "map", "send", "commit", "verify last", "back", "find_user"]
)
@pytest.mark.parametrize("can_restart", [True, False])
def test_a_failure_after_the_stop_brings_the_source_back_or_says_that_it_is_stopped(
    journal: Journal, tmp_path: Path, step: str, can_restart: bool
) -> None:
    world = FailsAfterStop()
    world.step = step
    world.user = "pid 7" if step == "find_user" else None
    with pytest.raises(DeviceError, match="still in use" if world.user else "it broke") as caught:
        run(world.move(can_restart=can_restart, verify=True), journal)
    assert world.is_writable
    assert not world.runs_there
    assert "start" not in world.done
    assert world.runs_here or not can_restart
    words = "started again (restart-it), and has lost nothing" if can_restart else "start it yourself"
    assert words in notes(caught.value)
    assert list_cut_off(tmp_path) == []


def test_a_start_that_failed_lets_the_source_run_again(journal: Journal) -> None:
    world = World(start_ends=Ended(3, "no such guest"))
    with pytest.raises(CommandError, match="status 3: no such guest") as caught:
        run(world.move(), journal)
    assert world.runs_here
    assert world.is_writable
    assert "the source was started again" in notes(caught.value)


def test_a_start_that_failed_after_it_had_begun_to_use_the_target_starts_nothing_else(journal: Journal) -> None:
    for fails, words in (
        ({}, "far:vg/lv: it is mounted"),
        ({"look there": TransportError("the line is dead")}, "its machine cannot be asked: the line is dead"),
        ({"look there": KeyboardInterrupt()}, "the target may be in use now"),
    ):
        world = World(start_ends=Ended(1, "no database"), target_use="it is mounted", fails=dict(fails))
        with pytest.raises((CommandError, KeyboardInterrupt)) as caught:
            run(world.move(), journal)
        assert not world.runs_here
        assert not world.is_writable
        assert "restart" not in world.done
        assert "drop" not in world.done
        assert words in notes(caught.value)
        assert "--finish vg/lv far:vg/lv" in notes(caught.value)
        assert journal.note.step == state.STARTING


def test_the_way_back_of_a_migration_that_failed_is_not_kept(journal: Journal) -> None:
    world = World(start_ends=Ended(3, "no such guest"))
    with pytest.raises(CommandError) as caught:
        run(world.move(), journal)
    assert world.done[-1] == "drop"
    assert world.done.index("restart") < world.done.index("drop")
    world = World(start_ends=Ended(3), fails={"drop": broken("the line is dead")})
    with pytest.raises(CommandError) as caught:
        run(world.move(), journal)
    assert "may be left; the next migration removes it (the line is dead)" in notes(caught.value)


def test_a_use_of_the_target_that_passes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused, "_PAUSE", 0)
    base = Standing("vg/lv", "1", "now", exists=True, written="no")
    looks = [replace(base, in_use="udev"), base]
    assert unused.find_use(lambda: looks.pop(0)) is None
    assert unused.find_use(lambda: replace(base, in_use="mounted")) == "mounted"
    assert unused.find_use(lambda: replace(base, written="yes")) == "it was written to"
    assert unused.find_use(lambda: replace(base, written="unknown")) is None


@pytest.mark.parametrize("is_raised", [True, False])
def test_a_start_that_may_have_happened_starts_nothing_else(journal: Journal, tmp_path: Path, is_raised: bool) -> None:
    world = World(start_ends=Ended(None, "line cut"))
    if is_raised:
        world.fails = {"start": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt if is_raised else TransportError) as caught:
        run(world.move(), journal)
    assert not world.runs_here
    assert not world.is_writable
    assert "restart" not in world.done
    assert "--finish vg/lv far:vg/lv" in notes(caught.value)
    assert journal.note.step == state.STARTING
    assert list(tmp_path.glob("migrations/*/journal.json"))


def test_a_start_that_was_certainly_not_begun_lets_the_source_run_again(journal: Journal) -> None:
    world = World(fails={"start": TransportError("the line died while it waited")})
    with pytest.raises(TransportError) as caught:
        run(world.move(), journal)
    assert world.runs_here
    assert "the source was started again" in notes(caught.value)


def test_a_source_that_is_written_to_after_its_stop_is_no_success(journal: Journal) -> None:
    class Busy(World):
        def run_pass(self, report: Report) -> Carried:
            self.writes += 1
            return super().run_pass(report)

    world = Busy()
    with pytest.raises(VerifyError, match="written to after the stop command had returned"):
        run(world.move(), journal)
    assert world.runs_here
    assert "start" not in world.done


def test_a_restart_that_fails_is_said_loudly_and_stays_in_the_journal(journal: Journal) -> None:
    world = World(fails={"fence": broken(), "restart": broken("no power")})
    with pytest.raises(DeviceError) as caught:
        run(world.move(), journal)
    assert "MAY BE STOPPED: 'restart-it' failed (no power)" in notes(caught.value)
    assert journal.note.step == state.FENCED


def test_nobody_need_look_at_a_target_whose_start_is_known_to_have_failed(journal: Journal) -> None:
    world = World(fails={"start": CommandError("no"), "restart": broken("no power")})
    with pytest.raises(CommandError) as caught:
        run(world.move(), journal)
    assert "MAY BE STOPPED: 'restart-it' failed (no power)" in notes(caught.value)
    assert journal.note.step == state.SENT
    assert not journal.note.may_run_there


def test_a_source_that_stays_read_only_is_not_started(journal: Journal) -> None:
    world = World(fails={"back": broken(), "unfence": broken("no lvm")})
    with pytest.raises(DeviceError) as caught:
        run(world.move(), journal)
    assert "could not be made writable again: no lvm" in notes(caught.value)
    assert "restart" not in world.done
    assert journal.note.is_fenced


def test_without_a_start_command_the_downtime_ends_when_the_target_is_whole(journal: Journal) -> None:
    world = World()
    outcome = run(world.move(start=False), journal)
    assert not world.runs_there
    assert world.is_current
    assert "start" not in outcome.parts


def slow_once(number: int) -> float:
    """The rate of each pass: the first last pass meets a line that has become slow."""
    return 1 * MIB if number == 3 else 50 * MIB


def test_a_downtime_that_would_be_too_long_is_ended_and_tried_again(journal: Journal) -> None:
    world = World(rate_of=slow_once)
    outcome = run(world.move(), journal)
    assert world.done.count("restart") == 1
    assert outcome.restarts == 1
    assert world.runs_there
    assert outcome.downtime <= 5
    assert any("was started again, and more passes were made" in note for note in outcome.notes)


def test_a_stop_command_that_takes_all_the_time_is_ended_before_the_pass_and_counts_the_next_time(
    journal: Journal,
) -> None:
    world = World(costs={"stop": 20.0})
    with pytest.raises(LvmsyncError) as caught:
        run(world.move(), journal, Options(5.0))
    assert world.runs_here
    assert world.done.count("stop") == 1  # what it takes is known then, and does not fit
    assert "cannot be stopped for 5 s only" in str(caught.value)


def test_what_a_stop_flushes_counts_the_next_time(journal: Journal) -> None:
    class Flushing(World):
        def stop(self) -> None:
            super().stop()
            self.dirty += 400 * MIB

    world = Flushing()
    with pytest.raises(LvmsyncError, match="cannot be stopped for 5 s only"):
        run(world.move(), journal, Options(5.0, stop_seconds=0.1))
    assert world.runs_here
    assert world.done.count("stop") == 1

    world = Flushing()
    outcome = run(world.move(), journal, Options(14.0, stop_seconds=0.1, on_overrun="go"))
    assert outcome.downtime <= 14


def test_it_is_finished_late_if_that_is_wanted_or_nothing_can_start_the_source(journal: Journal) -> None:
    for move, options in (
        (World(rate_of=slow_once).move(), Options(5.0, on_overrun="go")),
        (World(rate_of=slow_once).move(can_restart=False), Options(5.0)),
    ):
        outcome = run(move, journal, options)
        assert outcome.downtime > 5
        assert f"the downtime was {outcome.downtime:.1f} s, and 5 s were allowed" in outcome.notes


def test_it_is_not_stopped_more_often_than_allowed(journal: Journal) -> None:
    class Erratic(World):
        def run_pass(self, report: Report) -> Carried:
            self.rate = 50 * MIB if self.runs_here else MIB / 4
            return super().run_pass(report)

    world = Erratic()
    with pytest.raises(DeviceError, match="the downtime would come to") as caught:
        run(world.move(), journal, Options(5.0, max_stops=2))
    assert world.done.count("stop") == 2
    assert world.runs_here
    assert "stopped 2 times" in notes(caught.value)


def test_a_last_pass_that_only_finished_an_earlier_one_is_no_success(journal: Journal) -> None:
    class Stale(World):
        def run_pass(self, report: Report) -> Carried:
            carried = super().run_pass(report)
            return carried if self.runs_here else Carried(carried.receipt, "resume", carried.seconds, None)

    world = Stale()
    with pytest.raises(VerifyError, match="from before the stop"):
        run(world.move(), journal)
    assert world.runs_here


def test_what_an_earlier_migration_left_stopped_is_told_first(tmp_path: Path) -> None:
    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(state.FENCED, is_fenced=True)
    world = World()
    with open_journal(tmp_path, NOTE) as journal, pytest.raises(ConflictError, match="--abort vg/lv far:vg/lv"):
        run(world.move(), journal)
    assert world.done == []
    assert [one.step for one in list_cut_off(tmp_path)] == [state.FENCED]


def test_what_is_left_on_the_source_is_a_note_when_the_target_runs(journal: Journal) -> None:
    world = World(fails={"finish": broken("a snapshot is in use")})
    outcome = run(world.move(), journal)
    assert "something is left: a snapshot is in use" in outcome.notes[-1]


def test_an_interrupt_while_the_source_is_made_writable_leaves_it_running(journal: Journal) -> None:
    world = World(fails={"back": broken()})

    def unfence() -> None:
        signal.raise_signal(signal.SIGINT)
        world.unfence()

    with pytest.raises(DeviceError, match="it broke") as caught:
        run(replace(world.move(), unfence=unfence), journal)
    assert "the source was started again" in notes(caught.value)
    assert world.runs_here
    assert world.is_writable


def test_an_interrupt_while_the_source_is_started_again_tells_why_it_was(journal: Journal) -> None:
    world = World(fails={"back": broken(), "restart": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt) as caught:
        run(world.move(), journal)
    assert notes(caught.value).startswith("it broke")
    assert "THE SOURCE MAY BE STOPPED: 'restart-it' failed (KeyboardInterrupt)" in notes(caught.value)


class FullDisk:
    """Fails to write the journal when that says one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        self._step, self._write = step, ledger.replace_file
        monkeypatch.setattr(state, "replace_file", self.write)

    def write(self, path: Path, text: str) -> None:
        if f'"step": "{self._step}"' in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._write(path, text)


def test_what_was_never_stopped_is_not_started_again(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    FullDisk(monkeypatch, state.STOPPING)
    with pytest.raises(DeviceError, match="No space left") as caught:
        run(world.move(), journal)
    assert "vg/lv was never stopped, and runs on" in notes(caught.value)
    assert not {"stop", "restart"} & set(world.done)
    assert list_cut_off(tmp_path) == []


def test_a_journal_that_cannot_be_written_any_more_is_a_note_when_the_target_runs(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    FullDisk(monkeypatch, state.STARTED)
    outcome = run(world.move(), journal)
    assert world.runs_there
    assert "finish" in world.done
    assert any("the target runs, but: cannot write the migration's journal" in note for note in outcome.notes)
