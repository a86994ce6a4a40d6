"""A simulated pair of machines to migrate between: its clock moves only by what is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lvmsync.errors import DeviceError
from lvmsync.jobs.migrate.move import Carried, Cut, Ended, Move
from lvmsync.jobs.progress import Progress, Receipt, Report


@dataclass
class World:
    """Two sides, a writer, and a list of what was done.

    Attributes:
        size: bytes of the volume.
        dirty_rate: bytes a second that the writer changes while it runs.
        working_set: bytes that it changes at the most.
        rate: bytes a second of the line; a function of the pass's number may change it.
        costs: seconds of each other step.
        fails: step -> what it raises.
    """

    size: int = 1000 << 20
    dirty_rate: float = 5 << 20
    working_set: float = 500 << 20
    rate: float = 50 << 20
    costs: dict[str, float] = field(default_factory=dict)
    fails: dict[str, BaseException] = field(default_factory=dict)
    rate_of: Callable[[int], float] | None = None
    user: str | None = None
    writes: int = 0
    start_ends: Ended = field(default_factory=lambda: Ended(0))
    target_use: str | None = None
    now: float = 1000.0
    runs_here: bool = True
    runs_there: bool = False
    is_writable: bool = True
    is_current: bool = False
    done: list[str] = field(default_factory=list)
    dirty: float = 0.0
    passes: int = 0
    stopped_at: float = 0.0
    started_at: float = 0.0

    def spend(self, seconds: float) -> None:
        """Let time pass; the writer writes, if it runs."""
        self.now += seconds
        if self.runs_here:
            self.dirty = min(self.dirty + seconds * self.dirty_rate, self.working_set)

    def do(self, step: str) -> None:
        """Take a step, for its price; it may fail at its end."""
        self.done.append(step)
        self.spend(self.costs.get(step, 0.1))
        if step in self.fails:
            raise self.fails[step]

    def run_pass(self, report: Report) -> Carried:
        self.passes += 1
        began = self.now
        self.do("snapshot")
        head_time = self.now
        is_first = self.passes == 1
        count = int(self.size if is_first else self.dirty)
        self.dirty = 0.0
        self.do("map")
        sent = self.now
        rate = self.rate_of(self.passes) if self.rate_of else self.rate
        for part in range(1, 11):
            self.spend(count / rate / 10)
            report(Progress("sending", count * part // 10, count))
            if part == 5 and "send" in self.fails:
                raise self.fails["send"]
        commit = self.now
        self.is_current = not self.runs_here and self.dirty == 0
        self.do("commit")
        self.done.append("pass")
        seconds = {"snapshot": head_time - began, "map": sent - head_time, "send": commit - sent, "commit": 0.1}
        receipt = Receipt("sync", bytes=count, wire_bytes=count // 2, size=self.size, point=f"lv:{self.passes}")
        return Carried(receipt, "first" if is_first else "delta", seconds, head_time)

    def prepare(self) -> float:
        self.do("prepare")
        return self.costs.get("back", 0.1)

    def stop(self) -> None:
        self.stopped_at = self.now
        self.do("stop")
        self.runs_here = False

    def restart(self) -> None:
        self.do("restart")
        assert self.is_writable
        assert not self.runs_there
        self.runs_here = True
        self.is_current = False

    def fence(self) -> None:
        self.is_writable = False
        self.do("fence")

    def unfence(self) -> None:
        self.do("unfence")
        self.is_writable = True

    def start(self) -> Ended:
        assert self.is_current, "the target lacks what was written last"
        assert not self.runs_here
        self.do("start")
        self.started_at = self.now
        self.runs_there = self.start_ends.status == 0
        return self.start_ends

    def keep_way_back(self) -> str:
        self.do("back")
        return "vg/back"

    def drop_way_back(self) -> None:
        self.do("drop")

    def find_target_use(self) -> str | None:
        self.do("look there")
        return self.target_use

    def finish(self, cut: Cut) -> list[str]:
        self.do("finish")
        return [f"finished after {cut.downtime:.0f} s"]

    def verify_last(self) -> None:
        self.do("verify last")

    def verify_whole(self, _: Report) -> None:
        self.do("verify whole")

    def move(self, *, can_restart: bool = True, verify: bool = False, start: bool = True) -> Move:
        """Return it as a migration sees it."""
        return Move(
            source="vg/lv",
            target="far:vg/lv",
            run_pass=self.run_pass,
            prepare=self.prepare,
            stop=self.stop,
            find_user=lambda: self.user,
            count_writes=lambda: self.writes,
            restart=self.restart if can_restart else None,
            fence=self.fence,
            unfence=self.unfence,
            verify_whole=self.verify_whole if verify else None,
            verify_last=self.verify_last if verify else None,
            keep_way_back=self.keep_way_back,
            drop_way_back=self.drop_way_back,
            find_target_use=self.find_target_use,
            start=self.start if start else None,
            finish=self.finish,
            how_to_stop="stop-it",
            how_to_restart="restart-it",
            how_to_start="start-it",
            clock=lambda: self.now,
        )


def broken(words: str = "it broke") -> DeviceError:
    """Return an error as a step may raise it."""
    return DeviceError(words)
