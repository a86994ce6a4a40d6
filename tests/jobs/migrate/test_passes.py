"""Which step is next, as a table."""

from __future__ import annotations

import pytest

from lvmsync.jobs.migrate.passes import Limits, Step, Taken, next_step
from lvmsync.jobs.migrate.predict import Around, Pass, Prediction, predict


def prediction(downtime: float) -> Prediction:
    found = predict([Pass(8 << 20, {"send": 1.0}, 4.0)], Around(start=downtime - 0.5), age=2.0)
    assert found.downtime == pytest.approx(downtime, rel=0.01)
    return found


def taken(*downtimes: float | None) -> list[Taken]:
    return [Taken(Pass(1 << 20, {"send": 1.0}, None if one is None else 5.0), one) for one in downtimes]


@pytest.mark.parametrize(
    ("downtimes", "now", "verify", "is_verified", "is_fresh", "step"),
    [
        ([], None, False, False, False, Step.PASS),
        ([None], 1.0, False, False, True, Step.PASS),  # a first copy tells nothing
        ([None, 9.0], 9.0, False, False, True, Step.PASS),
        ([None, 9.0, 3.9], 3.9, False, False, True, Step.STOP),
        ([None, 9.0, 4.1], 4.1, False, False, True, Step.PASS),  # within what is allowed, but barely
        ([None, 3.9], 3.9, True, False, True, Step.VERIFY),
        ([None, 3.9], 3.9, True, True, False, Step.PASS),  # checking took its time
        ([None, 3.9, 3.9], 3.9, True, True, True, Step.STOP),
        ([None, 9.0, 8.0], 8.0, False, False, True, Step.PASS),
        ([None, 9.0, 8.9, 8.8], 8.8, False, False, True, Step.STUCK),
        ([None, 9.0, 10.0, 12.0], 12.0, False, False, True, Step.STUCK),
        ([None, 9.0, 12.0, 8.0], 8.0, False, False, True, Step.PASS),  # one bad pass is forgiven
        ([None, 90.0, 50.0, 25.0, 13.0, 7.0], 7.0, False, False, True, Step.PASS),
        ([None, *(100.0 * 0.8**n for n in range(9))], 17.0, False, False, True, Step.STUCK),  # ten passes
    ],
)
def test_the_next_step_follows_from_the_passes(
    downtimes: list[float | None], now: float | None, verify: bool, is_verified: bool, is_fresh: bool, step: Step
) -> None:
    decision = next_step(
        taken(*downtimes),
        None if now is None else prediction(now),
        Limits(5.0, max_passes=10, verify=verify),
        is_verified=is_verified,
        is_fresh=is_fresh,
    )
    assert decision.step is step, decision.reason


def test_being_stuck_is_told_with_its_figures() -> None:
    decision = next_step(taken(None, 9, 9, 9), prediction(9), Limits(5.0), is_verified=False, is_fresh=True)
    assert decision.step is Step.STUCK
    assert "2.0 MiB/s change and 8.0 MiB/s can be sent" in decision.reason
    assert "send 4.0 MiB in 0.5 s, and all else takes 8.5 s: predicted downtime 9.0 s" in decision.reason
