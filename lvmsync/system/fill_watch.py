"""Watching stores and pools while a job runs: more room in time, or a stop before they are full."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from lvmsync.errors import ChangesLost, CommandError, DeviceError, LvmsyncError, UsageError
from lvmsync.formats.snapshot import SECTOR
from lvmsync.system import dm, lvm, lvm_commands
from lvmsync.system.command import run_to_end
from lvmsync.system.fill import Fill, ThinPool, find_pool, store_fill
from lvmsync.units import size_words

LIMIT = 95.0
"""Percent of a store or pool at which work stops."""

EXTEND_AT = 70.0
"""Percent at which more room is asked for: the threshold of LVM's own examples."""

EXTEND_TIMEOUT = 120.0
"""Seconds that the user's command for more room may take."""

NEVER_FULL = Fill(0, 1 << 62)
"""What is told of something that cannot become full."""

_STEP = 2.0  # percent that it must grow before more room is asked for again


@dataclass(frozen=True)
class Limits:
    """When stores and pools are too full.

    Attributes:
        extend_cmd: the user's command that makes more room; None: there is none.
        extend_at: percent at which it is run.
        limit: percent at which the job is stopped.
    """

    extend_cmd: str | None = None
    extend_at: float = EXTEND_AT
    limit: float = LIMIT

    def watch(self, gauges: Iterable[Gauge], *, limit: float | None = None, every: float = 1.0) -> FillWatch:
        """Return what watches gauges by these limits; ``limit`` is another one than their own.

        Raises:
            UsageError: the command that extends is no command.
        """
        extend = extend_command(self.extend_cmd) if self.extend_cmd else None
        return FillWatch(gauges, extend, self.extend_at, self.limit if limit is None else limit, every)


@dataclass(frozen=True)
class Gauge:
    """Something that can become full.

    Attributes:
        volume: ``VG/LV`` of the snapshot or pool; of a pool that is not LVM's, the path of its device.
        read: returns what of it is fullest, in words, and how full that is.
        remedy: what the user can do, as a command.
        store: the snapshot, where it is one.
    """

    volume: str
    read: Callable[[], tuple[str, Fill]]
    remedy: str
    store: lvm.LogicalVolume | None = None


Extend = Callable[[Gauge, Fill], str]
"""Makes more room for what a gauge shows, and returns in a word or two who did."""


def store_gauge(snapshot: lvm.LogicalVolume) -> Gauge:
    """Return the gauge of an active classic snapshot's store."""
    name = snapshot.full_name
    remedy = f"lvextend -L +SIZE {name}"
    return Gauge(name, lambda: (f"the store of {name}", store_fill(snapshot)), remedy, snapshot)


def snapshot_gauge(kept: dm.Snapshot) -> Gauge:
    """Return the gauge of the store of a snapshot that the kernel runs, whoever has taken it."""
    name = _name_of(kept.device)

    def read() -> tuple[str, Fill]:
        usage = kept.read_usage()
        return f"the store of {name}", Fill(usage.allocated * SECTOR, usage.total * SECTOR)

    return Gauge(name, read, f"lvextend -L +SIZE {name}")


def until_whole(gauge: Gauge, whole: int) -> Gauge:
    """Return the gauge of a store that shows nothing any more once that was made so large that it holds everything.

    Args:
        gauge: of the store.
        whole: bytes that it needs for that; LVM makes it no larger.
    """

    def read() -> tuple[str, Fill]:
        what, fill = gauge.read()
        return what, NEVER_FULL if fill.total >= whole else fill

    return replace(gauge, read=read)


def pool_gauge(pool: dm.Number | ThinPool) -> Gauge:
    """Return the gauge of the thin pool that a device takes its space from.

    Args:
        pool: it, or the device.

    Raises:
        DeviceError: the device is of no thin pool.
        CommandError: dmsetup failed.
    """
    found = pool if isinstance(pool, ThinPool) else find_pool(pool)
    if found is None:
        raise DeviceError(f"device {pool} takes its space from no thin pool")
    name = pool_name(found)

    def read() -> tuple[str, Fill]:
        filled = found.read_fill()
        if filled.metadata.percent > filled.data.percent:
            return f"the metadata of thin pool {name}", filled.metadata
        return f"the data of thin pool {name}", filled.data

    return Gauge(name, read, f"lvextend -L +SIZE {name}' or 'lvextend --poolmetadatasize +SIZE {name}")


def pool_name(pool: ThinPool) -> str:
    """Return ``VG/POOL``, or the path of its device where that is none of LVM's."""
    return _name_of(pool.device)


def _name_of(device: dm.Mapped) -> str:
    return lvm.name_of_device(device) or device.path


def grow_stores(step: int | None = None) -> Extend:
    """Return what makes stores larger, by ``step`` bytes or else a quarter; a pool it leaves to the user."""

    def extend(gauge: Gauge, fill: Fill) -> str:
        if gauge.store is None:
            raise DeviceError("a pool is extended by its owner's command only")
        lvm_commands.extend_volume(gauge.store, step or fill.total // 4)
        return "lvmsync"

    return extend


def extend_command(command: str) -> Extend:
    """Return what runs the user's command: words, no shell; LVMSYNC_VOLUME and LVMSYNC_PERCENT tell it what.

    Raises:
        UsageError: the command has no words, or an open quote.
    """
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"cannot split '{command}' into words: {error}") from error
    if not argv:
        raise UsageError("the command that extends is empty")

    def extend(gauge: Gauge, fill: Fill) -> str:
        env = {"LVMSYNC_VOLUME": gauge.volume, "LVMSYNC_PERCENT": f"{fill.percent:.1f}"}
        run_to_end(argv, timeout=EXTEND_TIMEOUT, env=env)
        return f"'{argv[0]}'"

    return extend


@dataclass
class FillWatch:
    """Looks at gauges about once a second, when its job says so with `check`; it has no thread, but takes calls of any.

    Attributes:
        gauges: what to look at.
        extend: how more room is made; None: it is not.
        extend_at: percent at which that is done.
        limit: percent at which the job is stopped.
        every: seconds between two looks at most; fewer when something fills quickly.
        notes: what happened, a sentence each.
        fills: what was seen last, by volume.
        failure: what was found to be too full, or lost; it is raised again by each `check`.
        is_known: whether the job itself has come by since, and ends.
    """

    gauges: Iterable[Gauge]
    extend: Extend | None = None
    extend_at: float = EXTEND_AT
    limit: float = LIMIT
    every: float = 1.0
    notes: list[str] = field(default_factory=list)
    fills: dict[str, Fill] = field(default_factory=dict)
    failure: LvmsyncError | None = None
    is_known: bool = False
    _next: float = 0.0
    _last: float = 0.0
    _tried: dict[str, float] = field(default_factory=dict)
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gauges = list(self.gauges)

    def check(self) -> None:
        """Look, if it is time, and act.

        Raises:
            DeviceError: something is over the limit.
            ChangesLost: a snapshot has overflowed, or a pool has failed.
            CommandError: dmsetup failed.
        """
        if self.failure:
            raise self.failure
        if time.monotonic() < self._next or not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        except LvmsyncError as error:
            self.failure = error
            raise
        finally:
            self._looking.release()

    def _look(self) -> None:
        now = time.monotonic()
        wait = self.every
        for gauge in self.gauges:
            what, fill = gauge.read()
            if self.extend and fill.percent >= max(self.extend_at, self._tried.get(gauge.volume, 0)):
                what, fill = self._make_room(self.extend, gauge, what, fill)
            if fill.percent >= self.limit:
                raise self._stop(gauge, what, fill)
            wait = min(wait, self._seconds_left(gauge, fill, now) / 4)
            self.fills[gauge.volume] = fill
        self._last = now
        self._next = now + wait

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Tell a failure by its cause, where a gauge shows it: what overflows gives read errors first."""
        try:
            yield
        except DeviceError as error:
            with suppress(CommandError):
                self._find_lost(error)
            raise

    def _stop(self, gauge: Gauge, what: str, fill: Fill) -> DeviceError:
        error = DeviceError(
            f"{what} is {fill.percent:.1f}% full ({size_words(fill.used)} of {size_words(fill.total)}), over"
            f" the limit of {self.limit:g}%: stopped before it is full; make it larger with '{gauge.remedy}'",
            device=gauge.volume,
        )
        for note in self.notes:  # why it was not made larger, perhaps
            error.add_note(note)
        return error

    def _find_lost(self, error: DeviceError) -> None:
        try:
            for gauge in self.gauges:
                gauge.read()
        except ChangesLost as lost:
            for note in getattr(error, "__notes__", []):
                lost.add_note(note)
            raise lost from error

    def _make_room(self, extend: Extend, gauge: Gauge, what: str, before: Fill) -> tuple[str, Fill]:
        try:
            who = extend(gauge, before)
        except LvmsyncError as error:
            self.notes.append(f"{what} is {before.percent:.1f}% full, and could not be made larger: {error}")
            self._tried[gauge.volume] = before.percent + _STEP
            return what, before
        what, after = gauge.read()
        if after.total > before.total:
            self.notes.append(
                f"{what} was {before.percent:.1f}% full; {who} extended it, and it is {after.percent:.1f}% full now"
            )
        else:
            self.notes.append(f"{what} is {after.percent:.1f}% full, and {who} did not make it larger")
        self._tried[gauge.volume] = after.percent + _STEP if after.percent >= self.extend_at else 0
        return what, after

    def _seconds_left(self, gauge: Gauge, fill: Fill, now: float) -> float:
        """Return when it is full, if it goes on as since the last look."""
        last = self.fills.get(gauge.volume)
        if last is None or fill.used <= last.used or now <= self._last:
            return float("inf")
        return fill.free * (now - self._last) / (fill.used - last.used)
