"""Watching what fills: more room in time, a stop before it is full, and no more looks than needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, CommandError, DeviceError, UsageError
from lvmsync.system import fill_watch
from lvmsync.system.fill import Fill
from lvmsync.system.fill_watch import FillWatch, Gauge


class Tank:
    """Something that fills, and its gauge."""

    def __init__(self, used: int, total: int = 1000) -> None:
        self.used, self.total, self.looks = used, total, 0
        self.gauge = Gauge("vg/snap", self.read, "lvextend vg/snap")

    def read(self) -> tuple[str, Fill]:
        self.looks += 1
        return "the store", Fill(self.used, self.total)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the clock; return what moves it on."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_it_stops_at_the_limit_with_the_numbers_and_the_next_step() -> None:
    watch = FillWatch([Tank(949).gauge], every=0)
    watch.check()
    with pytest.raises(DeviceError) as caught:
        FillWatch([Tank(950).gauge]).check()
    assert str(caught.value) == (
        "the store is 95.0% full (950 B of 1000 B), over the limit of 95%: stopped before it is full; make it larger"
        " with 'lvextend vg/snap'"
    )


def test_more_room_is_made_once_and_not_asked_for_in_vain_at_each_look() -> None:
    tank, asked = Tank(700), []

    def extend(gauge: Gauge, fill: Fill) -> str:
        asked.append(fill.percent)
        return "nobody"

    watch = FillWatch([tank.gauge], extend=extend, every=0)
    for used in (700, 710, 719, 720, 730, 745):
        tank.used = used
        watch.check()
    assert asked == [70.0, 72.0, 74.5]
    assert watch.notes[0] == "the store is 70.0% full, and nobody did not make it larger"

    def grow(gauge: Gauge, fill: Fill) -> str:
        tank.total += 1000
        return "somebody"

    watch = FillWatch([tank.gauge], extend=grow, every=0)
    watch.check()
    watch.check()
    assert tank.total == 2000
    assert watch.notes == ["the store was 74.5% full; somebody extended it, and it is 37.2% full now"]
    tank.used = 1500  # it fills again, and gets more room again
    watch.check()
    assert tank.total == 3000


def test_a_failing_command_is_told_and_the_limit_holds_all_the_same() -> None:
    tank = Tank(800)
    watch = FillWatch([tank.gauge], extend=fill_watch.extend_command("false"), every=0)
    watch.check()
    assert watch.notes == [
        "the store is 80.0% full, and could not be made larger: 'false' failed with status 1: it gave no reason"
    ]
    tank.used = 990
    with pytest.raises(DeviceError, match="over the limit"):
        watch.check()


def test_the_users_command_is_words_and_learns_what_it_is_about(tmp_path: Path) -> None:
    script = tmp_path / "more room"
    script.write_text(f'#!/bin/sh\necho "$1 $LVMSYNC_VOLUME $LVMSYNC_PERCENT" >"{tmp_path}/said"\n')
    script.chmod(0o755)
    extend = fill_watch.extend_command(f"'{script}' '$(false);x'")
    assert extend(Tank(712).gauge, Fill(712, 1000)) == f"'{script}'"
    assert (tmp_path / "said").read_text() == "$(false);x vg/snap 71.2\n"
    with pytest.raises(UsageError, match="cannot split"):
        fill_watch.extend_command("it's")
    with pytest.raises(UsageError, match="is empty"):
        fill_watch.extend_command("  ")
    with pytest.raises(CommandError, match="cannot run '/nowhere'"):
        fill_watch.extend_command("/nowhere")(Tank(1).gauge, Fill(1, 2))


def test_a_pool_is_not_extended_without_its_owners_command() -> None:
    watch = FillWatch([Tank(800).gauge], extend=fill_watch.grow_stores(), every=0)
    watch.check()
    assert watch.notes == [
        "the store is 80.0% full, and could not be made larger: a pool is extended by its owner's command only"
    ]


def test_it_looks_once_a_second_and_more_often_when_something_fills_quickly(clock: Callable[[float], None]) -> None:
    tank = Tank(100)
    watch = FillWatch([tank.gauge])
    for _ in range(5):
        watch.check()
    assert tank.looks == 1
    clock(1)
    tank.used = 500  # full in 1.25 s
    watch.check()
    clock(0.32)
    watch.check()
    assert tank.looks == 3
    clock(0.32)
    watch.check()  # nothing was written meanwhile
    assert tank.looks == 3


def test_a_read_error_is_told_as_the_overflow_that_caused_it() -> None:
    tank = Tank(10)
    watch = FillWatch([tank.gauge])
    error = DeviceError("vg/snap: read error at byte 8192: Input/output error")
    error.add_note("the target is as it was")

    def overflow() -> tuple[str, Fill]:
        raise ChangesLost("the store of vg/snap has overflowed")

    with pytest.raises(DeviceError) as same, watch.explaining():
        raise error
    assert same.value is error
    watch.gauges = [Gauge("vg/snap", overflow, "lvextend vg/snap")]
    with pytest.raises(ChangesLost, match="overflowed") as caught, watch.explaining():
        raise error
    assert caught.value.__notes__ == ["the target is as it was"]


def test_a_read_error_stays_what_it_is_where_the_gauge_is_gone() -> None:
    def gone() -> tuple[str, Fill]:
        raise CommandError("no such device")

    with pytest.raises(DeviceError, match="read error"), FillWatch([Gauge("vg/snap", gone, "")]).explaining():
        raise DeviceError("read error")
