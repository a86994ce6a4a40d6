"""The metrics of a task, for the textfile collector of node_exporter or any other reader of OpenMetrics."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from lvmsync.chain.catalogue import parse_time
from lvmsync.errors import DeviceError
from lvmsync.formats.openmetrics import Gauge, escape, render
from lvmsync.jobs.archive.status import RunRecord, Task
from lvmsync.system.ledger import sync_folder

_NAME = "lvmsync_archive_"
_FIRST = f"# TYPE {_NAME}"
_MODE = 0o644  # the collector is another user


def write_metrics(path: Path, record: RunRecord, lag_bytes: int | None, now: datetime) -> None:
    """Write the metrics of a run at once: a reader finds the old ones or the new ones.

    Args:
        path: of the file, or of a folder, where it gets a name of its own.
        record: of the run.
        lag_bytes: bytes that the source has changed since the newest point; None: not known.
        now: the time.

    Raises:
        DeviceError: it cannot be written, or holds something else.
    """
    target = metrics_file(path, record.task)
    text = render(list(_gauges(record, lag_bytes, now)), {"archive": record.archive, "source": record.source})
    new = target.with_name(f".{target.name}.new")  # not *.prom, which the collector would read
    try:
        with open(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE), "w"
        ) as file:
            os.fchmod(file.fileno(), _MODE)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise DeviceError(f"cannot write the metrics to {target}: {error.strerror}", device=str(target)) from error


def metrics_file(path: Path, task: Task) -> Path:
    """Return the path of the file for a task's metrics.

    Raises:
        DeviceError: it holds something else, or cannot be read.
    """
    target = path / f"lvmsync-archive-{task.key}.prom" if path.is_dir() else path
    try:
        there = target.read_text("utf-8", "replace")
    except FileNotFoundError:
        return target
    except OSError as error:
        raise DeviceError(f"cannot read {target}: {error.strerror}", device=str(target)) from error
    if not there.startswith(_FIRST):
        raise DeviceError(
            f"{target} is no file of our metrics, and is not overwritten: name another", device=str(target)
        )
    if f'archive="{escape(task.archive)}",source="{escape(task.source)}"' not in there:
        raise DeviceError(
            f"{target} has the metrics of another archive or source: name a file for each, or their folder",
            device=str(target),
        )
    return target


def _gauges(record: RunRecord, lag_bytes: int | None, now: datetime) -> Iterator[Gauge]:
    def seconds(name: str, text: str, value: float | None) -> Iterator[Gauge]:
        if value is not None:
            yield Gauge(f"{_NAME}{name}_seconds", text, value, "seconds")

    def size(name: str, text: str, value: int | None) -> Iterator[Gauge]:
        if value is not None:
            yield Gauge(f"{_NAME}{name}_bytes", text, value, "bytes")

    began, newest = _moment(record.began), _moment(record.newest)
    yield from seconds("last_run_timestamp", "When the last run began.", began)
    yield from seconds("last_success_timestamp", "When the last good run ended.", _moment(record.succeeded))
    yield from seconds("last_failure_timestamp", "When the last failed run ended.", _moment(record.failed))
    if record.status is not None:
        yield Gauge(f"{_NAME}last_status", "Exit status of the last run; 0 is success.", record.status)
    yield from seconds("last_duration", "How long the last run took.", record.seconds)
    yield from size("last_taken", "Bytes of changes that the last run took.", record.bytes)
    yield from seconds("newest_point_timestamp", "When the newest point was seen.", newest)
    lag = None if newest is None else max(0.0, now.timestamp() - newest)
    yield from seconds("lag", "Age of the newest point when this was written.", lag)
    yield from size("lag", "Bytes the source had changed by then since that point, at the most.", lag_bytes)
    if record.points is not None:
        yield Gauge(f"{_NAME}points", "Points in the archive when it was last read.", record.points)
    yield from size("stored", "Bytes of all members of the archive when it was last read.", record.stored)


def _moment(text: str | None) -> float | None:
    """Return a time as Unix time; None where there is none."""
    sorted_text = parse_time(text) if text else None
    return datetime.fromisoformat(sorted_text).timestamp() if sorted_text else None
