"""What the records of archive runs tell: the last one failed, or the timer starts none."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from lvmsync.errors import FormatError
from lvmsync.jobs.archive.overdue import is_overdue
from lvmsync.jobs.archive.status import TaskState, read_task
from lvmsync.jobs.doctor.findings import Finding


def check_runs(state: Path, now: datetime) -> Iterator[Finding]:
    """Yield the runs that failed last, and timers that start nothing.

    Args:
        state: the state folder.
        now: the time.
    """
    for folder in sorted((state / "archives").glob("*")):
        try:
            task = read_task(folder)
        except FormatError as error:
            yield Finding("broken", str(folder), str(error), f"mv {shlex.quote(str(folder))} /root")
            continue
        if task:
            yield from _check_task(task, now)


def _check_task(task: TaskState, now: datetime) -> Iterator[Finding]:
    record, timer, what = task.record, task.timer, task.task.word
    forget = f"if it is not wanted any more: rm -r {shlex.quote(str(task.folder))}"
    again = f"lvmsync archive run {shlex.quote(task.task.archive)} {shlex.quote(task.task.source)}"
    if timer:
        forget = again.replace(" run ", " install-timer ", 1) + " --remove, if it is not wanted any more"
    if task.is_cut_off and record:
        problem = f"the run that began {record.began} was cut off: killed, or the machine went down"
        yield Finding("archive", what, problem, f"run it again: {again}; {forget}")
    elif record and record.status and not task.is_running:
        problem = f"the last run FAILED at {record.ended} with status {record.status}: {record.line}"
        yield Finding("archive", what, problem, f"mend that, and try it by hand: {again}; {forget}")
    if timer is None:
        return
    gone = [path for path in timer.files if not Path(path).exists()]
    if gone:
        yield Finding(
            "archive", what, f"{gone[0]} is gone, so nothing starts its runs", f"install the timer again; {forget}"
        )
    elif is_overdue(task, now):
        since = record.began if record and record.began else f"it was installed at {timer.installed}"
        yield Finding(
            "archive", what, f"it is to run every {timer.every}, and no run began since {since}", _look_at(timer.files)
        )


def _look_at(files: tuple[str, ...]) -> str:
    timers = [Path(one).name for one in files if one.endswith(".timer")]
    if timers:
        return f"see 'systemctl status {timers[0]}'; 'systemctl enable --now {timers[0]}' starts it"
    return f"does cron run ('systemctl status cron')? See {files[0] if files else 'its crontab'}"
