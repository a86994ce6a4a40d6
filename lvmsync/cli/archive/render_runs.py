"""How the runs of a task are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from lvmsync.cli.render import size
from lvmsync.jobs.archive.overdue import age, is_overdue
from lvmsync.units import span_words

if TYPE_CHECKING:
    from lvmsync.jobs.archive.status import TaskState


def task_lines(tasks: Iterable[TaskState], now: datetime) -> str:
    """Return a line for each task: how its last run ended, and what starts the next one."""
    return "".join(f"{_printable(_last_run(one, now))}{_printable(_timer(one, now))}\n" for one in tasks)


def tasks_json(tasks: Iterable[TaskState], now: datetime) -> list[dict[str, object]]:
    """Return the same as values for JSON."""
    return [
        {
            "source": one.task.source,
            "running": one.is_running,
            "cut_off": one.is_cut_off,
            "overdue": is_overdue(one, now),
            "last": asdict(one.record) if one.record else None,
            "timer": asdict(one.timer) if one.timer else None,
        }
        for one in tasks
    ]


def _last_run(one: TaskState, now: datetime) -> str:
    record, source = one.record, one.task.source
    if record is None or record.began is None:
        return f"no run of {source} yet"
    if one.is_running:
        return f"a run of {source} is at work, since {_ago(record.began, now, '')}"
    if one.is_cut_off:
        return f"last run of {source}: CUT OFF, it began {_ago(record.began, now)}{_last_good(one, now)}"
    assert record.ended is not None
    if record.status == 0:
        took = f"{size(record.bytes)} in {record.seconds:.1f} s"
        return f"last run of {source}: ok {_ago(record.ended, now)} ({took})"
    words = f"last run of {source}: FAILED {_ago(record.ended, now)} (status {record.status}): {record.line}"
    return words + _last_good(one, now)


def _last_good(one: TaskState, now: datetime) -> str:
    done = one.record.succeeded if one.record else None
    return f"; the last that was ok ended {_ago(done, now)}" if done else "; none has been ok yet"


def _timer(one: TaskState, now: datetime) -> str:
    if one.timer is None:
        return ""
    return f"; every {one.timer.every}{', OVERDUE' if is_overdue(one, now) else ''}"


def _ago(then: str, now: datetime, word: str = " ago") -> str:
    seconds = age(then, now)
    return f"at {then}" if seconds is None else f"{span_words(seconds)}{word}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
