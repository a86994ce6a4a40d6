"""What is watched while a copy is made, and what is not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from lvmsync.errors import DeviceError, UsageError
from lvmsync.jobs.progress import Progress
from lvmsync.jobs.replica import watch
from lvmsync.jobs.replica.watch import looked_at, once_each, watch_fill, watching
from lvmsync.system import dm
from lvmsync.system.fill import Fill
from lvmsync.system.fill_watch import FillWatch, Gauge, Limits, until_whole
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.signals import BREAK_OFF, breaking_off, signals_deferred
from lvmsync.system.snapshot_advice import whole_store

SIZE = 1 << 30


def volume(size: int, *, is_snapshot: bool = False) -> LogicalVolume:
    role = frozenset({"snapshot", "thicksnapshot"} if is_snapshot else {"public"})
    return LogicalVolume("vg", "x", "i", "-", frozenset(), role, size, "", "", False, "", (253, 1), None)


@pytest.fixture
def percents(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set how full stores are, one value a look; the last one stays."""
    values = [0.0]

    def gauge(store: LogicalVolume) -> Gauge:
        def read() -> tuple[str, Fill]:
            percent = values.pop(0) if len(values) > 1 else values[0]
            return "the store", Fill(int(percent * 100), 10_000)

        return Gauge(store.full_name, read, "lvextend vg/x", store)

    monkeypatch.setattr(watch, "store_gauge", gauge)
    monkeypatch.setattr(dm, "find_snapshot", lambda _: SimpleNamespace(chunk=4096))
    return values


def looking(found: FillWatch) -> Callable[[], None]:
    found.every = 0.0
    tell = watching(lambda _: None, found)
    return lambda: tell(Progress("sending", 0, None))


def test_a_store_that_holds_all_of_its_origin_is_left_alone(percents: list[float]) -> None:
    stores = [volume(size, is_snapshot=True) for size in (whole_store(SIZE, 4096), whole_store(SIZE, 4096) - 512)]

    assert len(list(watch_fill(volume(SIZE), stores, Limits()).gauges)) == 1


def test_a_store_that_fills_stops_the_run(percents: list[float]) -> None:
    percents[:] = [50, 94, 96]
    look = looking(watch_fill(volume(SIZE), [volume(1 << 20, is_snapshot=True)], Limits()))
    look()
    with pytest.raises(DeviceError, match=r"the store is 96.0% full.*lvextend vg/x"):
        look()


def test_a_store_that_is_nearly_full_when_the_run_begins_may_fill_a_little_more(percents: list[float]) -> None:
    percents[:] = [97, 97, 98.4, 98.6]
    look = looking(watch_fill(volume(SIZE), [volume(1 << 20, is_snapshot=True)], Limits()))
    look()
    look()
    with pytest.raises(DeviceError, match=r"98.6% full"):
        look()


def test_a_command_that_is_none_is_refused(percents: list[float]) -> None:
    with pytest.raises(UsageError, match="cannot split"):
        watch_fill(volume(SIZE), [], Limits(extend_cmd="lvextend '"))


def test_what_is_told_is_passed_on(percents: list[float]) -> None:
    told: list[Progress] = []
    progress = Progress("sending", 1, 2)
    watching(told.append, watch_fill(volume(SIZE), [], Limits()))(progress)
    assert told == [progress]


def a_watch(*percents: float) -> FillWatch:
    """Return what sees so much at each look; the last stays."""
    left = list(percents)

    def read() -> tuple[str, Fill]:
        return "the pool", Fill(int((left.pop(0) if len(left) > 1 else left[0]) * 10), 1000)

    return FillWatch([Gauge("vg/pool", read, "lvextend vg/pool")], every=0.01)


def test_what_fills_while_a_line_is_waited_for_breaks_that_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GRACE", 0.01)
    before = signal.getsignal(BREAK_OFF)
    found = a_watch(50, 60, 96)
    with pytest.raises(DeviceError, match=r"96.0% full"), looked_at(found):
        assert not threading.Event().wait(60)
    assert isinstance(found.failure, DeviceError)
    assert signal.getsignal(BREAK_OFF) is before


def test_what_others_of_a_group_fill_meanwhile_breaks_it_off_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GRACE", 0.01)
    others = a_watch(50), a_watch(50, 60, 96)
    with pytest.raises(DeviceError, match=r"96.0% full"), looked_at(FillWatch([]), *others):
        assert not threading.Event().wait(60)
    assert others[0].failure is None


def test_a_pool_that_several_members_share_is_looked_at_once() -> None:
    first, second = a_watch(50), a_watch(50)
    store = FillWatch([Gauge("vg/store", lambda: ("the store", Fill(1, 2)), "lvextend vg/store")])
    assert once_each([FillWatch([]), first, store, second]) == [first, store]


def test_what_comes_by_in_time_is_not_broken_off() -> None:
    found = a_watch(50, 96)

    def work() -> None:
        with looked_at(found):
            while True:
                found.check()

    with pytest.raises(DeviceError, match=r"96.0% full"):
        work()


def test_what_has_come_by_may_bring_back_what_it_did_for_as_long_as_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GRACE", 0.01)
    found, steps = a_watch(50, 96), []

    def work() -> None:
        tell = watching(lambda _: None, found)
        with looked_at(found):
            try:
                while True:
                    tell(Progress("sending", 0, None))
            finally:
                threading.Event().wait(0.1)  # the other side rolls back
                steps.append("brought back")

    with pytest.raises(DeviceError, match=r"96.0% full"):
        work()
    assert steps == ["brought back"]


def test_what_is_too_full_when_all_is_done_is_no_failure() -> None:
    found = a_watch(50, 96)
    with looked_at(found):
        while not found.failure:
            pass


def test_a_thread_that_is_not_the_main_one_is_not_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GRACE", 0.01)
    found, ends = a_watch(50, 96), []

    def work() -> None:
        with looked_at(found):
            while not found.failure:
                pass
            ends.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ends == ["done"]


def test_nobody_else_can_break_off_what_is_watched() -> None:
    steps = []
    with looked_at(a_watch(50)):
        os.kill(os.getpid(), BREAK_OFF)
        steps.append("on it goes")
    assert steps == ["on it goes"]


def test_steps_that_are_done_whole_are_not_broken_off() -> None:
    steps = []
    with breaking_off() as break_off:
        with signals_deferred():
            thread = threading.Thread(target=break_off)
            thread.start()
            thread.join()
            steps.append("whole")
        steps.append("never")
    break_off()
    assert steps == ["whole"]


def test_a_store_that_was_made_so_large_that_it_holds_everything_is_left_alone() -> None:
    sizes = [1 << 20, whole_store(SIZE, 4096)]

    def read() -> tuple[str, Fill]:
        size = sizes.pop(0)
        return "the store", Fill(size - 8, size)

    found = FillWatch([until_whole(Gauge("vg/x", read, "lvextend"), whole_store(SIZE, 4096))], lambda *_: "we", every=0)
    found.check()
    assert (sizes, found.failure) == ([], None)
