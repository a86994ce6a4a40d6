"""Runs of a timer: one at a time, remembered whatever ends them, measured also when they fail."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_prometheus

from lvmsync.chain.catalogue import Catalogue
from lvmsync.chain.pruning import plan_pruning
from lvmsync.errors import ConflictError, DeviceError, FormatError, TransportError
from lvmsync.jobs.archive.overdue import is_overdue
from lvmsync.jobs.archive.prune import Pruned, prune
from lvmsync.jobs.archive.run import Done, Work, run
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.status import (
    RunRecord,
    Task,
    TaskState,
    TimerNote,
    list_tasks,
    lock_task,
    read_task,
    task_folder,
    write_json,
)
from lvmsync.jobs.archive.take import take
from lvmsync.jobs.doctor.archives import check_runs
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.names import parse_source
from lvmsync.places import parse_place
from lvmsync.stores.folder import FolderStore
from tests.archive_history import History

read_openmetrics: Any = openmetrics.text_string_to_metric_families
NOW = datetime(2026, 5, 1, tzinfo=UTC)


class World:
    """A device with a history, and an archive that it is taken into, point by point."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.history = History.make(3, 4, 64 << 10, may_resize=False)
        self.shelf = Shelf.init(FolderStore(folder / "archive"))
        self.task = Task(str(folder / "archive"), "vg/lv")
        self.metrics = folder / "metrics.prom"
        self.number = 0
        self.lag: int | None = None

    def take(self) -> Receipt:
        source = self.history.full(0) if self.number == 0 else self.history.delta(self.number)
        self.number += 1
        return take(self._open(), source, StreamOptions(level=1), ignore)

    def prune(self) -> Pruned:
        shelf = self._open()
        plan = plan_pruning(shelf.catalogue, [shelf.catalogue.points[-1].id])
        return prune(shelf, plan, StreamOptions(), ignore)

    def look(self) -> Catalogue:
        return self._open().catalogue

    def _open(self) -> Shelf:
        return Shelf.open(self.shelf.store)

    def run(self, *, state: Path | None = None, **changes: Any) -> Done:
        given = {key: changes.pop(key) for key in ("jitter", "sleep", "chance", "metrics") if key in changes}
        work = replace(Work(self.take, None, self.look, lambda _: self.lag), **changes)
        return run(state or self.state, self.task, work, **{"metrics": self.metrics, **given})

    @property
    def known(self) -> TaskState:
        (found,) = [one for one in list_tasks(self.state, self.task.archive) if one.task == self.task]
        return found

    @property
    def record(self) -> RunRecord:
        assert self.known.record
        return self.known.record

    def measured(self) -> dict[str, float]:
        """Return what both parsers find in the file, without the beginning of the names."""
        text = self.metrics.read_text()
        found = {}
        for read in (read_openmetrics, read_prometheus):
            families = [sample for family in read(text) for sample in family.samples]
            assert all(one.labels == {"archive": self.task.archive, "source": "vg/lv"} for one in families)
            found = {one.name.removeprefix("lvmsync_archive_"): one.value for one in families}
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def failing(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def test_a_run_takes_then_prunes_and_is_remembered_and_measured(world: World) -> None:
    assert list_tasks(world.state, world.task.archive) == []
    first = world.run(metrics=None)
    assert not world.metrics.exists()
    assert first.pruned is None
    assert world.record == first.record
    world.lag = 4096
    before = datetime.now(UTC).timestamp()
    done = world.run(prune=world.prune)
    assert done.pruned
    assert done.pruned.dropped == [1]
    record = world.record
    assert (record.status, record.line, record.failed, record.points) == (0, None, None, 1)
    assert record.bytes == done.receipt.bytes > 0
    assert record.succeeded == record.ended is not None
    measured = world.measured()
    assert measured["last_status"] == 0
    assert measured["points"] == 1
    assert measured["stored_bytes"] == sum(one.stored + one.index_stored for one in world.look().members)
    assert measured["last_taken_bytes"] == done.receipt.bytes
    assert measured["lag_bytes"] == 4096
    assert int(before) <= measured["last_run_timestamp_seconds"] <= measured["last_success_timestamp_seconds"]
    point = datetime.fromisoformat(world.look().points[-1].time or "").timestamp()
    assert measured["newest_point_timestamp_seconds"] == point
    assert measured["lag_seconds"] >= before - point
    assert "last_failure_timestamp_seconds" not in measured
    assert stat.S_IMODE(world.metrics.stat().st_mode) == 0o644
    assert list(check_runs(world.state, NOW)) == []


def test_a_take_that_fails_is_not_followed_by_a_prune_and_the_last_success_is_kept(world: World) -> None:
    good = world.run(metrics=world.metrics).record
    error = DeviceError("no such\ndevice \x1b[31m")
    with pytest.raises(DeviceError) as raised:
        world.run(take=failing(error), prune=failing(AssertionError()))
    assert raised.value is error
    record = world.record
    assert (record.status, record.line) == (3, "no such device ?[31m")
    assert (record.failed, record.failed_status, record.failed_line) == (record.ended, 3, record.line)
    assert record.succeeded == good.succeeded
    measured = world.measured()
    assert measured["last_status"] == 3
    assert measured["last_taken_bytes"] == 0
    assert measured["last_success_timestamp_seconds"] == datetime.fromisoformat(good.succeeded or "").timestamp()
    assert measured["last_failure_timestamp_seconds"] >= measured["last_success_timestamp_seconds"]
    assert measured["points"] == 1
    (found,) = check_runs(world.state, NOW)
    assert (found.kind, found.what) == ("archive", f"vg/lv into {world.task.archive}")
    assert "FAILED" in found.problem
    assert "status 3: no such device" in found.problem
    assert f"lvmsync archive run {world.task.archive} vg/lv" in found.remedy
    world.run()  # the next good one: the failure is history
    assert (world.record.status, world.record.failed_line) == (0, record.line)
    assert list(check_runs(world.state, NOW)) == []


def test_a_prune_that_fails_fails_the_run_though_the_point_was_taken(world: World) -> None:
    with pytest.raises(ConflictError):
        world.run(prune=failing(ConflictError("somebody else")))
    assert (world.record.status, world.record.points) == (8, 1)
    assert world.record.bytes > 0
    assert world.measured()["last_status"] == 8


def test_an_archive_that_is_out_of_reach_leaves_the_numbers_that_were_seen_last(world: World) -> None:
    world.run()
    looked = []
    with pytest.raises(TransportError):
        world.run(take=failing(TransportError("no line")), look=lambda: looked.append(1))
    assert not looked  # it would wait for the line once more
    with pytest.raises(DeviceError):
        world.run(take=failing(DeviceError("gone")), look=failing(DeviceError("gone")))
    assert world.measured()["points"] == 1
    world.run(look=failing(DeviceError("gone")))  # after a good one, too
    assert (world.record.status, world.record.points) == (0, 1)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("a bug"), 1), (MemoryError(), 3), (BrokenPipeError(), 7), (KeyboardInterrupt("interrupted"), 130)],
)
def test_whatever_ends_a_run_is_remembered_with_its_status(world: World, error: BaseException, status: int) -> None:
    with pytest.raises(type(error)):
        world.run(take=failing(error))
    assert world.record.status == status
    assert world.record.line == (str(error) or type(error).__name__)
    assert world.measured()["last_status"] == status


def test_of_two_runs_of_one_task_the_second_does_nothing(world: World) -> None:
    began = threading.Event()
    goes_on = threading.Event()

    def slow() -> Receipt:
        began.set()
        assert goes_on.wait(60)
        return world.take()

    thread = threading.Thread(target=lambda: world.run(take=slow))
    thread.start()
    try:
        assert began.wait(60)
        assert world.known.is_running
        assert not world.known.is_cut_off
        before = world.record
        with pytest.raises(ConflictError, match=r"another run takes vg/lv into .* just now: nothing was done"):
            world.run(take=failing(AssertionError()))
        assert world.record == before
        assert list(check_runs(world.state, NOW)) == []
        other = replace_task(world, "vg/other")
        assert run(world.state, other, Work(world.take, None, world.look, lambda _: None)).record.status == 0
    finally:
        goes_on.set()
        thread.join()
    assert world.record.status == 0


def replace_task(world: World, source: str) -> Task:
    return replace(world.task, source=source)


def test_two_hosts_have_a_lock_and_a_record_each(world: World) -> None:
    with lock_task(world.state, world.task):
        done = world.run(state=world.folder / "other")
    assert done.record.status == 0
    assert list_tasks(world.state, world.task.archive) == []
    world.run()
    assert world.record.points == 2


def test_a_run_that_is_killed_is_found_and_told_by_the_next_one(world: World) -> None:
    world.run()
    before = world.measured()
    pid = os.fork()
    if not pid:
        world.run(take=lambda: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert world.known.is_cut_off
    (found,) = check_runs(world.state, NOW)
    assert "was cut off" in found.problem
    assert world.measured() == before  # an alert on the age of the last success tells
    cut = world.record
    done = world.run()
    assert done.record.failed == cut.began
    assert done.record.failed_line == f"the run that began {cut.began} was cut off: killed, or the machine went down"
    assert list(check_runs(world.state, NOW)) == []


def test_a_run_waits_a_random_time_and_holds_no_lock_meanwhile(world: World) -> None:
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        with lock_task(world.state, world.task):
            pass

    def ended(_: float) -> None:
        raise KeyboardInterrupt("ended by SIGTERM")

    world.run(jitter=200, sleep=sleep, chance=lambda: 0.25)
    assert waits == [50]
    world.run(sleep=sleep)
    assert waits == [50]
    with pytest.raises(KeyboardInterrupt):
        world.run(
            jitter=9, sleep=lambda _: failing(KeyboardInterrupt("ended by SIGTERM"))(), take=failing(ValueError())
        )
    assert (world.record.status, world.record.line) == (130, "ended by SIGTERM")
    assert world.measured()["last_status"] == 130
    before = world.record
    with lock_task(world.state, world.task), pytest.raises(KeyboardInterrupt):
        world.run(jitter=9, sleep=ended)
    assert world.record == before


def test_a_run_that_is_ended_while_it_waits_ends_as_that_whatever_else_is_wrong(world: World) -> None:
    world.state.write_text("no folder")

    def ended(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        world.run(jitter=9, sleep=ended)
    assert "cannot use the state folder" in raised.value.__notes__[0]
    with pytest.raises(DeviceError, match="cannot use the state folder"):
        world.run()
    assert world.number == 0


def test_metrics_that_cannot_be_written_fail_the_run_but_not_what_it_took(world: World) -> None:
    gone = world.folder / "gone" / "x.prom"
    with pytest.raises(DeviceError, match="cannot write the metrics"):
        world.run(metrics=gone)
    assert (world.record.status, world.record.points) == (3, 1)
    assert world.record.succeeded
    with pytest.raises(ValueError, match="a bug") as raised:
        world.run(take=failing(ValueError("a bug")), metrics=gone)
    assert "cannot write the metrics" in raised.value.__notes__[0]
    assert (world.record.status, world.record.line) == (1, "a bug")


def test_a_file_of_something_else_is_not_overwritten(world: World) -> None:
    world.metrics.write_text("precious\n")
    with pytest.raises(DeviceError, match="no file of our metrics"):
        world.run()
    assert world.metrics.read_text() == "precious\n"
    world.metrics.unlink()
    world.run()
    with pytest.raises(DeviceError, match="another archive or source"):
        run(
            world.state, replace_task(world, "vg/x"), Work(world.take, None, world.look, lambda _: None),
            metrics=world.metrics,
        )  # fmt: skip
    assert world.measured()["last_status"] == 0


def test_in_a_folder_each_task_has_a_file_of_its_own(world: World) -> None:
    folder = world.folder / "collector"
    folder.mkdir()
    world.run(metrics=folder)
    run(world.state, replace_task(world, "vg/x"), Work(world.take, None, world.look, lambda _: None), metrics=folder)
    world.run(metrics=folder)
    assert len(list(folder.iterdir())) == 2
    assert {path.suffix for path in folder.iterdir()} == {".prom"}


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_others_may_read_the_metrics_whatever_the_umask(world: World, umask: int) -> None:
    before = os.umask(umask)
    try:
        world.run()
    finally:
        os.umask(before)
    assert stat.S_IMODE(world.metrics.stat().st_mode) == 0o644


def test_a_task_is_one_whatever_way_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def key(archive: str, source: str) -> str:
        return Task.of(parse_place(archive), parse_source(source)).key

    assert key("a", "vg/lv") == key(f"{tmp_path}/x/../a/", "/dev/vg/lv") == key("./a", "/dev/mapper/vg-lv")
    assert key("a", "./disk") == key("a", f"{tmp_path}/disk")
    assert len({key("a", "vg/lv"), key("b", "vg/lv"), key("a", "vg/l"), key("a", "full:vg/lv")}) == 4
    assert Task.of(parse_place("s3://bucket/x/"), parse_source("vg/lv")).archive == "s3://bucket/x"
    assert Task.of(parse_place("ssh://h/a/"), parse_source("vg/lv")).archive == "ssh://h/a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2}',
        '{"version": 1}',
        '{"version": 1, "archive": 1, "source": "x"}',
        "\xff",
        '{"version": 1, "archive": "a", "source": "b", "more": 1}',
    ],
)
def test_a_record_that_is_none_is_refused_and_found(world: World, text: str) -> None:
    world.run()
    (world.known.folder / "record.json").write_text(text, "latin-1")
    with pytest.raises(FormatError, match="move it away"):
        world.run()
    (found,) = check_runs(world.state, NOW)
    assert found.kind == "broken"


def note(world: World, **changes: Any) -> None:
    there = world.folder / "there.timer"
    there.touch()
    timer = TimerNote(
        world.task.archive, "vg/lv", (str(there),), "daily", 86400, 600, NOW.isoformat(timespec="seconds")
    )
    folder = task_folder(world.state, world.task)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "timer.json", replace(timer, **changes))


def test_a_timer_that_starts_nothing_is_found(world: World) -> None:
    note(world)
    late = timedelta(seconds=86400 + 600 + 8640)
    state = read_task(task_folder(world.state, world.task))
    assert state
    assert state.record is None
    assert not is_overdue(state, NOW + late)
    assert is_overdue(state, NOW + late + timedelta(seconds=1))
    assert list(check_runs(world.state, NOW + late)) == []
    (found,) = check_runs(world.state, NOW + 2 * late)
    assert "is to run every daily" in found.problem
    assert "systemctl status there.timer" in found.remedy

    record = RunRecord(world.task.archive, "vg/lv", began=(NOW + late).isoformat(), ended=NOW.isoformat(), status=0)
    write_json(state.folder / "record.json", record)
    assert list(check_runs(world.state, NOW + 2 * late)) == []
    assert len(list(check_runs(world.state, NOW + 3 * late))) == 1
    note(world, seconds=None)  # nobody knows
    assert list(check_runs(world.state, NOW + 9 * late)) == []
    note(world, seconds=86400, files=("/nonexistent/x.timer",))
    (found,) = check_runs(world.state, NOW)
    assert "/nonexistent/x.timer is gone" in found.problem
    note(world, seconds=60, files=(str(world.metrics.parent),))
    (found,) = check_runs(world.state, NOW + 2 * late)
    assert "does cron run" in found.remedy


def test_a_note_of_a_timer_is_read_as_what_it_is(world: World) -> None:
    note(world)
    path = task_folder(world.state, world.task) / "timer.json"
    path.write_text(path.read_text().replace('there.timer"', 'there.timer", 7'))
    with pytest.raises(FormatError, match="'files' is not possible"):
        read_task(path.parent)
