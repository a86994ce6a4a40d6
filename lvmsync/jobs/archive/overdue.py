"""Whether a timer has not started what it is to start."""

from __future__ import annotations

from datetime import datetime

from lvmsync.chain.catalogue import parse_time
from lvmsync.jobs.archive.status import TaskState

_LEAST_SLACK = 600  # seconds; systemd starts a timer up to a minute late, and a machine takes some time to boot


def age(then: str, now: datetime) -> float | None:
    """Return how many seconds ago a time was; None where it is none. It is negative where a clock was set back."""
    text = parse_time(then)
    return (now - datetime.fromisoformat(text)).total_seconds() if text else None


def is_overdue(task: TaskState, now: datetime) -> bool:
    """Tell whether no run of a task began for longer than its timer lets pass; no, where that is not known."""
    timer, record = task.timer, task.record
    if timer is None or timer.seconds is None or task.is_running:
        return False
    ages = [age(timer.installed, now), age(record.began, now) if record and record.began else None]
    known = [one for one in ages if one is not None]
    slack = max(_LEAST_SLACK, timer.seconds // 10)
    return bool(known) and min(known) > timer.seconds + timer.jitter + slack
