"""How much of a stream may be on its way, and what cuts cost with it."""

from __future__ import annotations

import threading

import pytest

from lvmsync.jobs.window import SMALLEST, Window, window_for

MIB = 1 << 20


@pytest.mark.parametrize(
    ("total", "most"), [(200, 0.045), (256, 0.042), (512, 0.04), (896, 0.04), (10 << 10, 0.04), (1 << 20, 0.04)]
)
def test_fifty_cuts_lose_little_whatever_they_hit(total: int, most: float) -> None:
    assert sum(window_for(total * MIB, cuts) for cuts in range(50)) <= most * total * MIB


def test_a_line_that_is_not_cut_costs_few_round_trips() -> None:
    assert window_for(10 << 30, 0) == 160 * MIB  # more than 1 Gbit/s holds in a second
    assert window_for(1 * MIB, 0) == 1 * MIB
    assert all(total * MIB / window_for(total * MIB, 0) <= 64 for total in (1, 100, 1000, 1 << 20))


def test_a_window_gets_smaller_with_each_cut_and_never_too_small() -> None:
    sizes = [window_for(512 * MIB, cuts) for cuts in range(100)]
    assert sizes == sorted(sizes, reverse=True)
    assert window_for(0, 99) == sizes[-1] == SMALLEST


def test_what_does_not_fit_waits_until_enough_is_applied() -> None:
    window = Window(100)
    window.sent(60, 600)
    window.sent(40, 1000)
    assert not window.wait(1, patience=0.01)
    window.applied(599)
    assert not window.wait(1, patience=0.01)
    window.applied(600)
    assert window.wait(60, patience=0.01)
    assert not window.wait(61, patience=0.01)


def test_a_frame_that_is_larger_than_the_window_goes_alone() -> None:
    window = Window(100)
    assert window.wait(1000, patience=0.01)
    window.sent(1000, 1)
    assert not window.wait(1, patience=0.01)
    window.applied(1)
    assert window.wait(1000, patience=0.01)


@pytest.mark.parametrize("is_applied", [True, False])
def test_who_waits_is_woken_when_something_is_applied_or_nobody_will_say_so_any_more(is_applied: bool) -> None:
    window = Window(100)
    window.sent(100, 5)
    timer = threading.Timer(0.01, lambda: window.applied(5) if is_applied else window.open())
    timer.start()
    assert window.wait(100, patience=30)
    timer.join()


def test_what_is_applied_twice_or_was_never_sent_counts_once() -> None:
    window = Window(100)
    window.applied(10**18)
    window.sent(100, 5)
    assert not window.wait(1, patience=0.01)
    window.applied(5)
    window.applied(5)
    window.sent(100, 9)
    assert not window.wait(1, patience=0.01)
