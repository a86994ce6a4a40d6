"""One run as a timer wants it: one at a time, taken and then pruned, and how it ended is remembered and measured."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.chain.catalogue import Catalogue
from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, TransportError
from lvmsync.jobs.archive.metrics import write_metrics
from lvmsync.jobs.archive.prune import Pruned
from lvmsync.jobs.archive.status import RunRecord, Task, lock_task, read_note, write_json
from lvmsync.jobs.progress import Receipt, Stopwatch

INTERRUPTED = 130
"""Exit status of a run that a signal has ended."""

_LONGEST_LINE = 2000  # characters of a failure that are kept


@dataclass(frozen=True)
class Work:
    """What a run does.

    Attributes:
        take: takes the source into the archive.
        prune: lets points go; None: none are.
        look: returns the archive's catalogue as it is then.
        lag_bytes: returns bytes that the source has changed since a catalogue's newest point; None: not known.
    """

    take: Callable[[], Receipt]
    prune: Callable[[], Pruned] | None
    look: Callable[[], Catalogue]
    lag_bytes: Callable[[Catalogue], int | None]


@dataclass(frozen=True)
class Done:
    """What a run did; a failure is raised.

    Attributes:
        receipt: of what was taken.
        pruned: what was let go; None: that was not asked for.
        record: what is remembered of it.
    """

    receipt: Receipt
    pruned: Pruned | None
    record: RunRecord


def run(
    state: Path,
    task: Task,
    work: Work,
    *,
    jitter: int = 0,
    metrics: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> Done:
    """Take, then prune, and remember how that went; if taking fails, nothing is pruned.

    Args:
        state: the state folder of this machine.
        task: what is taken, and where to.
        work: how.
        jitter: seconds to wait before, at the most; how many is left to chance.
        metrics: path of the file for metrics, or of a folder for such files; None: none are written.
        sleep: waits.
        chance: returns a number from 0 to 1.

    Raises:
        ConflictError: another run of the same task is at work; nothing was done.
        LvmsyncError: what taking or pruning raised; it is remembered.
    """
    if jitter:
        _wait(state, task, metrics, sleep, chance() * jitter)
    with lock_task(state, task) as folder:
        log = _Log(folder, task, metrics)
        try:
            log.begin()
            receipt = work.take()
            log.taken = receipt.bytes
            pruned = work.prune() if work.prune else None
            return Done(receipt, pruned, log.succeed(work))
        except BaseException as error:
            log.fail(error, work)
            raise


def _wait(state: Path, task: Task, metrics: Path | None, sleep: Callable[[float], None], seconds: float) -> None:
    """Wait before a run; that it was ended then is remembered, unless another run is at work."""
    try:
        sleep(seconds)
    except BaseException as error:
        try:
            with lock_task(state, task) as folder:
                log = _Log(folder, task, metrics)
                log.begin()
                log.fail(error, None)
        except ConflictError:
            pass
        except LvmsyncError as more:
            error.add_note(str(more))
        raise


class _Log:
    """The record of a run that is at work, by the holder of its lock."""

    def __init__(self, folder: Path, task: Task, metrics: Path | None) -> None:
        self._path = folder / "record.json"
        self._metrics = metrics
        self._watch = Stopwatch()
        self._record = read_note(self._path, RunRecord) or RunRecord(task.archive, task.source)
        self.taken = 0

    def begin(self) -> None:
        """Remember that the run has begun: if it is killed, that shows."""
        old = self._record
        if old.began and not old.ended:
            words = f"the run that began {old.began} was cut off: killed, or the machine went down"
            self._record = replace(old, failed=old.began, failed_status=None, failed_line=words)
        self._write(began=_now(), ended=None, status=None, line=None, seconds=0.0, bytes=0)

    def succeed(self, work: Work) -> RunRecord:
        """Remember that all went well, and return what is remembered.

        Raises:
            LvmsyncError: that could not be written, or the metrics could not; this is what has failed then.
        """
        lag = self._look(work)
        now = _now()
        self._write(ended=now, status=0, succeeded=now, **self._figures())
        self._measure(lag)
        return self._record

    def fail(self, error: BaseException, work: Work | None) -> None:
        """Remember how it failed. What goes wrong with that is noted on the failure."""
        # One that was ended is to end soon, and a store that was out of reach would be waited for once more.
        is_looking = work and isinstance(error, Exception) and not isinstance(error, TransportError)
        try:
            lag = self._look(work) if work and is_looking else None
            now, status, line = _now(), status_of(error), _line(error)
            self._write(
                ended=now, status=status, line=line, failed=now, failed_status=status, failed_line=line,
                **self._figures(),
            )  # fmt: skip
            self._measure(lag)
        except LvmsyncError as more:
            if str(more) != str(error):
                error.add_note(str(more))

    def _figures(self) -> dict[str, object]:
        return {"seconds": round(self._watch.seconds, 3), "bytes": self.taken}

    def _look(self, work: Work) -> int | None:
        """See what the archive is now; return how many bytes the source has changed since, where that is known."""
        try:
            catalogue = work.look()
            lag = work.lag_bytes(catalogue)
        except LvmsyncError:
            return None  # the numbers of the time before stay
        times = [one.time for one in catalogue.points]
        self._record = replace(
            self._record,
            newest=times[-1] if times else None,
            points=len(times),
            stored=sum(one.stored + one.index_stored for one in catalogue.members),
        )
        return lag

    def _write(self, **changes: object) -> None:
        self._record = replace(self._record, **changes)  # type: ignore[arg-type]
        write_json(self._path, self._record)

    def _measure(self, lag: int | None) -> None:
        if self._metrics is not None:
            write_metrics(self._metrics, self._record, lag, datetime.now(UTC))


def status_of(error: BaseException) -> int:
    """Return the exit status of a failure, as the command line has it."""
    if isinstance(error, LvmsyncError):
        return error.exit_code
    if isinstance(error, MemoryError):
        return DeviceError.exit_code
    if isinstance(error, BrokenPipeError):
        return TransportError.exit_code
    return LvmsyncError.exit_code if isinstance(error, Exception) else INTERRUPTED


def _line(error: BaseException) -> str:
    """Return a failure in one line, which may have come from another machine."""
    words = "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(words.splitlines()))
    return text[:_LONGEST_LINE]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
