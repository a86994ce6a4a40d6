"""Which step of a migration is next: another pass, the check of the whole target, the stop, or no way on. Pure.

no pass yet                                      PASS    the first copy, or the delta of a copy that exists
the last pass is no delta                        PASS    only a delta tells how fast changes come
the predicted downtime fits, not checked yet     VERIFY  (where asked for), and then PASS: it took its time
the predicted downtime fits                      STOP
as many passes as are allowed                    STUCK
two passes in a row did not bring it down        STUCK
otherwise                                        PASS
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from lvmsync.jobs.migrate.predict import Pass, Prediction
from lvmsync.units import size_words

HEADROOM = 0.8
"""The source is stopped when the prediction is within this part of what is allowed."""
SHRINKS = 0.9
"""A prediction that is more than this part of the best one before it has not been brought down."""
PATIENCE = 2
"""Passes in a row that may fail to bring it down."""


class Step(Enum):
    """What is to be done next."""

    PASS = "pass"
    VERIFY = "verify"
    STOP = "stop"
    STUCK = "stuck"


@dataclass(frozen=True)
class Limits:
    """What the user allows.

    Attributes:
        max_downtime: seconds.
        max_passes: before the stop; resets after a source that was started again.
        verify: whether the whole target is to be compared before the stop.
    """

    max_downtime: float
    max_passes: int = 30
    verify: bool = False


@dataclass(frozen=True)
class Taken:
    """A pass that was made, and the downtime that was predicted right after it; None after one that is no delta."""

    measured: Pass
    downtime: float | None = None


@dataclass(frozen=True)
class Decision:
    """The next step, and why, in words."""

    step: Step
    reason: str


def next_step(
    taken: Sequence[Taken], prediction: Prediction | None, limits: Limits, *, is_verified: bool, is_fresh: bool
) -> Decision:
    """Return what is to be done next.

    Args:
        taken: the passes so far.
        prediction: what the downtime would be now; None before the first pass.
        limits: what is allowed.
        is_verified: whether the whole target has been compared.
        is_fresh: whether a pass was the last thing that was done.
    """
    if not taken or prediction is None:
        return Decision(Step.PASS, "nothing has been sent yet")
    if taken[-1].measured.interval is None:
        return Decision(Step.PASS, "how fast changes come is told by a pass after this one")
    if not is_fresh:
        return Decision(Step.PASS, "the target is behind by the time that the check took")
    allowed = HEADROOM * limits.max_downtime
    if prediction.downtime <= allowed:
        if limits.verify and not is_verified:
            return Decision(Step.VERIFY, "it is compared as a whole before the stop, and its changes after")
        return Decision(
            Step.STOP, f"predicted {prediction.downtime:.1f} s of {limits.max_downtime:g} s that are allowed"
        )
    if len(taken) >= limits.max_passes:
        return Decision(Step.STUCK, f"{len(taken)} passes were made, as many as are allowed; {_figures(prediction)}")
    if not _shrinks([one.downtime for one in taken if one.downtime is not None]):
        return Decision(
            Step.STUCK, f"{PATIENCE} passes in a row did not bring the downtime down; {_figures(prediction)}"
        )
    return Decision(
        Step.PASS, f"predicted {prediction.downtime:.1f} s; it is to be {allowed:.1f} s or less before the stop"
    )


def _shrinks(downtimes: Sequence[float]) -> bool:
    """Tell whether one of the last passes was clearly better than all before them."""
    earlier, recent = downtimes[:-PATIENCE], downtimes[-PATIENCE:]
    return not earlier or min(recent) <= SHRINKS * min(earlier)


def _figures(prediction: Prediction) -> str:
    """Return the numbers that tell why it does not get better."""
    rates = ""
    if prediction.rate and prediction.dirty_rate is not None:
        dirty, rate = size_words(round(prediction.dirty_rate)), size_words(round(prediction.rate))
        rates = f"{dirty}/s change and {rate}/s can be sent, "
    apart = prediction.downtime - prediction.send
    return (
        f"{rates}a last pass would send {size_words(prediction.last_bytes)} in {prediction.send:.1f} s, and all else"
        f" takes {apart:.1f} s: predicted downtime {prediction.downtime:.1f} s"
    )
