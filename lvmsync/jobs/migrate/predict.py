"""How long the source would stand still if it were stopped now: a model fitted to the passes so far.

Sending takes a fixed time and a time for each byte; every other phase of a pass takes as long as it did in the
last passes. How much there will be to send follows from how much changed between the snapshots of the last passes,
or is known (a classic snapshot counts what it keeps). Nothing here asks a clock or a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

SEND = "send"
"""The phase of a pass whose time grows with its bytes."""

LOOK, AFTER = "look", "promote"
"""Phases that a last pass does not have: what it needs to know was looked at before, and the rest is put off."""

_RECENT = 4
"""Passes that the model is fitted to: the rates of an hour ago tell little."""
_DECAY = 0.5  # weight of a pass, against the one after it
_LEAST = 0.02  # seconds; times below that are noise
_ERROR = 0.1  # of a time that was measured
_FIXED_ERROR = 0.25  # seconds of sending that are none of its bytes': what is known to be fixed is a phase of its own
_SLOWER, _SPREAD = 1.5, 7.0  # of the time for a byte, against that in the largest pass, and how wrong that may be
_USUAL = 1 / 32  # seconds for each MiB, where no pass was large enough to tell
_MIB = 1 << 20
_ROUNDS = 100  # of looking for the length of pass that passes tend to


@dataclass(frozen=True)
class Pass:
    """One pass, as it was measured.

    Attributes:
        changed_bytes: bytes that it sent, before compression.
        seconds: how long each phase took; "send" is the one that grows with the bytes.
        interval: seconds between its snapshot and that of the pass before; None of a first copy, or where the pass
            before is not known: its bytes then tell nothing about how fast changes come.
        wire_bytes: bytes of its stream; None where they are not known.
    """

    changed_bytes: int
    seconds: Mapping[str, float]
    interval: float | None = None
    wire_bytes: int | None = None

    @property
    def total_seconds(self) -> float:
        """All phases together."""
        return sum(self.seconds.values())

    @property
    def fixed_seconds(self) -> float:
        """All phases of a last pass but the sending."""
        return self.total_seconds - sum(self.seconds.get(phase, 0.0) for phase in (SEND, LOOK, AFTER))


@dataclass(frozen=True)
class Around:
    """What the downtime holds besides the last pass, in seconds.

    Attributes:
        stop: until the stop command has returned; changes still come in that time.
        fence: making the source read-only.
        back: making the snapshot for the way back, on the target's side.
        start: until the start command has returned.
        verify: checking what the last pass has brought, without the time for its bytes.
        verify_byte: for each of its bytes.
        flushed: bytes that stopping brings besides what changes in its time, as an earlier stop has shown.
    """

    stop: float = 0.0
    fence: float = 0.0
    back: float = 0.0
    start: float = 0.0
    verify: float = 0.0
    verify_byte: float = 0.0
    flushed: int = 0


@dataclass(frozen=True)
class Cost:
    """Seconds that sending takes: ``fixed``, and ``per_byte`` for each byte."""

    fixed: float
    per_byte: float

    def seconds(self, count: float) -> float:
        """Return the seconds for so many bytes."""
        return self.fixed + self.per_byte * count


@dataclass(frozen=True)
class Prediction:
    """The downtime, if the source were stopped now. All times are seconds.

    Attributes:
        last_bytes: bytes that the last pass would send.
        stop, fence, pass_fixed, send, verify, back, start: the parts of the downtime, in this order; ``pass_fixed``
            is the snapshot, the map, the commit, and whatever else a pass does besides sending.
        rate: bytes a second that sending takes; None if no pass has told.
        dirty_rate: bytes a second that change; None if no pass has told.
        floor: what the downtime would come to with any number of passes; None where changes come faster than they
            can be sent, or nothing is known.
    """

    last_bytes: int
    stop: float
    fence: float
    pass_fixed: float
    send: float
    verify: float
    back: float
    start: float
    rate: float | None
    dirty_rate: float | None
    floor: float | None

    @property
    def downtime(self) -> float:
        """From just before the stop command until the start command has returned."""
        return self.stop + self.after_stop

    @property
    def after_stop(self) -> float:
        """The part behind the stop command."""
        return self.fence + self.pass_fixed + self.send + self.tail

    @property
    def tail(self) -> float:
        """The part behind the commit of the last pass."""
        return self.verify + self.back + self.start

    def as_dict(self) -> dict[str, float | int | None]:
        """Return all of it, for JSON; times to a millisecond."""
        values = {"downtime": self.downtime, **asdict(self)}
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}


def fit_cost(passes: Sequence[Pass]) -> Cost:
    """Return what sending costs, by the last passes: deltas where there are any, else the first copy.

    A few small passes tell nothing about a rate, and yet they are what is known when a stop command flushes a
    thousand times as much. So what is usual counts as if it had been measured, too, with a wide error each: nearly
    nothing is fixed, and a byte costs half as much again as it did in the largest pass (a first copy reads in long
    runs and skips what is empty). What the passes tell weighs more as soon as they are large enough to tell it.
    """
    recent = _recent(passes)
    usual = _SLOWER * _usual_seconds(passes)
    fixed_weight, byte_weight = 1 / _FIXED_ERROR**2, 1 / (_SPREAD * usual) ** 2
    # The sums of a fit by least squares, in seconds and MiB
    w, wx, wxx, wy, wxy = fixed_weight, 0.0, byte_weight, 0.0, byte_weight * usual
    for age, one in enumerate(reversed(recent)):
        seconds, count = max(one.seconds.get(SEND, 0.0), 0.0), one.changed_bytes / _MIB
        weight = _DECAY**age / max(_ERROR * seconds, _LEAST) ** 2
        w, wx, wxx = w + weight, wx + weight * count, wxx + weight * count * count
        wy, wxy = wy + weight * seconds, wxy + weight * count * seconds
    slope = (w * wxy - wx * wy) / (w * wxx - wx * wx)
    fixed = (wy - slope * wx) / w
    if fixed < 0:
        fixed, slope = 0.0, wxy / wxx
    if slope <= 0:  # larger passes were faster
        slope = usual / _SLOWER
        fixed = max(0.0, (wy - slope * wx) / w)
    return Cost(fixed, slope / _MIB)


def _usual_seconds(passes: Sequence[Pass]) -> float:
    """Return the seconds for each MiB in the pass that sent most, if that was much; zeros sent as such are none."""
    sizes = [
        (one.changed_bytes if one.wire_bytes is None else min(one.changed_bytes, one.wire_bytes)) for one in passes
    ]
    largest = max(range(len(passes)), key=sizes.__getitem__, default=None)
    if largest is None or sizes[largest] < _MIB:
        return _USUAL
    return max(passes[largest].seconds.get(SEND, 0.0), _LEAST) / (sizes[largest] / _MIB)


def estimate_dirty(passes: Sequence[Pass], seconds: float) -> float:
    """Return how many bytes change within so many seconds, by the last passes; 0 where they do not tell.

    The more time, the more is written twice: the bytes of one interval are not those of two. Between the intervals
    that were seen it is a straight line, and so it is from nothing to the shortest, and on past the longest.
    """
    seen: dict[float, float] = {}
    for one in _recent(passes):
        if one.interval:
            seen[one.interval] = float(one.changed_bytes)  # the later of two that are the same
    if not seen or seconds <= 0:
        return 0.0
    points = [(0.0, 0.0), *sorted(seen.items())]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if seconds <= x1:
            return y0 + (y1 - y0) * (seconds - x0) / (x1 - x0)
    last, count = points[-1]
    return count * seconds / last


def predict(passes: Sequence[Pass], around: Around, age: float, known_dirty: int | None = None) -> Prediction:
    """Return what the downtime would be.

    Args:
        passes: so far, oldest first; at least one.
        around: the downtime's other parts.
        age: seconds since the last pass's snapshot.
        known_dirty: bytes that changed since then, where that is known.
    """
    cost = fit_cost(passes)
    at_stop = estimate_dirty(passes, age + around.stop)
    if known_dirty is not None:
        at_stop = known_dirty + max(0.0, at_stop - estimate_dirty(passes, age))
    at_stop += around.flushed
    recent = _recent(passes)[-2:]
    fixed = sum(one.fixed_seconds for one in recent) / len(recent)
    rest = around.stop + around.fence + fixed + around.verify + around.back + around.start
    tends_to = _find_floor(passes, cost, fixed + around.stop)
    floor = None
    if tends_to is not None:
        floor = rest + cost.seconds(tends_to) + around.verify_byte * tends_to
    last = passes[-1]
    told = last.interval is not None or known_dirty is not None
    return Prediction(
        last_bytes=round(at_stop),
        stop=around.stop,
        fence=around.fence,
        pass_fixed=fixed,
        send=cost.seconds(at_stop),
        verify=around.verify + around.verify_byte * at_stop,
        back=around.back,
        start=around.start,
        rate=1 / cost.per_byte if cost.per_byte else None,
        dirty_rate=_dirty_rate(passes, age, known_dirty) if told else None,
        floor=floor,
    )


def _dirty_rate(passes: Sequence[Pass], age: float, known_dirty: int | None) -> float | None:
    last = passes[-1]
    if last.interval:
        return last.changed_bytes / last.interval
    return known_dirty / age if known_dirty is not None and age > 0 else None


def _recent(passes: Sequence[Pass]) -> list[Pass]:
    """Return the passes that the model is fitted to: the last deltas, or the first copy if it is alone."""
    deltas = [one for one in passes if one.interval is not None]
    return (deltas or list(passes))[-_RECENT:]


def _find_floor(passes: Sequence[Pass], cost: Cost, fixed: float) -> float | None:
    """Return how many bytes a pass comes to after many; None if each is larger than the one before."""
    if not any(one.interval for one in _recent(passes)):
        return None
    seconds = _recent(passes)[-1].total_seconds
    longest = 10 * max(one.interval or 0.0 for one in _recent(passes))
    for _ in range(_ROUNDS):
        after = fixed + cost.seconds(estimate_dirty(passes, seconds))
        if after > longest:
            return None
        if abs(after - seconds) < 1e-3 * max(after, _LEAST):
            break
        seconds = after
    return estimate_dirty(passes, seconds)
