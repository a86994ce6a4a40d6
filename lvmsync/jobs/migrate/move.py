"""What a migration is made of: the functions that touch machines, so that the order of steps is one plain thing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lvmsync.jobs.progress import Receipt, Report


@dataclass(frozen=True)
class Carried:
    """A pass that was made.

    Attributes:
        receipt: of both sides.
        kind: "first", "delta", "resume" or "nothing", as `jobs.replica` calls them.
        seconds: how long each phase took; "send" is the one that grows with the bytes.
        head_time: when its snapshot was made, on the move's clock; None of a snapshot that was there before.
    """

    receipt: Receipt
    kind: str
    seconds: dict[str, float]
    head_time: float | None


@dataclass(frozen=True)
class Ended:
    """How a start command ended.

    Attributes:
        status: its exit status; None where that is not known: it may have run, or may be running.
        words: what it said last, or why nothing is known.
    """

    status: int | None
    words: str = ""


@dataclass(frozen=True)
class Cut:
    """What came of a cut-over.

    Attributes:
        carried: the last pass.
        downtime: seconds.
        parts: seconds of each part.
        way_back: what ``migrate --back`` starts from.
        started: whether a start command ran.
    """

    carried: Carried
    downtime: float
    parts: dict[str, float]
    way_back: str | None
    started: bool


@dataclass(frozen=True)
class Move:
    """A volume, the way to its copy, and what is done around the last pass. What is None is not wanted.

    Attributes:
        source: the volume as messages call it.
        target: the copy as messages call it.
        run_pass: brings the copy to a snapshot taken now, or finishes an earlier one ("resume").
        prepare: makes sure that everything the downtime needs is there, and does beforehand what can be done
            then; called right before the stop. Returns seconds that keeping the way back takes.
        stop: stops the source's user; returns when it has stopped.
        restart: starts it again on this side.
        find_user: says who has the source open, or None.
        count_writes: returns what changes with every write to the source.
        fence: makes sure that nothing can write to the source.
        unfence: undoes that; harmless where it was not done.
        verify_whole: compares the whole target with the last pass's snapshot.
        verify_last: compares on the target what the last pass has changed.
        keep_way_back: makes what ``migrate --back`` needs; returns what it is called.
        drop_way_back: removes that again.
        start: starts the user on the target's side; raises LvmsyncError only if that was certainly not begun.
        find_target_use: says why the target may be in use or written to after a start that failed, or None.
        seal: takes the source away altogether, right before the start; ``unfence`` undoes that, too.
        finish: tidies up on the source's side when the target is in use; returns what the user should know.
        how_to_stop, how_to_restart, how_to_start: the commands in words, empty where there is none.
        known_dirty: bytes changed since the last snapshot; None where that is not known.
        fill: parts (0 to 1) that are full: of the source's stores, and of the target's pool; None where not known.
        clock: seconds, ever growing.
    """

    source: str
    target: str
    run_pass: Callable[[Report], Carried]
    prepare: Callable[[], float]
    stop: Callable[[], None]
    find_user: Callable[[], str | None]
    restart: Callable[[], None] | None = None
    count_writes: Callable[[], object] = lambda: None
    fence: Callable[[], None] | None = None
    unfence: Callable[[], None] | None = None
    verify_whole: Callable[[Report], None] | None = None
    verify_last: Callable[[], None] | None = None
    keep_way_back: Callable[[], str] | None = None
    drop_way_back: Callable[[], None] = lambda: None
    find_target_use: Callable[[], str | None] = lambda: None
    seal: Callable[[], None] | None = None
    start: Callable[[], Ended] | None = None
    finish: Callable[[Cut], list[str]] = lambda _: []
    how_to_stop: str = ""
    how_to_restart: str = ""
    how_to_start: str = ""
    known_dirty: Callable[[], int | None] = lambda: None
    fill: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Options:
    """What the user wants of a migration.

    Attributes:
        max_downtime: seconds.
        stop_seconds: how long the stop command takes, if the user knows; it is in the prediction then.
        start_seconds: the same of the start command.
        max_passes: before each stop.
        max_stops: how often the source is stopped at the most.
        on_no_convergence: "ask", "abort" or "go".
        on_overrun: "restart" or "go".
        fence: whether the source is made read-only.
        ask: asks the user whether to go on; gets the reason.
    """

    max_downtime: float
    stop_seconds: float | None = None
    start_seconds: float | None = None
    max_passes: int = 30
    max_stops: int = 3
    on_no_convergence: str = "abort"
    on_overrun: str = "restart"
    fence: bool = True
    ask: Callable[[str], bool] = lambda _: False


@dataclass(frozen=True)
class Status:
    """How a migration is getting on, for whoever watches it.

    Attributes:
        step: what it is doing, in a few words.
        pass_number: 1 for the first.
        done: bytes of this pass that are dealt with.
        total: bytes of this pass; None while nobody knows.
        rate: bytes a second of sending, by the passes before.
        dirty_rate: bytes a second that change.
        predicted: downtime in seconds, if the source were stopped now.
        max_downtime: what is allowed.
        store_fill: how full the source's stores are, 0 to 1.
        pool_fill: how full the target's pool is, 0 to 1.
        words: a line that is worth keeping; empty: only the numbers moved.
    """

    step: str
    pass_number: int
    done: int = 0
    total: int | None = None
    rate: float | None = None
    dirty_rate: float | None = None
    predicted: float | None = None
    max_downtime: float = 0.0
    store_fill: float | None = None
    pool_fill: float | None = None
    words: str = ""


Tell = Callable[[Status], None]


@dataclass(frozen=True)
class Outcome:
    """What a migration did; ``--json`` prints it.

    Attributes:
        job: "migrate".
        source, target: as messages call them.
        seconds: all of it.
        max_downtime: what was allowed.
        predicted_downtime: right before the stop.
        downtime: from just before the stop command until the start command had returned (or, without one, until
            the target was whole).
        prediction: the parts of the prediction.
        parts: how long each part of the downtime took.
        passes: bytes, wire_bytes, seconds, interval and predicted downtime of each.
        bytes: of changes, in all passes.
        wire_bytes: of all streams.
        restarts: how often the source was started again because the downtime would have been too long.
        verified: what was compared: "nothing", "changes" or "whole".
        way_back: the snapshot on the target's side that ``migrate --back`` starts from.
        point: the target's point.
        notes: what the user should know, a sentence each.
    """

    source: str
    target: str
    seconds: float
    max_downtime: float
    predicted_downtime: float
    downtime: float
    prediction: dict[str, float | int | None]
    parts: dict[str, float]
    passes: list[dict[str, float | int | str | None]]
    bytes: int
    wire_bytes: int
    restarts: int = 0
    verified: str = "nothing"
    way_back: str | None = None
    point: str | None = None
    notes: list[str] = field(default_factory=list)
    job: str = "migrate"
