"""The model of the downtime: exact where the passes are, cautious where they do not tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.jobs.migrate.predict import Around, Cost, Pass, estimate_dirty, fit_cost, predict

MIB = 1 << 20


def delta(mib: float, send: float, interval: float | None = 10.0, **others: float) -> Pass:
    return Pass(int(mib * MIB), {"send": send, **others}, interval)


def test_the_cost_of_a_line_is_found_again() -> None:
    cost = fit_cost([delta(count, 0.3 + count / 40) for count in (400, 100, 30, 10)])
    assert cost.fixed == pytest.approx(0.3)
    assert cost.per_byte == pytest.approx(1 / (40 * MIB))


def test_one_delta_is_taken_for_bytes_only_and_a_first_copy_counts_until_there_is_one() -> None:
    first = delta(1000, 5.0, None)
    assert fit_cost([first]).per_byte == pytest.approx(5 / (1000 * MIB))
    assert fit_cost([first, delta(10, 1.0)]).seconds(10 * MIB) == pytest.approx(1.0)


def test_passes_of_one_size_that_differ_in_time_give_their_rate() -> None:
    cost = fit_cost([delta(10, 1.0), delta(10, 2.0)])
    assert cost.fixed == 0
    assert 1 < cost.seconds(10 * MIB) < 2


def test_larger_passes_that_were_faster_make_no_negative_costs() -> None:
    cost = fit_cost([delta(100, 1.0), delta(10, 2.0)])
    assert cost.fixed == 0
    assert cost.per_byte > 0
    steep = fit_cost([delta(100, 12.0), delta(50, 4.0)])  # the line through both would begin below zero
    assert steep.fixed == 0
    assert 4 / 50 < steep.per_byte * MIB < 12 / 100


def test_passes_without_changes_cost_what_they_took() -> None:
    assert fit_cost([delta(0, 0.25), delta(0, 0.25)]) == Cost(0.25, 0.0)
    assert fit_cost([]) == Cost(0.0, 0.0)
    first = delta(1000, 5.0, None)
    assert fit_cost([first, delta(0, 0.25)]) == Cost(0.25, 5 / (1000 * MIB))


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 44), st.floats(0, 1e5), st.none() | st.floats(1e-3, 1e6)), min_size=1, max_size=8
    ),
    st.floats(0, 1e5),
)
def test_no_passes_lead_to_a_negative_downtime_or_an_error(
    passes: list[tuple[int, float, float | None]], age: float
) -> None:
    found = predict([Pass(count, {"send": send}, interval) for count, send, interval in passes], Around(stop=1.0), age)
    assert found.downtime >= 1.0
    assert found.last_bytes >= 0
    assert found.floor is None or found.floor >= 1.0


def test_changes_are_counted_between_the_intervals_that_were_seen() -> None:
    passes = [delta(100, 1, 100.0), delta(40, 1, 10.0)]
    assert estimate_dirty(passes, 5) == 20 * MIB
    assert estimate_dirty(passes, 10) == 40 * MIB
    assert estimate_dirty(passes, 55) == 70 * MIB
    assert estimate_dirty(passes, 200) == 200 * MIB
    assert estimate_dirty(passes, 0) == 0
    assert estimate_dirty([delta(5, 1, None)], 10) == 0


def test_what_is_known_to_have_changed_is_not_guessed() -> None:
    passes = [delta(40, 4.0, 10.0, snapshot=1.0)]
    guessed = predict(passes, Around(stop=5.0), age=5.0)
    assert guessed.last_bytes == 40 * MIB
    known = predict(passes, Around(stop=5.0), age=5.0, known_dirty=3 * MIB)
    assert known.last_bytes == 23 * MIB  # and what will come while it stops
    assert known.dirty_rate == 4 * MIB


def test_the_downtime_is_the_sum_of_its_parts() -> None:
    passes = [delta(100, 10.0, 20.0, snapshot=0.5, map=0.1, commit=0.4), delta(50, 5.0, 10.0, snapshot=1.5, commit=0.5)]
    around = Around(stop=1.0, fence=0.25, back=0.5, start=2.0, verify=0.1, verify_byte=1 / (100 * MIB))
    found = predict(passes, around, age=4.0)
    assert found.last_bytes == 25 * MIB
    assert found.pass_fixed == pytest.approx(1.5)
    assert found.send == pytest.approx(2.5)
    assert found.verify == pytest.approx(0.35)
    assert found.tail == pytest.approx(0.35 + 0.5 + 2.0)
    assert found.downtime == pytest.approx(1 + 0.25 + 1.5 + 2.5 + 2.85)
    assert found.as_dict()["downtime"] == pytest.approx(8.1)
    assert found.rate == pytest.approx(10 * MIB)
    assert found.dirty_rate == 5 * MIB


def test_the_floor_is_where_passes_stay_as_long_as_they_are() -> None:
    # 5 MiB/s change and 20 MiB/s are sent, 3 s of a pass are fixed: t = 3 + t/4, so t = 4.
    found = predict([delta(100, 5.0, 20.0, snapshot=3.0)], Around(start=1.0), age=8.0)
    assert found.floor == pytest.approx(4 + 1, rel=1e-2)


def test_there_is_no_floor_where_changes_come_faster_than_they_are_sent() -> None:
    assert predict([delta(200, 40.0, 20.0, snapshot=1.0)], Around(), age=1.0).floor is None
    assert predict([delta(200, 40.0, None)], Around(), age=1.0).floor is None
