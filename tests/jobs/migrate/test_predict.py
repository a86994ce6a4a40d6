"""The model of the downtime: exact where the passes are, cautious where they do not tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.jobs.migrate.predict import Around, Pass, estimate_dirty, fit_cost, predict

MIB = 1 << 20


def delta(mib: float, send: float, interval: float | None = 10.0, **others: float) -> Pass:
    return Pass(int(mib * MIB), {"send": send, **others}, interval)


def first_copy(mib: float, send: float, wire: float | None = None) -> Pass:
    return Pass(int(mib * MIB), {"send": send}, None, None if wire is None else int(wire * MIB))


def test_the_cost_of_a_line_is_found_again() -> None:
    cost = fit_cost([delta(count, 0.3 + count / 40) for count in (400, 100, 30, 10)])
    assert cost.fixed == pytest.approx(0.3, rel=0.1)
    assert cost.per_byte == pytest.approx(1 / (40 * MIB), rel=0.1)


def test_one_delta_is_taken_for_bytes_and_a_first_copy_counts_until_there_is_one() -> None:
    first = first_copy(1000, 5.0)
    assert fit_cost([first]).per_byte == pytest.approx(5 / (1000 * MIB), rel=0.1)
    assert fit_cost([first, delta(10, 1.0)]).seconds(10 * MIB) == pytest.approx(1.0, rel=0.1)
    assert 3 < fit_cost([first, delta(10, 1.0)]).seconds(50 * MIB) < 5


def test_passes_of_one_size_that_differ_in_time_give_their_rate() -> None:
    assert 1 < fit_cost([delta(10, 1.0), delta(10, 2.0)]).seconds(10 * MIB) < 2


def test_larger_passes_that_were_faster_make_no_negative_costs() -> None:
    cost = fit_cost([delta(100, 1.0), delta(10, 2.0)])
    assert cost.fixed >= 0
    assert cost.per_byte > 0
    cost = fit_cost([delta(100, 0.1), delta(0, 0.2), delta(0, 0.2), delta(0, 0.2)])
    assert cost.fixed >= 0
    assert cost.per_byte > 0
    steep = fit_cost([delta(100, 12.0), delta(50, 4.0)])  # the line through both would begin below zero
    assert steep.fixed == 0
    assert 4 / 50 < steep.per_byte * MIB < 12 / 100


def test_passes_without_changes_cost_what_they_took_and_tell_no_rate() -> None:
    cost = fit_cost([delta(0, 0.25), delta(0, 0.25)])
    assert cost.fixed == pytest.approx(0.25, rel=0.02)
    assert fit_cost([]).fixed == 0
    after = fit_cost([first_copy(1000, 5.0), delta(0, 0.25)])
    assert after.fixed == pytest.approx(0.25, rel=0.1)
    assert 5 / 1000 <= after.per_byte * MIB <= 3 * 5 / 1000


@pytest.mark.parametrize(
    ("passes", "mib", "truth"),
    [
        # A stop command flushes a thousand times what passes of one block have sent, each in no time, or in noise.
        ([first_copy(3, 0.06), *(delta(1 / 256, 0.01) for _ in range(3))], 5, 0.2),
        ([first_copy(3, 0.4), *(delta(1 / 256, 0.08) for _ in range(4))], 5, 0.7),
        ([first_copy(3, 0.3), delta(1 / 256, 0.08), delta(2 / 256, 0.02), delta(1 / 256, 0.15)], 5, 0.6),
        ([first_copy(1000, 10.0), *(delta(1 / 256, 0.02) for _ in range(4))], 100, 2.0),
        ([first_copy(1 / 4, 0.05), *(delta(1 / 256, 0.02) for _ in range(4))], 5, 0.2),  # nothing tells a rate
        ([delta(1 / 256, 0.02) for _ in range(4)], 5, 0.2),
        # Zeros go fast, and tell nothing about data.
        ([first_copy(100_000, 100.0, wire=50), *(delta(1 / 256, 0.02) for _ in range(4))], 50, 100.0),
        # A slow disk: a scattered delta costs fifty times as much for each byte as a first copy.
        ([first_copy(1000, 7.0), delta(10, 4.0), delta(8, 3.2)], 50, 20.0),
        # A slow line: all cost the same for each byte.
        ([first_copy(1000, 1000.0), delta(20, 20.0), delta(2, 2.0), delta(0.2, 0.2)], 0.5, 0.5),
    ],
)
def test_what_is_sent_last_is_predicted_within_a_factor_of_two(passes: list[Pass], mib: float, truth: float) -> None:
    assert truth / 2 <= fit_cost(passes).seconds(mib * MIB) <= 2 * truth


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
    assert found.send == pytest.approx(2.5, rel=0.01)
    assert found.verify == pytest.approx(0.35)
    assert found.tail == pytest.approx(0.35 + 0.5 + 2.0)
    assert found.downtime == pytest.approx(1 + 0.25 + 1.5 + 2.5 + 2.85, rel=0.01)
    assert found.as_dict()["downtime"] == pytest.approx(8.1, rel=0.01)
    assert found.rate == pytest.approx(10 * MIB, rel=0.01)
    assert found.dirty_rate == 5 * MIB


def test_the_floor_is_where_passes_stay_as_long_as_they_are() -> None:
    # 5 MiB/s change and 20 MiB/s are sent, 3 s of a pass are fixed: t = 3 + t/4, so t = 4.
    found = predict([delta(100, 5.0, 20.0, snapshot=3.0)], Around(start=1.0), age=8.0)
    assert found.floor == pytest.approx(4 + 1, rel=1e-2)


def test_there_is_no_floor_where_changes_come_faster_than_they_are_sent() -> None:
    assert predict([delta(200, 40.0, 20.0, snapshot=1.0)], Around(), age=1.0).floor is None
    assert predict([delta(200, 40.0, None)], Around(), age=1.0).floor is None
